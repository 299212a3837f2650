"""Every CUDA kernel computes what its spec says and keeps CUDA's rules, run on the CPU.

CI takes edge shapes and a sample of the networks. All layer shapes of all networks (some 10 minutes
of one core): ``ALL_CUDA_SHAPES=1 python -m pytest tests/schedules/test_cuda_numerics.py``.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re

import numpy as np
import pytest

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.compiler_pass.join_operators import join_operators
from tvm_mobilenet.compiler_pass.lower_operators import lower_operators
from tvm_mobilenet.compiler_pass.pipeline import compile_model
from tvm_mobilenet.compiler_pass.schedule_operators import spec_of
from tvm_mobilenet.parity import samples
from tvm_mobilenet.parity.cuda_emulate import Emulator, KernelError, run_function
from tvm_mobilenet.parity.cuda_launches import Buffer, lower
from tvm_mobilenet.parity.cuda_network import NetworkEmulator, prove
from tvm_mobilenet.parity.reference import evaluate
from tvm_mobilenet.schedules import base
from tvm_mobilenet.schedules.spec import (
    RELU,
    RELU6,
    Activation,
    ConvSpec,
    DenseSpec,
    ElementwiseSpec,
    LayoutSpec,
    PoolSpec,
    ScaledSpec,
    ScaleSpec,
    SeparableSpec,
)

TARGET = targets.load("cuda-sm90")
LANES = base.activation_lanes(TARGET)
TOLERANCE = 2e-6  # of the sums' size; float32 rounding over at most some thousand products

HARDSWISH, HARDSIGMOID = Activation("hardswish"), Activation("hardsigmoid")
SAME, HALF = (1, 1, 1, 1), (0, 0, 1, 1)


def depthwise(batch, channels, height, width, kernel, stride=(1, 1), padding=SAME, **others):
    """A depthwise convolution."""
    return ConvSpec(
        batch, channels, height, width, channels, kernel, stride, padding, groups=channels, **others
    )


# Beside the networks' shapes: ragged channels, odd sizes, lopsided padding, dilation, batch 3.
FEW_EDGES = [
    ConvSpec(3, 21, 5, 7, 19, activation=RELU6, residual=True),
    ConvSpec(3, 3, 17, 15, 10, (3, 3), (2, 2), HALF, input_layout="nchw", activation=RELU),
    ConvSpec(1, 7, 9, 11, 13, (5, 3), (1, 2), (2, 1, 2, 0), (2, 1)),
    depthwise(3, 18, 9, 7, (3, 3), (2, 2), HALF, activation=HARDSWISH, residual=True),
    DenseSpec(3, 130, 71, activation=HARDSWISH),
    PoolSpec(3, 13, 5, 3),
    ScaleSpec(3, 10, 5, 3, activation=RELU),
    LayoutSpec(3, 21, 5, 3, "unpack"),
    ScaledSpec(
        ScaleSpec(3, 22, 5, 3, activation=HARDSIGMOID), ConvSpec(3, 22, 5, 3, 18, residual=True)
    ),
]
MORE_EDGES = [
    ConvSpec(1, 5, 3, 3, 2),
    ConvSpec(1, 30, 13, 13, 50, activation=HARDSIGMOID),
    ConvSpec(2, 12, 1, 1, 1),
    ConvSpec(1, 4, 3, 3, 4, (3, 3), (1, 1), (3, 3, 3, 3)),  # rows of padding alone
    ConvSpec(1, 19, 11, 13, 24, (3, 3), (1, 1), SAME, residual=True),
    ConvSpec(1, 1, 8, 9, 3, (7, 7), (2, 2), (3, 3, 3, 3), input_layout="nchw"),
    depthwise(1, 8, 9, 9, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
    depthwise(3, 9, 7, 9, (5, 5), (2, 2), (2, 2, 2, 2), activation=RELU6),
    depthwise(1, 6, 5, 5, (1, 1), padding=(0, 0, 0, 0)),
    depthwise(2, 5, 11, 3, (3, 3), (2, 1), (0, 2, 1, 0), residual=True),
    DenseSpec(1, 7, 3),
    DenseSpec(17, 64, 1000),
    PoolSpec(1, 4, 1, 1),
    PoolSpec(1, 5, 17, 16),
    ScaleSpec(1, 4, 3, 3),
    ElementwiseSpec((2, 777), "add", activation=RELU6),
    ElementwiseSpec((1, 24581), "multiply"),
    ElementwiseSpec((3, 5), activation=Activation("sigmoid")),
    LayoutSpec(2, 21, 5, 3, "pack"),
    LayoutSpec(1, 8, 7, 7, "pack"),
]
PAIRS = [
    SeparableSpec(
        depthwise(1, 40, 13, 15, (3, 3), activation=RELU),
        ConvSpec(1, 40, 13, 15, 72, activation=RELU6),
    ),
    SeparableSpec(
        depthwise(3, 22, 17, 14, (5, 5), (2, 2), (2, 2, 2, 2), activation=HARDSWISH),
        ConvSpec(3, 22, 9, 7, 18, residual=True),
    ),
    SeparableSpec(depthwise(1, 9, 8, 6, (3, 3), (2, 2), HALF), ConvSpec(1, 9, 4, 3, 33)),
]

NETWORKS = [
    ("mobilenet_v1", 0.25, 128),
    ("mobilenet_v1", 0.5, 160),
    ("mobilenet_v1", 0.75, 192),
    ("mobilenet_v1", 1.0, 224),
    ("mobilenet_v2", 1.0, 224),
    ("mobilenet_v3_large", 1.0, 224),
]
EVERY_CASE = [(*network, batch) for network in NETWORKS for batch in (1, 4)]
CASE = ("model", "alpha", "resolution", "batch")


def asked_for(sample):
    """Cases of the networks: all where the environment asks for them, else a sample."""
    return EVERY_CASE if os.environ.get("ALL_CUDA_SHAPES") else sample


def with_lanes(spec):
    """`spec` in the GPU's layout, its parts too."""
    parts = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    inner = {name: with_lanes(part) for name, part in parts.items() if hasattr(part, "lanes")}
    return dataclasses.replace(spec, **(inner or {"lanes": LANES}))


