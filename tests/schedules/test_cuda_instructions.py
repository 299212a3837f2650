"""The machine code that NVRTC makes of CUDA kernels holds what the schedules were written for."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from tvm_mobilenet import targets
from tvm_mobilenet.parity.cuda_launches import lower
from tvm_mobilenet.runtime import nvrtc
from tvm_mobilenet.schedules import base
from tvm_mobilenet.schedules.spec import RELU, ConvSpec, SeparableSpec, Spec

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
POINTWISE = ConvSpec(32, 512, 14, 14, 512, lanes=4, activation=RELU)
HALVES = ConvSpec(8, 512, 14, 14, 512, lanes=4, activation=RELU, precision="float16")
DEPTHWISE = ConvSpec(
    *(8, 512, 14, 14, 512, (3, 3), (1, 1), (1, 1, 1, 1)),
    groups=512,
    lanes=4,
    activation=RELU,
    precision="float16",
)


@pytest.fixture
def instructions(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, whose neighbours it imports."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("cuda_instructions")


def code_of(spec: Spec, instructions: ModuleType) -> object:
    """Of one operator's kernel for sm_90."""
    target = targets.at_precision(targets.load("cuda-sm90"), spec.precision)
    source = lower({"f": base.schedule(spec, target).function}, target).source
    (code,) = instructions.disassemble(nvrtc.compile_source(source, "sm_90").code).values()
    return code


def test_a_pointwise_loop_is_products(instructions: ModuleType) -> None:
    """What a float32 product leaves of the issue slots is its share of the GPU's peak at most."""
    code = code_of(POINTWISE, instructions)
    assert len(code.loops) == 1 and len(code.hot) < len(code.instructions)
    assert code.hot.count("FFMA") / len(code.hot) > 0.9


@pytest.mark.parametrize(
    "spec", [DEPTHWISE, SeparableSpec(DEPTHWISE, HALVES)], ids=["own", "joint"]
)
def test_halves_at_the_border_are_neither_repacked_nor_branched_around(
    spec: Spec, instructions: ModuleType
) -> None:
    """Chosen half by half, each took a PRMT more; a weight in float16 a conversion more."""
    code = code_of(spec, instructions)
    products = code.count("FFMA")
    assert products >= 36
    assert code.count("PRMT") < products / 16
    assert code.count("HADD2") <= products
    assert code.count("BRA") - len(code.loops) <= 8
