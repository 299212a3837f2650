"""Measuring for real: cold buffers, failures, the check of numbers, the choice inside a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm

from tvm_mobilenet import targets
from tvm_mobilenet.schedules.spec import RELU, ConvSpec
from tvm_mobilenet.tuning import check, network
from tvm_mobilenet.tuning.check import Job
from tvm_mobilenet.tuning.finalists import Finalists, Settled
from tvm_mobilenet.tuning.measure import (
    MOST_COPIES,
    LibraryBuilder,
    Measurement,
    Measurer,
    copies_of,
    local_runner,
    rotating,
)
from tvm_mobilenet.tuning.network import Choice
from tvm_mobilenet.tuning.search import TaskSearch
from tvm_mobilenet.tuning.task import task_of

TARGET = dataclasses.replace(targets.load("native"), cores=1)
SPEC = ConvSpec(1, 16, 6, 6, 24, lanes=TARGET.lanes, activation=RELU)
TASK = task_of(SPEC, TARGET)


def kernel(candidate: Any) -> Any:
    return candidate.rule.build(SPEC, candidate.knobs)


def test_each_copy_of_the_buffers_is_computed() -> None:
    """The function that is measured runs the kernel on every set of buffers, and nothing else."""
    function = kernel(TASK.baseline)
    module = rotating(function, 3)
    compiled = tvm.compile(module, target=TARGET.tvm_target()).mod
    alone = tvm.compile(
        tvm.IRModule({"main": function.with_attr("global_symbol", "main")}),
        target=TARGET.tvm_target(),
    ).mod
    random = np.random.default_rng(0)
    sizes = [int(p.ty.shape[0]) for p in module["main"].params]
    whole = [tvm.runtime.tensor(random.standard_normal(n).astype("float32")) for n in sizes]
    compiled["main"](*whole)
    shapes = [[int(n) for n in p.ty.shape] for p in function.params]
    for copy in range(3):
        parts = []
        for tensor, size, shape in zip(whole, sizes, shapes, strict=True):
            start = copy * size // 3
            part = tensor.numpy()[start : start + int(np.prod(shape))].reshape(shape)
            parts.append(part.copy())
        output = tvm.runtime.tensor(np.zeros(shapes[-1], "float32"))
        alone["main"](*map(tvm.runtime.tensor, parts[:-1]), output)
        np.testing.assert_array_equal(output.numpy(), parts[-1])


def test_the_copies_are_larger_than_l2_together() -> None:
    function = kernel(TASK.baseline)
    size = sum(4 * int(np.prod([int(n) for n in p.ty.shape])) for p in function.params)
    small = dataclasses.replace(TARGET, l2_kib=64)
    assert copies_of(function, small) * size >= 2 * 64 * 1024
    assert copies_of(function, dataclasses.replace(TARGET, l2_kib=1)) == 2
    assert copies_of(function, dataclasses.replace(TARGET, l2_kib=10**6)) == MOST_COPIES


def test_wrong_numbers_are_found() -> None:
    good = Job(TASK.operator, TASK.baseline.rule.name, TASK.baseline.knobs, TARGET)
    assert check.error_here(good) < check.TOLERANCE
    device: Any = SimpleNamespace(errors=lambda jobs: [1e-7, 0.5, float("nan"), "it crashed"])
    verdicts = check.faults([good] * 4, device)
    assert verdicts[0] is None
    assert all(verdicts[1:]) and "5.0e-01" in str(verdicts[1]) and "it crashed" in str(verdicts[3])


@pytest.mark.slow
def test_a_candidate_that_crashes_or_hangs_costs_itself() -> None:
    """And a build that fails; the good ones before and after are measured."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script import builder as T

    def calling(name: str, *arguments: Any) -> Any:
        with IRBuilder() as ib:
            with T.prim_func(s_tir=True):
                T.func_attr({"tirx.noalias": True})
                T.arg("y", T.buffer((16,), "float32"))
                with T.sblock("root"):
                    T.reads()
                    T.writes()
                    T.evaluate(tvm.tirx.call_extern("int32", name, *arguments))
            return ib.get()

    good = kernel(TASK.baseline)
    wanted = [good, calling("abort"), calling("pause"), calling("no_such_function"), good]
    measurer = Measurer(LibraryBuilder(1), local_runner([0], timeout=6), TARGET)
    try:
        first, crashed, hung, unknown, last = measurer.measure(wanted)
    finally:
        measurer.close()
    assert first.seconds and last.seconds and first.error is last.error is None
    assert 0 < first.spread[0] <= first.seconds <= first.spread[1] < 1
    for failed in (crashed, hung, unknown):
        assert failed.seconds is None and failed.error
    assert "Timeout" in hung.error or "timeout" in hung.error.lower()


