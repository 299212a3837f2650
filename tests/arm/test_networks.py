"""Whole networks as ARM code, without a board: the C++ runner under QEMU, held to the f64 rule.

QEMU's `-cpu` is the real core, or an older one with nothing beyond it, so that an instruction which
the board lacks ends the program. CI proves the smallest network on every core and the others on a
64-bit and a 32-bit one; with ARM_SWEEP=1 in the environment all are proven on every core.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.deploy.builder import Proven, compile_and_prove
from tvm_mobilenet.frontend import ImportedModel
from tvm_mobilenet.parity import samples

pytestmark = [
    pytest.mark.arm,
    pytest.mark.slow,
    pytest.mark.needs_tool("qemu-aarch64", "qemu-user"),
    pytest.mark.needs_tool("qemu-arm", "qemu-user"),
    pytest.mark.needs_tool("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu"),
    pytest.mark.needs_tool("arm-linux-gnueabihf-g++", "g++-arm-linux-gnueabihf"),
]

Network = tuple[str, float, int]
SMALLEST = ("mobilenet_v1", 0.25, 128)
SIZES = [("mobilenet_v1", 0.5, 160), ("mobilenet_v1", 0.75, 192), ("mobilenet_v1", 1.0, 224)]
V2, V3 = ("mobilenet_v2", 1.0, 224), ("mobilenet_v3_large", 1.0, 224)
# One target for each core; the others differ from one of these in caches and number of cores only.
CORES = {targets.load(name).mcpu: name for name in targets.names()}
EVERY_CORE = sorted(
    name for mcpu, name in CORES.items() if not targets.load(name).mtriple.startswith("x86")
)
# Emulating large networks takes half an hour for all cores: that is for whoever asks for it.
SWEEP = [(network, core) for core in EVERY_CORE for network in (SMALLEST, *SIZES, V2, V3)]
SAMPLE = [(network, core) for core in ("rpi4", "rpi2") for network in (*SIZES, V2)]
SAMPLE += [(SMALLEST, core) for core in EVERY_CORE] + [(V3, core) for core in ("rpi5", "rpi2")]
CASES = SWEEP if os.environ.get("ARM_SWEEP") else SAMPLE


@functools.cache
def imported(network: Network) -> tuple[ImportedModel, list[Any]]:
    """The network and its samples."""
    name, alpha, resolution = network
    model = frontend.load_model(name, alpha=alpha, resolution=resolution, exporter="torchscript")
    # an emulated inference of the larger networks takes seconds: one picture for these
    return model, samples(model, 0, 2 if network in (SMALLEST, *SIZES[:1]) else 1)


def prove(network: Network, target: str, place: Path, **options: Any) -> Proven:
    spec = targets.load(target)
    model, inputs = imported(network)
    proven = compile_and_prove(
        model, spec, place / "m.so", inputs=inputs, progress=lambda message: None, **options
    )
    assert proven.parity.passed, proven.parity.summary()
    assert proven.parity.machine.endswith(f"-cpu {spec.qemu_cpu}")
    assert {operator.source for operator in proven.compiled.operators} == {"analytic"}
    return proven


@pytest.mark.parametrize(("network", "target"), CASES, ids=str)
def test_networks_on_cores(network: Network, target: str, tmp_path: Path) -> None:
    prove(network, target, tmp_path)


def test_several_threads_give_the_same(tmp_path: Path) -> None:
    prove(SMALLEST, "rpi4", tmp_path, threads=3)
