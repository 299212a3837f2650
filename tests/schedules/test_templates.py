"""Every template and every rule computes what its spec says, on every x86 vector width."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import tvm

from tvm_mobilenet import targets
from tvm_mobilenet.schedules import base, plain
from tvm_mobilenet.schedules.spec import (
    NONE,
    RELU,
    RELU6,
    Activation,
    ConvSpec,
    DenseSpec,
    ElementwiseSpec,
    LayoutSpec,
    PoolSpec,
    ScaleSpec,
    SeparableSpec,
    from_json,
    to_json,
)
from tvm_mobilenet.schedules.templates import convolution, depthwise, separable
from tvm_mobilenet.schedules.templates.problem import ConvKnobs

HARDSWISH, HARDSIGMOID = Activation("hardswish"), Activation("hardsigmoid")
TARGETS = (
    pytest.param("x86-64-v4", marks=pytest.mark.needs_cpu("avx512f", "avx512vl")),
    pytest.param("x86-64-v3", marks=pytest.mark.needs_cpu("avx2", "fma")),
    "x86-64-v2",
)

# float32 rounding over at most a few hundred products
TOLERANCE = 2e-6

SPECS = [
    ConvSpec(1, 32, 5, 7, 64, activation=RELU),
    ConvSpec(2, 24, 9, 7, 40, activation=RELU6, residual=True),
    ConvSpec(1, 7, 6, 6, 3, activation=HARDSWISH),
    ConvSpec(1, 96, 1, 1, 50, activation=HARDSIGMOID),
    ConvSpec(1, 3, 33, 31, 24, (3, 3), (2, 2), (0, 0, 1, 1), input_layout="nchw"),
    ConvSpec(2, 3, 11, 13, 10, (3, 3), (2, 2), (1, 1, 1, 1), input_layout="nchw"),
    ConvSpec(1, 19, 11, 13, 24, (3, 3), (1, 1), (1, 1, 1, 1), residual=True),
    ConvSpec(1, 19, 11, 13, 33, (5, 3), (1, 2), (2, 1, 2, 0), (2, 1)),
    ConvSpec(1, 4, 3, 3, 4, (3, 3), (1, 1), (3, 3, 3, 3)),  # rows of padding alone
    ConvSpec(1, 40, 17, 15, 40, (3, 3), (1, 1), (1, 1, 1, 1), groups=40, activation=RELU),
    ConvSpec(2, 24, 17, 15, 24, (3, 3), (2, 2), (0, 0, 1, 1), groups=24, residual=True),
    ConvSpec(1, 20, 14, 14, 20, (5, 5), (1, 1), (2, 2, 2, 2), groups=20, activation=HARDSWISH),
    ConvSpec(1, 9, 7, 9, 9, (5, 5), (2, 2), (2, 2, 2, 2), (1, 1), groups=9),
    ConvSpec(1, 8, 9, 9, 8, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), groups=8),
    ConvSpec(1, 6, 5, 5, 6, groups=6, activation=RELU),
    SeparableSpec(
        ConvSpec(1, 40, 13, 15, 40, (3, 3), (1, 1), (1, 1, 1, 1), groups=40, activation=RELU),
        ConvSpec(1, 40, 13, 15, 72, activation=RELU6),
    ),
    SeparableSpec(
        ConvSpec(2, 24, 17, 14, 24, (5, 5), (2, 2), (2, 2, 2, 2), groups=24, activation=HARDSWISH),
        ConvSpec(2, 24, 9, 7, 20, residual=True),
    ),
    DenseSpec(1, 130, 70),
    DenseSpec(3, 64, 33, activation=HARDSWISH),
    PoolSpec(2, 40, 7, 7),
    PoolSpec(1, 5, 3, 4),
    ScaleSpec(2, 40, 5, 3, activation=RELU),
    ElementwiseSpec((2, 777), "add", activation=RELU6),
    ElementwiseSpec((1, 8192 * 3 + 5), "multiply"),
    ElementwiseSpec((3, 5), activation=Activation("sigmoid")),
    LayoutSpec(2, 21, 5, 3, "pack"),
    LayoutSpec(2, 21, 5, 3, "unpack"),
]


def with_lanes(spec, lanes):
    """``spec`` for a vector width, its parts too."""
    if isinstance(spec, SeparableSpec):
        parts = (spec.depthwise, spec.pointwise)
        return SeparableSpec(*(dataclasses.replace(part, lanes=lanes) for part in parts))
    return dataclasses.replace(spec, lanes=lanes)


@pytest.fixture(params=TARGETS)
def target(request):
    return targets.load(request.param)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.kind}-{s}")
def test_rule_computes_its_spec(spec, target, case):
    spec = with_lanes(spec, target.lanes)
    for cores in (1, 4):  # serial and, where the work is worth it, parallel
        result = base.schedule(spec, dataclasses.replace(target, cores=cores))
        error = case(spec).error(result.function, target, result.pack_weight)
        assert error < TOLERANCE, (result.rule, result.knobs)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.kind}-{s}")
def test_plain_function_computes_its_spec(spec, case):
    assert case(spec).error(plain.build(spec), targets.load("x86-64-v2")) < TOLERANCE


@pytest.mark.parametrize(
    ("order", "parallel", "row_tiles", "prefetch"),
    list(itertools.product(("channels", "pixels"), (False, True), (0, 2), (False, True))),
)
def test_convolution_knobs_change_no_number(order, parallel, row_tiles, prefetch, case):
    target = targets.load("x86-64-v3")
    for spec in (
        ConvSpec(2, 24, 9, 7, 40, lanes=8, activation=RELU6, residual=True),
        ConvSpec(1, 11, 9, 7, 20, (3, 3), (2, 2), (1, 1, 1, 1), lanes=8),
    ):
        knobs = ConvKnobs(5, 2, 4, row_tiles, order, parallel, prefetch)
        function = convolution.build(spec, knobs)
        pack = lambda w, _, spec=spec, knobs=knobs: convolution.pack_weight(spec, knobs, w)  # noqa: E731
        assert case(spec).error(function, target, pack) < TOLERANCE


@pytest.mark.parametrize(("parallel", "depth"), [(False, 1), (False, 2), (True, 3)])
def test_convolution_in_passes_changes_no_number(parallel, depth, case):
    target = targets.load("x86-64-v3")
    for spec in (
        ConvSpec(2, 43, 7, 7, 44, (3, 3), padding=(1, 1, 1, 1), lanes=8, residual=True),
        ConvSpec(1, 40, 9, 7, 20, (5, 3), (2, 2), (2, 0, 1, 1), lanes=8, activation=RELU6),
    ):
        knobs = ConvKnobs(5, 2, parallel=parallel, prefetch=True, depth=depth)
        function = convolution.build(spec, knobs)
        pack = lambda w, _, spec=spec, knobs=knobs: convolution.pack_weight(spec, knobs, w)  # noqa: E731
        assert case(spec).error(function, target, pack) < TOLERANCE


@pytest.mark.parametrize("rows", [0, 1, 2, 5])
@pytest.mark.parametrize("pixels", [1, 3, 9])
def test_depthwise_knobs_change_no_number(pixels, rows, case):
    target = targets.load("x86-64-v3")
    spec = ConvSpec(2, 20, 9, 7, 20, (3, 3), (1, 1), (1, 1, 1, 1), groups=20, lanes=8)
    knobs = depthwise.DepthwiseKnobs(pixels, rows)
    function = depthwise.build(spec, knobs)
    pack = lambda w, _: depthwise.pack_weight(spec, knobs, w)  # noqa: E731
    assert case(spec).error(function, target, pack) < TOLERANCE


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 4, 9])
def test_strips_change_no_number(rows, parallel, case):
    target = targets.load("x86-64-v3")
    spec = SeparableSpec(
        ConvSpec(2, 20, 9, 7, 20, (3, 3), (1, 1), (1, 1, 1, 1), groups=20, lanes=8),
        ConvSpec(2, 20, 9, 7, 28, lanes=8, activation=RELU, residual=True),
    )
    knobs = separable.SeparableKnobs(rows, 4, 5, 2, 4, parallel=parallel)
    function = separable.build(spec, knobs)
    pack = lambda w, i: separable.pack_weight(spec, knobs, w, i)  # noqa: E731
    assert case(spec).error(function, target, pack) < TOLERANCE


@pytest.mark.parametrize("name", ["x86-64-v4", "x86-64-v3", "x86-64-v2"])
def test_every_point_of_the_search_space_builds(name):
    target = targets.load(name)
    spec = ConvSpec(1, 16, 4, 4, 16, lanes=target.lanes)
    for rule in base.rules_for(target):
        if rule.takes(spec, target):
            space = list(rule.space(spec, target))
            assert len(space) > 10
            assert len(set(space)) == len(space)
            for knobs in space[:: len(space) // 10]:
                rule.build(spec, knobs)


@pytest.mark.parametrize("activation", [NONE, RELU, RELU6, HARDSWISH, HARDSIGMOID])
def test_nan_and_infinity_pass_through_activations(activation, case):
    """As in PyTorch: a NaN stays a NaN, infinities obey the bounds."""
    target = targets.load("x86-64-v3")
    example = case(ElementwiseSpec((1, 24), lanes=8, activation=activation))
    x = np.zeros((1, 24), "float32")
    x[0, :3] = np.nan, np.inf, -np.inf
    example.inputs = [x]
    expected = example.activated(torch.tensor(x), activation).numpy()
    result = base.schedule(example.spec, target)
    got = _run(result.function, target, x)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    np.testing.assert_allclose(got, expected, equal_nan=True)


def _run(function, target, x):
    named = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    output = tvm.runtime.tensor(np.empty_like(x))
    tvm.compile(named, target=target.tvm_target()).mod["main"](tvm.runtime.tensor(x), output)
    return output.numpy()


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.kind}-{s}")
def test_spec_survives_json(spec):
    assert from_json(to_json(spec)) == spec


@pytest.mark.parametrize("text", ['{"spec": "NoSpec"}', '{"spec": "PoolSpec", "colour": 1}', "[]"])
def test_json_of_something_else_is_refused(text):
    with pytest.raises(ValueError, match="not a"):
        from_json(text)


def test_a_record_wins_over_the_analytic_choice(case):
    """And its numbers are the same; a changed kernel or no record gives the analytic choice."""
    target = targets.load("x86-64-v3")
    spec = ConvSpec(1, 24, 5, 7, 40, lanes=target.lanes, activation=RELU)
    knobs = {"pixels": 3, "vectors": 1, "unroll": 2, "row_tiles": 2, "order": "pixels"}
    rule = next(r for r in base.rules_for(target) if r.takes(spec, target))
    function = rule.build(spec, rule.knobs_class(**knobs))
    record = base.Recorded(knobs, base.fingerprint(function))
    tuned = base.schedule(spec, target, lambda s, rule: record if rule == "pointwise" else None)
    assert (tuned.source, tuned.note) == ("tuned", "")
    assert knobs.items() <= tuned.knobs.items()
    assert case(spec).error(tuned.function, target, tuned.pack_weight) < TOLERANCE
    assert base.schedule(spec, target, lambda s, rule: None).source == "analytic"
    stale = base.schedule(spec, target, lambda s, rule: base.Recorded(knobs, "0" * 16))
    assert (stale.source, stale.knobs) == ("analytic", base.schedule(spec, target).knobs)
    assert "kernel has changed" in stale.note
    unknown = base.schedule(spec, target, lambda s, rule: base.Recorded({"speed": 9}, "0" * 16))
    assert unknown.source == "analytic" and "speed" in unknown.note
