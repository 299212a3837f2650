from __future__ import annotations

import gc
import weakref
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from tvm_mobilenet.profiling import worker
from tvm_mobilenet.profiling.contestants import Contestant


class _Looker(Contestant):
    """A runtime that keeps no reference to its input, and counts its runs."""

    name = "looker"
    needs = ("numpy",)
    distribution = "numpy"
    settings = "none"

    def load(self, artifact: Path, threads: int) -> None:
        self.runs = 0

    def feed(self, inputs: list[np.ndarray]) -> None:
        self.seen = [weakref.ref(x) for x in inputs]

    def run(self) -> None:
        self.runs += 1

    def outputs(self) -> list[np.ndarray]:
        return [np.array(self.runs)]


@pytest.fixture
def looker(monkeypatch: pytest.MonkeyPatch) -> Generator[tuple[worker.Worker, _Looker]]:
    contestant = _Looker()
    monkeypatch.setattr(worker, "contestant", lambda name: lambda: contestant)
    opened = worker.Worker()
    opened.open("looker", Path("none"), 1, [np.ones(3, np.float32)])
    yield opened, contestant
    gc.enable()  # a worker turns it off for its whole life


def test_inputs_outlive_the_call_that_brought_them(looker: tuple[worker.Worker, _Looker]) -> None:
    _, contestant = looker
    gc.collect()

    [reference] = contestant.seen
    assert reference() is not None


def test_outputs_are_those_of_a_second_run(looker: tuple[worker.Worker, _Looker]) -> None:
    opened, _ = looker

    assert opened.outputs() == [2]


def test_a_block_warms_up_then_measures(looker: tuple[worker.Worker, _Looker]) -> None:
    opened, contestant = looker

    block = opened.block(warm_up=3, runs=5)

    assert contestant.runs == 8
    assert len(block.nanoseconds) == 5
    assert all(time > 0 for time in block.nanoseconds)
    assert block.preempted >= 0
