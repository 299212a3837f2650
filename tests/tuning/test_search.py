"""Searching with invented times: order, seeds, resuming, budgets, failures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tvm_mobilenet import targets
from tvm_mobilenet.errors import NothingMeasuredError
from tvm_mobilenet.schedules.base import fingerprint
from tvm_mobilenet.schedules.spec import RELU, ConvSpec, Spec, to_json
from tvm_mobilenet.tuning import session as session_module
from tvm_mobilenet.tuning.finalists import Settled, finalists
from tvm_mobilenet.tuning.measure import Measurement
from tvm_mobilenet.tuning.ranking import LearnedRanking
from tvm_mobilenet.tuning.records import (
    RECORDS,
    Record,
    applicable,
    directory_of,
    read_records,
    setting_of,
    update_records,
)
from tvm_mobilenet.tuning.schedule import allot, promise
from tvm_mobilenet.tuning.search import PATIENCE, TaskSearch
from tvm_mobilenet.tuning.session import Limits, Place, Session
from tvm_mobilenet.tuning.store import MeasuredLog
from tvm_mobilenet.tuning.task import Candidate, task_of

TARGET = dataclasses.replace(targets.load("x86-64-v3"), cores=1)
SETTING = setting_of(TARGET, 1, "a test")
POINTWISE = ConvSpec(1, 16, 6, 6, 24, lanes=TARGET.lanes, activation=RELU)
DEPTHWISE = ConvSpec(
    1, 16, 6, 6, 16, (3, 3), padding=(1, 1, 1, 1), groups=16, lanes=TARGET.lanes, activation=RELU
)


class FakeMeasurer:
    """Times kernels by a function of (their number of calls, so far) or fails them."""

    def __init__(self, seconds: Callable[[int, Any], float | str]) -> None:
        self.spent = {"building": 0.0, "measuring": 0.0}
        self.kernels: list[Any] = []
        self._seconds = seconds

    def measure(
        self, functions: Sequence[Any], on_result: Callable[[int, Measurement], None]
    ) -> list[Measurement]:
        results: list[Measurement] = []
        for function in functions:
            self.kernels.append(function)
            value = self._seconds(len(self.kernels) - 1, function)
            if isinstance(value, str):
                results.append(Measurement(None, None, value))
            else:
                results.append(Measurement(value, (value, value)))
            on_result(len(results) - 1, results[-1])
        return results


@pytest.fixture
def make_session(tmp_path, monkeypatch):
    """make_session(seconds, specs, seed=0, logs=...): a session over those operators."""

    def make(
        seconds: Callable[[int, Any], float | str],
        specs: Sequence[Spec] = (POINTWISE, DEPTHWISE),
        seed: int = 0,
        logs: Any = tmp_path,
        **options: Any,
    ) -> tuple[Session, FakeMeasurer]:
        counts = range(1, len(specs) + 1)
        tasks = [task_of(s, TARGET, n) for s, n in zip(specs, counts, strict=True)]
        monkeypatch.setattr(session_module, "tasks_of", lambda imported, target: tasks)
        measurer = FakeMeasurer(seconds)
        place = Place(TARGET, SETTING, logs)
        imported: Any = SimpleNamespace()
        return Session(imported, "net", place, measurer, seed=seed, **options), measurer  # type: ignore[arg-type]

    return make


def hashed(number, kernel):
    """A time that depends on the kernel alone."""
    return 1e-5 * (1.0 + int(fingerprint(kernel)[:4], 16) / 65536)


def test_trial_0_of_every_operator_is_the_analytic_choice(make_session):
    session, measurer = make_session(hashed)
    session.search(Limits(trials=8))
    baselines = [
        fingerprint(task.baseline.rule.build(task.spec, task.baseline.knobs))
        for task in session.tasks
    ]
    assert [fingerprint(kernel) for kernel in measurer.kernels[:2]] == baselines


def test_same_seed_and_times_same_candidates(make_session, tmp_path):
    def candidates(seed, folder):
        session, measurer = make_session(hashed, seed=seed, logs=tmp_path / folder)
        session.search(Limits(trials=40))
        return [fingerprint(kernel) for kernel in measurer.kernels]

    first = candidates(0, "a")
    assert len(first) == len(set(first)) > 30
    assert candidates(0, "b") == first
    assert candidates(1, "c") != first


def test_the_same_command_goes_on_and_spends_no_trial_twice(make_session):
    first, done = make_session(hashed)
    first.search(Limits(trials=20))
    second, more = make_session(hashed)
    assert second.reused == len(done.kernels)
    second.search(Limits(trials=second.reused + 16))
    assert len(more.kernels) == 16
    again = {fingerprint(k) for k in done.kernels} & {fingerprint(k) for k in more.kernels}
    assert not again
    third, none = make_session(hashed)
    third.search(Limits(trials=third.reused))
    assert none.kernels == []


def test_a_changed_kernel_or_another_machine_is_measured_anew(make_session):
    session, _ = make_session(hashed)
    session.search(Limits(trials=10))
    log = MeasuredLog(session.place.directory)
    entries, _ = log.read()
    log.path.unlink()
    other = dataclasses.asdict(dataclasses.replace(SETTING, device="another CPU"))
    log.append([dataclasses.replace(entry, setting=other) for entry in entries])
    assert make_session(hashed)[0].reused == 0
    log.append([dataclasses.replace(entry, fingerprint="f" * 16) for entry in entries])
    assert make_session(hashed)[0].reused == 0
    log.append(entries)
    assert make_session(hashed)[0].reused == len(entries)


def test_a_failed_candidate_costs_itself(make_session):
    def some(number, kernel):
        return "the kernel crashed" if number % 3 == 2 else hashed(number, kernel)

    session, measurer = make_session(some)
    session.search(Limits(trials=20))
    outcome = session.finish(Settled(), "done")
    failed = sum(task.failed for task in outcome.tasks)
    assert failed == sum(n % 3 == 2 for n in range(len(measurer.kernels))) > 0
    assert {task.first_failure for task in outcome.tasks} <= {None, "the kernel crashed"}
    entries, _ = MeasuredLog(session.place.directory).read()
    assert [entry.error for entry in entries if entry.seconds is None] == [
        "the kernel crashed"
    ] * failed


def test_nothing_measured_is_an_error_with_the_first_reason(make_session):
    session, _ = make_session(lambda number, kernel: f"no compiler {number}")
    with pytest.raises(NothingMeasuredError, match=r"none of 2 candidates.*no compiler 0"):
        session.search(Limits(trials=20))


def test_it_stops_when_nothing_improves(make_session):
    session, measurer = make_session(lambda number, kernel: 1e-5, [POINTWISE])
    assert session.search(Limits()) == "nothing improved any more"
    assert len(measurer.kernels) <= PATIENCE + 16 < len(session.tasks[0].space)


def test_the_time_is_a_limit_too(make_session):
    session, measurer = make_session(hashed)
    stopped = session.search(Limits(seconds=1e-9))
    assert "time" in stopped and len(measurer.kernels) == len(session.tasks)


def test_trials_go_where_the_time_is():
    searches = [TaskSearch(task_of(spec, TARGET), 0) for spec in (POINTWISE, DEPTHWISE)]
    assert allot(searches, 2) == [1, 1]
    for search, seconds in zip(searches, (1e-3, 1e-5), strict=True):
        search.record(search.task.baseline, _took(seconds))
    large, small = allot(searches, 10)
    assert large + small == 10 and large > 5 * small
    for candidate in searches[0].task.space[:PATIENCE]:
        searches[0].record(candidate, _took(1e-3))
    assert promise(searches[0]) == 0.0
    assert allot(searches, 4) == [0, 4]


def test_winners_of_similar_operators_are_measured_first(make_session, tmp_path):
    """Of another target, too, when its knobs are in this target's space."""
    sibling = dataclasses.replace(POINTWISE, in_height=8, in_width=8)
    winner = task_of(POINTWISE, TARGET).space[7]
    record = _record(sibling, winner)
    update_records(tmp_path / "haswell", [record])
    session, measurer = make_session(hashed, [POINTWISE])
    session.search(Limits(trials=3))
    wanted = fingerprint(winner.rule.build(POINTWISE, winner.knobs))
    assert fingerprint(measurer.kernels[1]) == wanted