def errors(specs, case):
    """Each spec's largest error relative to its sums' size; KernelError names the kernel."""
    scheduled = {f"{spec.kind.replace('-', '_')}_{i}": s for i, (spec, s) in enumerate(specs)}
    lowered = lower({name: s.function for name, s in scheduled.items()}, TARGET)
    found = {}
    with Emulator(lowered.source) as emulator:
        for (spec, result), name in zip(specs, scheduled, strict=True):
            found[f"{name}: {spec}, {result.rule} {result.knobs}"] = error(
                emulator, lowered.functions[name], case(spec), result.pack_weight
            )
    return found


def error(emulator, code, example, pack_weight):
    inputs = list(example.inputs)
    if pack_weight is not None:
        for i in example.spec.weight_arguments:
            inputs[i] = pack_weight(inputs[i], i)
    expected = [e for e in (example.beside, example.expected) if e is not None]
    outputs = [Buffer(e.shape, "float32") for e in expected]
    *others, got = run_function(emulator, code, inputs, outputs)
    for other, right in zip(others, expected[:-1], strict=True):
        assert np.abs(other - right).max() < TOLERANCE * np.abs(right).max() * 10
    # a sum of K products of unit variance is √K large, whatever ReLU6 leaves of it
    sums = math.sqrt(getattr(example.spec, "mult_adds", 0) / example.expected.size)
    largest = max(float(np.abs(example.expected).max()), sums)
    return float(np.abs(got - example.expected).max() / largest)


def assert_right(specs, case):
    specs = [with_lanes(spec) for spec in specs]
    found = errors([(spec, base.schedule(spec, TARGET)) for spec in specs], case)
    wrong = {name: value for name, value in found.items() if not value < TOLERANCE}
    assert not wrong


def test_edge_shapes(case):
    assert_right(FEW_EDGES, case)


@pytest.mark.slow
def test_more_edge_shapes(case):
    assert_right([*MORE_EDGES, *PAIRS], case)


