"""The rule: at most FACTOR times PyTorch float32's own error, per output."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.parity import ParityReport, Sample, Verdict, judge
from tvm_mobilenet.parity.judge import EPSILON, FACTOR, FEW_VALUES, FLOOR_ULPS

TORCH_ERROR = 1e-5
SCORES = np.random.default_rng(0).standard_normal((1, 100))


def verdict(got: np.ndarray, exact: np.ndarray, torch32: np.ndarray | None = None) -> Verdict:
    if torch32 is None:
        torch32 = exact + TORCH_ERROR
    (result,) = judge([{"y": got}], [Sample({}, {"y": torch32}, {"y": exact})]).outputs
    return result


@given(times=st.floats(0, 100), values=st.sampled_from([2, 20, 1000]))
def test_passes_exactly_up_to_the_factor(times: float, values: int) -> None:
    """PyTorch's own error counts 11, 2 and 1.02 times."""
    exact = np.linspace(-1, 1, values).reshape(1, -1)
    result = verdict(exact + times * TORCH_ERROR, exact)
    limit = FACTOR * (1 + FEW_VALUES / values)
    if abs(times - limit) > 1e-6:
        assert result.passed == (times <= limit)
    assert result.ratio == pytest.approx(times * FACTOR / limit, rel=1e-6, abs=1e-9)
    assert result.allowed_max_abs == pytest.approx(limit * TORCH_ERROR, rel=1e-6)
    length = float(np.linalg.norm(exact)) / values**0.5
    assert result.allowed_relative_l2 * length == pytest.approx(limit * TORCH_ERROR, rel=1e-6)
    assert result.max_abs == pytest.approx(times * TORCH_ERROR, rel=1e-6, abs=1e-14)


def test_figures_are_what_they_say() -> None:
    exact = np.array([[3.0, 4.0]])
    result = verdict(exact + np.array([[0.3, -0.4]]), exact)
    assert result.max_abs == pytest.approx(0.4)
    assert result.relative_l2 == pytest.approx(0.1)
    assert result.snr_db == pytest.approx(20)
    assert result.torch_max_abs == pytest.approx(TORCH_ERROR)


def test_one_wrong_value_among_many_fails() -> None:
    exact = np.ones((1, 100_000))
    got = exact.copy()
    got[0, 777] += 10 * TORCH_ERROR
    result = verdict(got, exact)
    assert not result.passed
    assert "10 times" in result.problem


def test_many_slightly_wrong_values_fail() -> None:
    # Each error is below PyTorch's largest, but PyTorch has only one of them.
    exact = np.ones((1, 10_000))
    torch32 = exact.copy()
    torch32[0, 0] += 1e-3
    result = verdict(exact + 5e-4, exact, torch32)
    assert result.max_abs < result.torch_max_abs
    assert not result.passed


def test_floor_lets_roundings_pass_where_pytorch_is_exact() -> None:
    exact = np.full((1, 10), 8.0)
    assert verdict(exact + FLOOR_ULPS * EPSILON * 8.0, exact, exact).passed
    assert not verdict(exact + FLOOR_ULPS * EPSILON * 8.1, exact, exact).passed


def test_all_zero_reference() -> None:
    zero = np.zeros((1, 10))
    same = verdict(zero, zero, zero)
    assert same.passed
    assert same.snr_db == math.inf
    assert not verdict(zero + 1e-30, zero, zero).passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_special_values_must_stand_where_pytorch_has_them(value: float) -> None:
    special = SCORES.copy()
    special[0, 3] = value
    assert verdict(special, special, special).passed
    assert not verdict(special, SCORES).passed
    assert not verdict(SCORES, special, special).passed
    assert "1 values" in verdict(special, SCORES).problem
    assert not verdict(-special, special, special).passed


def test_overflow_of_float32_alone_is_not_held_against_the_compiled_code() -> None:
    torch32 = SCORES.copy()
    torch32[0, 0] = np.inf
    assert verdict(torch32, SCORES, torch32).passed


def test_top_k_counts_rows_whose_margin_exceeds_the_error() -> None:
    exact = np.tile(np.arange(10.0), (3, 1))
    exact[1, 4] = 5 - TORCH_ERROR  # fifth and sixth too near to call
    report = judge([{"y": exact}], [Sample({}, {"y": exact + TORCH_ERROR}, {"y": exact})])
    top1, top5 = report.outputs[0].top
    assert (top1.k, top1.rows, top1.compared, top1.agreed) == (1, 3, 3, 3)
    assert (top5.k, top5.rows, top5.compared, top5.agreed) == (5, 3, 2, 2)
    swapped = exact[:, ::-1].copy()
    assert (
        judge([{"y": swapped}], [Sample({}, {"y": exact + TORCH_ERROR}, {"y": exact})])
        .outputs[0]
        .top[0]
        .agreed
        == 0
    )


def test_pictures_have_no_top_k() -> None:
    exact = np.ones((1, 3, 4, 4))
    assert verdict(exact, exact).top == ()


def test_wrong_shape_fails_and_says_both() -> None:
    result = verdict(np.zeros((1, 3)), np.zeros((1, 4)))
    assert not result.passed
    assert "(1, 3)" in result.problem
    assert "(1, 4)" in result.problem


def test_samples_are_pooled_and_the_worst_output_speaks() -> None:
    references = [
        Sample(
            {}, {"a": SCORES + TORCH_ERROR, "b": SCORES + TORCH_ERROR}, {"a": SCORES, "b": SCORES}
        )
    ] * 2
    good = {"a": SCORES + TORCH_ERROR, "b": SCORES + TORCH_ERROR}
    report = judge([good, good], references)
    assert report.passed
    assert report.samples == 2
    assert report.summary().startswith("parity passed: max error 1e-05")
    report = judge([good, {**good, "b": SCORES + 1}], references)
    assert not report.passed
    assert report.summary().startswith("parity failed: output 'b': error is 9.09e+04 times")


def test_nothing_to_judge_is_an_error() -> None:
    with pytest.raises(InputError):
        judge([], [])


def test_report_is_frozen_and_plain_json() -> None:
    report = judge([{"y": SCORES}], [Sample({}, {"y": SCORES}, {"y": SCORES})])
    with pytest.raises(FrozenInstanceError):
        report.samples = 9  # type: ignore[misc]
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert plain["state"] == "passed"
    assert plain["outputs"][0]["snr_db"] is None
    ranked = np.sort(SCORES[0])[::-1]
    assert plain["outputs"][0]["top"][0] == {
        **{"k": 1, "rows": 1, "compared": 1, "agreed": 1},
        "margin": ranked[0] - ranked[1],
    }


def test_unchecked_report_does_not_pass_and_says_why() -> None:
    report = ParityReport((), 0, not_checked="it is aarch64 code")
    assert not report.passed
    assert report.to_json()["state"] == "not checked"
    assert report.summary() == "parity not checked here: it is aarch64 code"
