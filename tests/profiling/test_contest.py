from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvm_mobilenet import targets
from tvm_mobilenet.profiling import contest, peak
from tvm_mobilenet.profiling.contest import Entry, LeftOut
from tvm_mobilenet.profiling.contestants import PEAK
from tvm_mobilenet.profiling.process import ContestantError
from tvm_mobilenet.profiling.subject import Prepared

CPUS = (min(os.sched_getaffinity(0)),)


def test_relative_error_is_of_the_worst_output() -> None:
    expected = [np.array([3.0, 4.0]), np.array([[1.0, 0.0]])]
    close = [np.array([3.0, 4.0 + 5e-5]), np.array([1.0, 0.0])]  # the shape of ncnn: no batch

    assert contest.relative_error(close, expected) == pytest.approx(1e-5)
    with pytest.raises(contest.DifferentError, match=r"differ from PyTorch's by 1\.0e-03"):
        contest.relative_error([np.array([3.0, 4.005]), expected[1]], expected)
    with pytest.raises(contest.DifferentError, match="by nan"):
        contest.relative_error([np.array([np.nan, 4.0]), expected[1]], expected)
    with pytest.raises(contest.DifferentError, match="1 outputs where PyTorch has 2"):
        contest.relative_error(expected[:1], expected)
    with pytest.raises(contest.DifferentError, match=r"\(3,\) where PyTorch's is \(2,\)"):
        contest.relative_error([np.zeros(3), expected[1]], expected)


def test_who_fails_is_left_out_with_the_reason_and_the_rest_go_on(
    tiny: Prepared, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    here = targets.detect()
    said: list[str] = []

    outcome = contest.hold(
        [
            Entry("onnxruntime", broken, tiny.inputs, tiny.expected),
            Entry(PEAK, peak.build(here, 1, tmp_path / "peak.so"), peak.arguments(here, 1), None),
        ],
        CPUS,
        runs=1,
        seed=0,
        logs=tmp_path,
        progress=said.append,
    )

    assert list(outcome.timings) == [PEAK]
    [left] = outcome.left_out
    assert (left.contestant, left.kind) == ("onnxruntime", "failed")
    assert outcome.order == ((PEAK,),) * contest.ROUNDS
    assert said == ["loading onnxruntime", f"loading {PEAK}", f"timing {PEAK}"]


class _Fake:
    """A player that notes its turns, and fails in one of them."""

    def __init__(self, name: str, turns: list[str], fails_at: int | None = None) -> None:
        self.name, self.turns, self.fails_at = name, turns, fails_at
        self.process = self
        self.closed = False

    def play(self) -> None:
        self.turns.append(self.name)
        if self.turns.count(self.name) - 1 == self.fails_at:
            raise ContestantError("it died")

    def close(self) -> None:
        self.closed = True


def _order(seed: int, fails_at: int | None = None) -> tuple[Any, list[str], list[LeftOut]]:
    turns: list[str] = []
    left: list[LeftOut] = []
    players: dict[str, Any] = {name: _Fake(name, turns) for name in ("a", "b")}
    players["c"] = _Fake("c", turns, fails_at)
    return contest._take_turns(players, left, seed), turns, left


def test_everyone_is_timed_once_a_round_in_the_order_that_is_reported() -> None:
    order, turns, left = _order(seed=0)

    assert [name for names in order for name in names] == turns
    assert {tuple(sorted(names)) for names in order} == {("a", "b", "c")}
    assert len(set(order)) > 3
    assert left == []


def test_the_seed_decides_the_order() -> None:
    assert _order(0)[0] == _order(0)[0] != _order(1)[0]


def test_who_dies_in_a_round_takes_no_further_turn() -> None:
    order, turns, left = _order(seed=0, fails_at=4)

    assert turns.count("c") == 5
    assert turns.count("a") == turns.count("b") == len(order) == contest.ROUNDS
    assert left == [LeftOut("c", "failed", "it died")]
