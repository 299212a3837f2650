"""CUDA schedules hold their limits: launches, multiprocessors' resources, own kernels for all."""

from __future__ import annotations

from functools import cache

import pytest

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.compiler_pass.join_operators import join_operators
from tvm_mobilenet.compiler_pass.lower_operators import lower_operators
from tvm_mobilenet.compiler_pass.pipeline import compile_model
from tvm_mobilenet.compiler_pass.schedule_operators import spec_of
from tvm_mobilenet.schedules import base
from tvm_mobilenet.schedules.cuda.dense import DenseKnobs
from tvm_mobilenet.schedules.cuda.depthwise import DepthwiseKnobs
from tvm_mobilenet.schedules.cuda.gemm import problem_of
from tvm_mobilenet.schedules.cuda.gemm_knobs import GemmKnobs
from tvm_mobilenet.schedules.cuda.memory_bound import MemoryKnobs
from tvm_mobilenet.schedules.spec import RELU6, ConvSpec, DenseSpec, Precision, SeparableSpec, Spec

GPUS = [name for name in targets.names() if targets.load(name).gpu is not None]
H200 = targets.load("cuda-sm90")


@cache
def imported(name: str) -> frontend.ImportedModel:
    return frontend.load_model(name)


def specs(name: str, precision: Precision = "float32") -> list[Spec]:
    """Of every launch of a network, in order."""
    target = targets.at_precision(H200, precision)
    mod, sites = lower_operators(imported(name).mod, base.activation_lanes(H200), precision)
    mod, sites = join_operators(mod, sites, target)
    found = [spec_of(mod[function]) for function, _ in sites]
    assert None not in found
    return [spec for spec in found if spec is not None]


# An inference at batch 1 costs at least its launches; more than now would be a step back.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "most"),
    [
        ("mobilenet_v1", "float32", 23),
        ("mobilenet_v2", "float32", 43),
        ("mobilenet_v3_large", "float32", 50),
        ("mobilenet_v3_large", "tf32", 50),
        ("mobilenet_v3_large", "float16", 50),
    ],
)
def test_launches_of_an_inference(name: str, precision: Precision, most: int) -> None:
    found = specs(name, precision)
    assert len(found) <= most
    assert any(isinstance(spec, SeparableSpec) for spec in found)


POINTWISE = ConvSpec(1, 512, 14, 14, 512, lanes=4, activation=RELU6)
WIDE = ConvSpec(32, 128, 56, 56, 128, lanes=4, activation=RELU6)
LATE = ConvSpec(1, 1024, 7, 7, 1024, lanes=4, activation=RELU6)
STEM = ConvSpec(1, 3, 224, 224, 32, (3, 3), (2, 2), (1, 1, 1, 1), lanes=4, input_layout="nchw")
CONVOLUTION = ConvSpec(1, 64, 56, 56, 64, (3, 3), (1, 1), (1, 1, 1, 1), lanes=4)
DEPTHWISE = ConvSpec(1, 512, 14, 14, 512, (3, 3), (1, 1), (1, 1, 1, 1), groups=512, lanes=4)
SPECS: list[Spec] = [
    POINTWISE,
    WIDE,
    LATE,
    STEM,
    CONVOLUTION,
    DEPTHWISE,
    SeparableSpec(DEPTHWISE, POINTWISE),
    DenseSpec(1, 1024, 1000, lanes=4),
    DenseSpec(32, 1024, 1000, lanes=4),
]


def threads_of(knobs: object) -> int:
    if isinstance(knobs, DenseKnobs):
        return knobs.outputs * knobs.parts
    assert isinstance(knobs, GemmKnobs | DepthwiseKnobs | MemoryKnobs)
    return knobs.threads


@pytest.mark.parametrize("name", GPUS)
def test_analytic_knobs_fit_every_gpu(name: str) -> None:
    target = targets.load(name)
    assert target.gpu is not None
    for spec in SPECS:
        rule = next(rule for rule in base.rules_for(target) if rule.takes(spec, target))
        knobs = rule.analytic(spec, target)
        threads = threads_of(knobs)
        assert threads % 32 == 0
        assert threads <= target.gpu.threads_per_block
        if isinstance(knobs, GemmKnobs):
            assert 4 * knobs.shared_floats <= target.gpu.STATIC_SHARED_KIB * 1024
            assert knobs.registers <= target.gpu.registers_per_thread
            assert knobs.registers * threads <= target.gpu.registers_per_sm


def test_small_maps_reach_most_multiprocessors() -> None:
    """At batch 1 a tile must be small enough that few multiprocessors stand idle."""
    assert H200.gpu is not None
    rules = base.rules_for(H200)
    for spec in (POINTWISE, LATE, CONVOLUTION):
        knobs = next(rule for rule in rules if rule.takes(spec, H200)).analytic(spec, H200)
        tiles = problem_of(spec).tiles(knobs)
        assert tiles[0] * tiles[1] >= 0.7 * H200.gpu.sms


def test_large_batches_get_large_tiles() -> None:
    """With work for every multiprocessor anyway, a thread's operands should be reused more."""
    rule = next(rule for rule in base.rules_for(H200) if rule.takes(WIDE, H200))
    many, few = rule.analytic(WIDE, H200), rule.analytic(POINTWISE, H200)
    assert many.thread_pixels * many.thread_channels > few.thread_pixels * few.thread_channels
    assert many.split < few.split


@pytest.mark.slow
def test_every_kernel_is_ours() -> None:
    """Nothing is left to DLight, and every kernel has its threads (V3-large has all kinds)."""
    compiled = compile_model(imported("mobilenet_v3_large"), H200)
    assert {operator.source for operator in compiled.operators} == {"analytic"}
    for kernel in compiled.kernels.values():
        assert "threadIdx.x" in kernel.script()


@pytest.mark.slow
def test_cuda_graph_is_an_option() -> None:
    model = frontend.load_model("mobilenet_v1", alpha=0.25, resolution=128)
    texts = {
        graph: compile_model(model, H200, cuda_graph=graph).executable.as_text()
        for graph in (True, False)
    }
    assert {graph: "cuda_graph" in text for graph, text in texts.items()} == {
        True: True,
        False: False,
    }