def test_only_what_is_faster_outside_noise_is_chosen() -> None:
    random = np.random.default_rng(0)

    def times(*medians: float) -> np.ndarray:
        return np.array([m * random.normal(1, 0.02, 24) for m in medians])

    assert network.choose(times(1.0, 0.8, 0.9)) == 1
    assert network.choose(times(1.0, 1.2, 0.7)) == 2
    assert network.choose(times(1.0, 1.1)) == 0
    assert network.choose(np.ones((3, 24))) == 0


@pytest.fixture
def settle(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settled]:
    """`Finalists.settle` on networks that are not compiled: what they take is given.

    gains: of every operator's candidates inside the network. whole: of a choice.
    """

    def settled(
        searches: Sequence[TaskSearch],
        gains: Mapping[str, Sequence[float]],
        whole: Callable[[Choice], float],
        recorded: Choice,
    ) -> Settled:
        def compiled(imported: Any, target: Any, choice: Choice, library: Any) -> Any:
            return SimpleNamespace(choice=dict(choice))

        def in_network(networks: Any, imported: Any, device: Any) -> dict[str, np.ndarray]:
            return {
                op: np.array([[1e-5 - gain] * 24 for gain in (0.0, *each)])
                for op, each in gains.items()
            }

        def raced(networks: Any, imported: Any, device: Any) -> np.ndarray:
            return np.array([[whole(each.choice)] * 24 for each in networks])

        monkeypatch.setattr(network, "compile_network", compiled)
        monkeypatch.setattr(network, "time_operators", in_network)
        monkeypatch.setattr(network, "time_networks", raced)
        device: Any = SimpleNamespace(errors=lambda jobs: [0.0] * len(jobs))
        quiet: Any = lambda message: None  # noqa: E731
        imported: Any = None
        with Finalists(imported, "net", TARGET, device, quiet, quiet) as finalists:
            return finalists.settle(searches, recorded)

    return settled


def searched(spec: ConvSpec, *seconds: float) -> TaskSearch:
    """A search that measured the analytic choice in 10 us, and candidates."""
    search = TaskSearch(task_of(spec, TARGET), 0)
    search.record(search.task.baseline, Measurement(1e-5, (1e-5, 1e-5)))
    for candidate, each in zip(search.task.space, seconds, strict=False):
        search.record(candidate, Measurement(each, (each, each)))
    return search


def test_winners_that_lose_the_race_are_given_up_by_halves(settle) -> None:
    """Whatever each gained alone: the network as a whole must not be slower."""
    specs = [dataclasses.replace(SPEC, out_channels=16 * n) for n in (1, 2, 3, 4)]
    searches = [searched(spec, 0.8e-5) for spec in specs]
    operators = [search.task.operator for search in searches]
    gains = {operator: [1e-6 * n] for n, operator in enumerate(operators, 1)}
    raced: list[int] = []

    def whole(choice: Choice) -> float:
        raced.append(len(choice))
        return {0: 1e-3, 4: 1.1e-3, 2: 0.9e-3}[len(choice)]

    settled = settle(searches, gains, whole, {})
    assert raced == [0, 4, 0, 2]
    assert set(settled.chosen) == set(operators[2:])
    assert settled.race is not None and len(settled.inside) == 4
    gained = [each.baseline_seconds - each.seconds for each in settled.inside.values()]
    np.testing.assert_allclose(gained, [0, 0, 3e-6, 4e-6], atol=1e-12)


@pytest.mark.parametrize("better", ["earlier", "now"])
def test_a_further_run_does_not_make_the_network_slower(settle, better: str) -> None:
    """What won before is a finalist though slower alone, and is kept if the whole is faster so."""
    search = searched(SPEC, 0.7e-5, 0.75e-5, 0.8e-5, 0.99e-5)
    operator, (*_, earlier) = search.task.operator, list(search.tried.values())[:5]
    gains = {operator: [4e-6, 1e-6, 1e-6, 3e-6]}

    def whole(choice: Choice) -> float:
        if not choice:
            return 1e-3
        return 0.9e-3 if (choice[operator] == earlier[0]) == (better == "earlier") else 0.95e-3

    settled = settle([search], gains, whole, {operator: earlier[0]})
    place = 3 if better == "earlier" else 0
    assert settled.chosen == {operator: search.task.space[place]}
    assert settled.inside[operator].seconds == pytest.approx(1e-5 - gains[operator][place])
