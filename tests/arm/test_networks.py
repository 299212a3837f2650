"""Whole networks as ARM code, without a board: the C++ runner under QEMU, held to the f64 rule.

QEMU's `-cpu` is the real core, or an older one with nothing beyond it, so that an instruction which
the board lacks ends the program.
"""

from __future__ import annotations

import functools
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

SMALLEST = ("mobilenet_v1", 0.25, 128)
SIZES = [("mobilenet_v1", 0.5, 160), ("mobilenet_v1", 0.75, 192), ("mobilenet_v1", 1.0, 224)]
# One target for each core; the others differ from one of these in caches and number of cores only.
CORES = {targets.load(name).mcpu: name for name in targets.names()}
EVERY_CORE = sorted(
    name for mcpu, name in CORES.items() if not targets.load(name).mtriple.startswith("x86")
)


@functools.cache
def imported(name: str, alpha: float, resolution: int) -> ImportedModel:
    return frontend.load_model(name, alpha=alpha, resolution=resolution, exporter="torchscript")


def prove(network: tuple[str, float, int], target: str, place: Path, **options: Any) -> Proven:
    spec = targets.load(target)
    model = imported(*network)
    # an emulated inference of the larger networks takes seconds: one picture for these
    inputs = samples(model, 0, 2 if network in (SMALLEST, *SIZES[:1]) else 1)
    proven = compile_and_prove(
        model, spec, place / "m.so", inputs=inputs, progress=lambda message: None, **options
    )
    assert proven.parity.passed, proven.parity.summary()
    assert proven.parity.machine.endswith(f"-cpu {spec.qemu_cpu}")
    assert {operator.source for operator in proven.compiled.operators} == {"analytic"}
    return proven


@pytest.mark.parametrize("target", EVERY_CORE)
def test_the_smallest_network_on_every_core(target: str, tmp_path: Path) -> None:
    prove(SMALLEST, target, tmp_path)


@pytest.mark.parametrize("target", ["rpi4", "rpi2"])
@pytest.mark.parametrize("network", SIZES, ids=str)
def test_sizes_of_v1(network: tuple[str, float, int], target: str, tmp_path: Path) -> None:
    prove(network, target, tmp_path)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("mobilenet_v2", "rpi4"),
        ("mobilenet_v2", "rpi2"),
        ("mobilenet_v3_large", "rpi5"),
        ("mobilenet_v3_large", "rpi2"),
    ],
)
def test_inverted_residuals(name: str, target: str, tmp_path: Path) -> None:
    prove((name, 1.0, 224), target, tmp_path)


def test_several_threads_give_the_same(tmp_path: Path) -> None:
    prove(SMALLEST, "rpi4", tmp_path, threads=3)
