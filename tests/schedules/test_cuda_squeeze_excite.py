"""Squeeze-excite in fewer kernels: every number by emulation, in every precision.

CI takes edge shapes and a sample of the networks; all of them with ``ALL_CUDA_SHAPES=1``.
"""

from __future__ import annotations

import os

import pytest

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.compiler_pass.join_operators import join_operators
from tvm_mobilenet.compiler_pass.lower_operators import lower_operators
from tvm_mobilenet.compiler_pass.schedule_operators import spec_of
from tvm_mobilenet.parity.cuda_emulate import Emulator
from tvm_mobilenet.parity.cuda_launches import lower
from tvm_mobilenet.schedules import base
from tvm_mobilenet.schedules.spec import (
    PRECISIONS,
    RELU,
    Activation,
    ConvSpec,
    DenseSpec,
    DepthwiseSqueezeSpec,
    ExciteSpec,
    PoolSpec,
    ScaledSpec,
    SqueezeSpec,
)

TARGET = targets.load("cuda-sm90")
TOLERANCE = 1e-5  # of the largest value: float32 sums
EVERYTHING = bool(os.environ.get("ALL_CUDA_SHAPES"))
NETWORKS = ("mobilenet_v3_large", "mobilenet_v3_small")
EVERY_CASE = [(name, batch, p) for name in NETWORKS for batch in (1, 4) for p in PRECISIONS]
HARDSIGMOID = Activation("hardsigmoid")
OURS = (ScaledSpec, DepthwiseSqueezeSpec, ExciteSpec)  # of the networks


def assert_right(rounded_case, specs, knobs=lambda rule, spec: rule.analytic(spec, TARGET)):
    scheduled = []
    for spec in specs:
        rule = next(rule for rule in base.rules_for(TARGET) if rule.takes(spec, TARGET))
        scheduled.append((spec, base.scheduled(rule, spec, knobs(rule, spec), "analytic")))
    code = lower({f"k{i}": result.function for i, (_, result) in enumerate(scheduled)}, TARGET)
    with Emulator(code.source) as emulator:
        errors = {
            f"{spec}, {result.rule} {result.knobs}": rounded_case(spec).kernel_error(
                emulator, code.functions[f"k{i}"], result.pack_weight
            )
            for i, (spec, result) in enumerate(scheduled)
        }
    assert not {name: error for name, error in errors.items() if not error < TOLERANCE}


def gate(batch, channels, height, width, hidden, group, precision, chunks=1):
    """Both kernels, and the first with a depthwise convolution before."""
    first = DenseSpec(batch, channels, hidden, 4, RELU, precision)
    second = DenseSpec(batch, hidden, channels, 4, HARDSIGMOID, precision)
    pool = PoolSpec(batch, channels, height, width, 4, precision)
    squeeze = SqueezeSpec(pool, first, group, chunks)
    stored = "float16" if precision == "float16" else "float32"
    depthwise = ConvSpec(
        *(batch, channels, 2 * height, width + 1, channels, (3, 3), (2, 1), (0, 1, 1, 0)),
        groups=channels,
        lanes=4,
        activation=Activation("hardswish"),
        precision=stored,
    )
    joint = DepthwiseSqueezeSpec(depthwise, squeeze)
    return [squeeze, joint, ExciteSpec(first, second, squeeze.parts)]


@pytest.mark.parametrize("precision", ["float16", pytest.param("float32", marks=pytest.mark.slow)])
def test_gates(precision, rounded_case):
    """Ragged channels, groups and chunks, a hidden layer of no whole float4, batch 3."""
    assert_right(rounded_case, gate(3, 22, 5, 7, 9, 8, precision, chunks=4))


def test_what_costs_more_than_a_launch_stays_apart():
    """V3's head, whose every block would read a megabyte of shares; large batches; CPUs."""

    def head(batch, hidden, target=TARGET):
        first, second = DenseSpec(batch, 960, hidden, 4), DenseSpec(batch, hidden, 1000, 4)
        return base.gate(None, PoolSpec(batch, 960, 7, 7, 4), first, second, target)

    squeeze, excite = head(1, 240)
    assert excite.parts == squeeze.parts > 1
    assert head(1, 1280) is None
    assert head(32, 240) is None
    assert head(1, 240, targets.load("x86-64-v4")) is None


@pytest.mark.slow
def test_wide_gates(rounded_case):
    """More hidden values than threads, more threads than shares, and the other way round."""
    assert_right(rounded_case, gate(1, 18, 19, 17, 300, 4, "float32"))
    assert_right(rounded_case, gate(2, 64, 3, 3, 24, 32, "float32", chunks=2))
    assert_right(rounded_case, gate(1, 40, 9, 9, 8, 4, "float16", chunks=8))


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, -1])
def test_knobs_change_no_number(which, rounded_case):
    """First and last of a rule's search space."""
    specs = gate(1, 40, 9, 9, 24, 16, "float16")
    assert_right(rounded_case, specs, lambda rule, spec: list(rule.space(spec, TARGET))[which])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "batch", "precision"),
    EVERY_CASE if EVERYTHING else [("mobilenet_v3_small", 4, "float16")],
)
def test_layer_shapes(model, batch, precision, rounded_case):
    """As the networks have them; CI of up to 4 million mult-adds."""
    target = targets.at_precision(TARGET, precision)
    imported = frontend.load_model(model, batch=batch)
    joined, sites = join_operators(*lower_operators(imported.mod, 4, precision), target)
    specs = dict.fromkeys(spec_of(joined[name]) for name, _ in sites)
    ours = [s for s in specs if isinstance(s, OURS)]
    if not EVERYTHING:
        ours = [spec for spec in ours if spec.mult_adds <= 4e6]
    assert {type(spec) for spec in ours} == set(OURS)
    assert_right(rounded_case, ours)