def test_the_ranking_learns_what_makes_a_kernel_slow():
    task = task_of(POINTWISE, TARGET)
    search = TaskSearch(task, 0)
    search.record(task.baseline, _took(1e-5))

    def seconds(candidate: Candidate) -> float:
        return 1e-5 * (1 + abs(candidate.knobs.pixels - 3) + candidate.knobs.unroll)

    for candidate in task.space[::4]:
        search.record(candidate, _took(seconds(candidate)))
    ranking = LearnedRanking(TARGET, 0)
    ranking.learn([search])
    fresh = [c for c in task.space if c.key not in search.tried]
    scores = ranking(task, fresh)
    ordered = [c for _, c in sorted(zip(scores, fresh, strict=True), key=lambda pair: pair[0])]
    top, rest = ordered[: len(ordered) // 10], ordered[len(ordered) // 2 :]
    assert max(map(seconds, top)) < min(sorted(map(seconds, rest))[len(rest) // 2 :])


def test_finalists_may_beat_the_analytic_choice():
    task = task_of(DEPTHWISE, TARGET)
    search = TaskSearch(task, 0)
    assert finalists(search, {}) == []
    search.record(task.baseline, _took(1e-5))
    times = (1.2e-5, 1.02e-5, 0.8e-5, 0.9e-5)
    for candidate, seconds in zip(task.space, times, strict=False):
        search.record(candidate, _took(seconds))
    fast = [task.space[2], task.space[3], task.space[1]]
    assert finalists(search, {}) == fast
    # what an earlier run chose is among them, whatever it takes alone, if it can be measured here
    assert finalists(search, {task.operator: task.space[3]}) == fast
    assert finalists(search, {task.operator: task.space[0]}) == [*fast, task.space[0]]
    assert finalists(search, {task.operator: task.space[4]}) == fast


def test_only_what_was_chosen_is_recorded_and_applies(make_session, tmp_path):
    session, _ = make_session(hashed)
    session.search(Limits(trials=30))
    search = session.searches[0]
    winner = search.fastest(1)[0][0]
    outcome = session.finish(Settled({search.task.operator: winner}), "done")
    assert outcome.records == 1 and [t.tuned for t in outcome.tasks] == [True, False]
    (record,) = read_records(tmp_path / directory_of(TARGET) / RECORDS)
    assert record.setting == SETTING and record.knobs == dataclasses.asdict(winner.knobs)
    applies = applicable(TARGET, 1, tmp_path)
    assert applies(POINTWISE, winner.rule.name).knobs == record.knobs
    assert applies(DEPTHWISE, "depthwise") is None


def _took(seconds: float):
    return Measurement(seconds, (seconds, seconds))


def _record(spec, candidate: Candidate, **changes) -> Record:
    record = Record(
        operator=to_json(spec),
        rule=candidate.rule.name,
        knobs=dataclasses.asdict(candidate.knobs),
        fingerprint=fingerprint(candidate.rule.build(spec, candidate.knobs)),
        setting=SETTING,
        seconds=1e-5,
        spread=(0.9e-5, 1e-5),
        baseline_seconds=1.2e-5,
        in_network=None,
        time="2026-01-01T00:00:00+00:00",
        seed=0,
        space="template",
    )
    return dataclasses.replace(record, **changes)