@pytest.mark.slow
def test_knobs_change_no_number(case):
    """First, middle and last of a rule's search space."""
    chosen = []
    for spec in map(with_lanes, (FEW_EDGES[0], FEW_EDGES[3], PAIRS[1])):
        rule = next(rule for rule in base.rules_for(TARGET) if rule.takes(spec, TARGET))
        space = list(rule.space(spec, TARGET))
        for knobs in dict.fromkeys((space[0], space[len(space) // 2], space[-1])):
            chosen.append((spec, base.scheduled(rule, spec, knobs, "tuned")))
    assert len(chosen) > 6
    wrong = {name: value for name, value in errors(chosen, case).items() if not value < TOLERANCE}
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    CASE, asked_for([("mobilenet_v1", 0.25, 128, 4), ("mobilenet_v3_large", 1.0, 224, 1)])
)
def test_all_layer_shapes(model, alpha, resolution, batch, case):
    """As the network has them: by themselves, and joined where it pays."""
    imported = frontend.load_model(model, alpha=alpha, resolution=resolution, batch=batch)
    apart, call_sites = lower_operators(imported.mod, LANES)
    joined, _ = join_operators(apart, call_sites, TARGET)
    functions = [*apart.functions.values(), *joined.functions.values()]
    specs = dict.fromkeys(spec for f in functions if (spec := spec_of(f)) is not None)
    assert len(specs) > 15
    assert_right(specs, case)


@pytest.mark.slow
@pytest.mark.parametrize(CASE, asked_for([("mobilenet_v1", 0.25, 128, 1)]))
def test_whole_network(model, alpha, resolution, batch):
    imported = frontend.load_model(model, alpha=alpha, resolution=resolution, batch=batch)
    report = prove(compile_model(imported, TARGET), evaluate(imported, samples(imported, count=1)))
    assert report.passed, report.summary()
    assert "emulation" in report.summary()


POINTWISE = with_lanes(ConvSpec(1, 64, 5, 7, 40, activation=RELU))


def test_each_barrier_is_needed_and_its_absence_is_caught(case):
    result = base.schedule(POINTWISE, TARGET)
    lowered = lower({"pointwise": result.function}, TARGET)
    barriers = [match.span() for match in re.finditer(r"__syncthreads\(\);", lowered.source)]
    assert barriers
    for start, end in barriers:
        without = lowered.source[:start] + lowered.source[end:]
        with Emulator(without) as emulator, pytest.raises(KernelError, match="pointwise_kernel"):
            error(emulator, lowered.functions["pointwise"], case(POINTWISE), result.pack_weight)


def test_wrong_numbers_are_seen(case):
    """A kernel of another activation, and weights in another order."""
    other = dataclasses.replace(POINTWISE, activation=Activation())
    result = base.schedule(POINTWISE, TARGET)
    lowered = lower({"pointwise": result.function}, TARGET)
    with Emulator(lowered.source) as emulator:
        code = lowered.functions["pointwise"]
        assert error(emulator, code, case(POINTWISE), result.pack_weight) < TOLERANCE
        assert error(emulator, code, case(other), result.pack_weight) > 0.1
        packed = lambda weight, i: result.pack_weight(weight[::-1], i)  # noqa: E731
        assert error(emulator, code, case(POINTWISE), packed) > 0.1


@pytest.mark.slow
def test_a_wrong_memory_plan_is_refused():
    """Every tensor of the network in the same place: the first call overwrites its argument."""
    from tvm_mobilenet.deploy.network import plan

    imported = frontend.load_model("mobilenet_v1", alpha=0.25, resolution=32)
    compiled = compile_model(imported, TARGET)
    network = plan(compiled.planned)
    for i, tensor in enumerate(network.tensors):
        if tensor.place == "Arena":
            network.tensors[i] = dataclasses.replace(tensor, offset=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tvm_mobilenet.deploy.network.plan", lambda main: network)
        with pytest.raises(ValueError, match="stem_0 write over what it reads"):
            NetworkEmulator(compiled)
