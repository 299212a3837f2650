"""Measuring for real: cold buffers, failures, the check of numbers, the choice inside a network."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm

from tvm_mobilenet import targets
from tvm_mobilenet.schedules.spec import RELU, ConvSpec
from tvm_mobilenet.tuning import check, network
from tvm_mobilenet.tuning.check import Job
from tvm_mobilenet.tuning.finalists import Finalists
from tvm_mobilenet.tuning.measure import (
    MOST_COPIES,
    LibraryBuilder,
    Measurer,
    copies_of,
    local_runner,
    rotating,
)
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


def test_winners_that_lose_the_race_are_given_up_by_halves(monkeypatch) -> None:
    """Whatever each gained alone: the network as a whole must not be slower."""
    specs = [dataclasses.replace(SPEC, out_channels=16 * n) for n in (1, 2, 3, 4)]
    tasks = [task_of(spec, TARGET) for spec in specs]
    searches = []
    for task in tasks:
        search = TaskSearch(task, 0)
        from tvm_mobilenet.tuning.measure import Measurement

        search.record(task.baseline, Measurement(1e-5, (1e-5, 1e-5)))
        search.record(task.space[0], Measurement(0.8e-5, (0.8e-5, 0.8e-5)))
        searches.append(search)
    gains = {task.operator: 1e-6 * n for n, task in enumerate(tasks, 1)}
    raced: list[int] = []

    def compiled(imported: Any, target: Any, choice: Any, library: Any) -> network.Network:
        return network.Network(library, tuple(choice), 0.1)

    def in_network(networks: Any, imported: Any, device: Any) -> dict[str, np.ndarray]:
        return {op: np.array([[1e-5] * 24, [1e-5 - gain] * 24]) for op, gain in gains.items()}

    def whole(networks: Any, imported: Any, device: Any) -> np.ndarray:
        raced.append(len(networks[1].operators))
        slow = 1.1 if raced[-1] > 2 else 0.9
        return np.array([[1e-3] * 24, [slow * 1e-3] * 24])

    monkeypatch.setattr(network, "compile_network", compiled)
    monkeypatch.setattr(network, "time_operators", in_network)
    monkeypatch.setattr(network, "time_networks", whole)
    device: Any = SimpleNamespace(errors=lambda jobs: [0.0] * len(jobs))
    quiet: Any = lambda message: None  # noqa: E731
    imported: Any = None
    with Finalists(imported, "net", TARGET, device, quiet, quiet) as finalists:
        settled = finalists.settle(searches)
    assert raced == [4, 2]
    assert set(settled.chosen) == {tasks[2].operator, tasks[3].operator}
    assert settled.race is not None and len(settled.inside) == 4
