"""A tuning run from the model to the records: baselines, search, finalists, records."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_mobilenet.errors import NothingMeasuredError
from tvm_mobilenet.schedules.base import fingerprint
from tvm_mobilenet.tuning import network
from tvm_mobilenet.tuning.finalists import Settled
from tvm_mobilenet.tuning.measure import Measurement, Measurer
from tvm_mobilenet.tuning.ranking import LearnedRanking
from tvm_mobilenet.tuning.records import (
    RECORDS,
    SHIPPED,
    InNetwork,
    Record,
    Setting,
    directory_of,
    identity_of,
    read_records,
    update_records,
)
from tvm_mobilenet.tuning.report import Outcome, TaskOutcome
from tvm_mobilenet.tuning.schedule import allot
from tvm_mobilenet.tuning.search import TaskSearch
from tvm_mobilenet.tuning.store import Measured, MeasuredLog
from tvm_mobilenet.tuning.task import Candidate, candidate_key, tasks_of
from tvm_mobilenet.tuning.transfer import earlier_winners, known_measurements

if TYPE_CHECKING:
    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.targets import TargetSpec

BATCH = 16  # candidates that are built together, then measured one after the other


@dataclass(frozen=True)
class Limits:
    """When to stop: trials in all (earlier runs' included), seconds of this run; None: no limit."""

    trials: int | None = None
    seconds: float | None = None


@dataclass
class Clock:
    """Where the time of a run goes, in seconds by what was done."""

    start: float = field(default_factory=time.monotonic)
    spent: dict[str, float] = field(default_factory=dict)

    def lap(self, name: str, since: float) -> None:
        self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - since

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start


@dataclass(frozen=True)
class Place:
    """Where things are measured and written: the target, its setting, the directory of logs."""

    target: TargetSpec
    setting: Setting
    logs: Path = SHIPPED

    @property
    def directory(self) -> Path:
        return self.logs / directory_of(self.target)


@dataclass(frozen=True)
class Trial:
    """A candidate about to be measured, with its kernel."""

    search: TaskSearch
    candidate: Candidate
    kernel: Any
    fingerprint: str


class Session:
    """One network being tuned in one place."""

    def __init__(
        self,
        imported: ImportedModel,
        label: str,
        place: Place,
        measurer: Measurer,
        *,
        seed: int = 0,
        space: str = "template",
        kinds: Sequence[str] | None = None,
        batch: int = BATCH,
        info: Callable[[str], None] = lambda message: None,
        warn: Callable[[str], None] = lambda message: None,
        progress: Callable[[int, int, str], None] = lambda done, total, label: None,
    ) -> None:
        """label: the network's name in records and tables. space: what records say they are of.

        kinds: of operators to look at; None: all that have a template. batch: candidates that are
        built together.
        """
        self.label, self.place, self.seed = label, place, seed
        self._measurer, self._space, self._batch = measurer, space, batch
        self._info, self._warn, self._progress = info, warn, progress
        self.clock = Clock()
        self._log = MeasuredLog(place.directory)
        tasks = tasks_of(imported, place.target)
        self.tasks = [task for task in tasks if kinds is None or task.spec.kind in kinds]
        self._ranking = LearnedRanking(place.target, seed)
        if not self._ranking.learns:
            warn("xgboost is not installed: nothing is learned of what is measured")
        self._kernels: dict[str, set[str]] = {}  # fingerprints of what was tried, by operator
        self.reused = 0
        self.searches = self._searches()

    # ---- search

    def _searches(self) -> list[TaskSearch]:
        """The tasks with what earlier runs know of them."""
        entries, damaged = self._log.read()
        for remark in damaged:
            self._warn(f"{remark}; it is passed over ('logs prune' removes it)")
        winners = earlier_winners(self.place.logs, self.place.target)
        searches = []
        for task in self.tasks:
            search = TaskSearch(task, self.seed, winners.seeds_for(task))
            known = known_measurements(task, entries, self.place.setting)
            self._kernels[task.operator] = {identity for _, _, identity in known}
            for candidate, measurement, _ in known:
                search.record(candidate, measurement)
                self.reused += 1
            searches.append(search)
        return searches

    @property
    def trials(self) -> int:
        """Candidates tried, earlier runs' included."""
        return sum(len(search.tried) for search in self.searches)

    @property
    def kept(self) -> int:
        """Measurements on the disk of operators of this network, whatever ended the run."""
        operators = {task.operator for task in self.tasks}
        entries, _ = self._log.read()
        return sum(entry.operator in operators for entry in entries)

    def search(self, limits: Limits) -> str:
        """Measure until a limit is reached or nothing promises more; returns why it stopped.

        Raises NothingMeasuredError when not one candidate could be measured.
        """
        while True:
            left = self._batch if limits.trials is None else limits.trials - self.trials
            room = min(self._batch, left)
            fresh = [search for search in self.searches if not search.tried]
            if fresh:
                room = len(fresh)  # every task gets its baseline, whatever the limit
            elif room <= 0:
                return f"{limits.trials} trials are done"
            elif limits.seconds is not None and self.clock.elapsed >= limits.seconds:
                return f"the time for searching ({limits.seconds:.0f} s) is over"
            batch = self._propose(room)
            if not batch:
                return "nothing improved any more"
            self._measure(batch)
            if fresh:
                self._list_tasks()
            self._report_progress(limits)
            if all(search.best is None for search in self.searches):
                reasons = [reason for search in self.searches for reason in search.failures]
                raise NothingMeasuredError(
                    f"none of {self.trials} candidates could be measured; the first: {reasons[0]}"
                )

    def _propose(self, room: int) -> list[Trial]:
        """The next candidates with their kernels.

        Different knobs may make the same kernel (one more tile in a row than there are, say):
        that is measured once.
        """
        start = time.monotonic()
        self._ranking.learn(self.searches)
        batch: list[Trial] = []
        for search, share in zip(self.searches, allot(self.searches, room), strict=True):
            seen = self._kernels.setdefault(search.task.operator, set())
            room_left = share
            while room_left and (proposed := search.propose(room_left, self._ranking)):
                for candidate in proposed:
                    kernel = candidate.rule.build(search.task.spec, candidate.knobs)
                    identity = fingerprint(kernel)
                    if identity not in seen:
                        seen.add(identity)
                        batch.append(Trial(search, candidate, kernel, identity))
                        room_left -= 1
        self.clock.lap("choosing candidates", start)
        return batch

    def _measure(self, batch: Sequence[Trial]) -> None:
        def store(place: int, measurement: Measurement) -> None:
            """On the disk before the next one is measured: nothing that was finished is lost."""
            trial = batch[place]
            self._log.append([self._entry(trial, measurement)])
            trial.search.record(trial.candidate, measurement)

        self._take_times(batch, store)
        for name, seconds in self._measurer.spent.items():
            self.clock.spent[name] = seconds

    def _take_times(
        self, batch: Sequence[Trial], on_result: Callable[[int, Measurement], None]
    ) -> None:
        """All that a measurer is told of a trial: its kernel."""
        self._measurer.measure([trial.kernel for trial in batch], on_result)

    def _entry(self, trial: Trial, measurement: Measurement) -> Measured:
        return Measured(
            operator=trial.search.task.operator,
            rule=trial.candidate.rule.name,
            knobs=dataclasses.asdict(trial.candidate.knobs),
            fingerprint=trial.fingerprint,
            setting=dataclasses.asdict(self.place.setting),
            seconds=measurement.seconds,
            spread=measurement.spread,
            error=measurement.error,
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seed=self.seed,
            space=self._space,
        )

    def _list_tasks(self) -> None:
        """Every operator by its share of the time, now that the analytic choice is measured."""
        timed = [(s.task.count * (s.baseline or 0.0), s.task) for s in self.searches]
        total = sum(seconds for seconds, _ in timed) or 1.0
        self._info(f"{len(timed)} operators, analytic choice, {total * 1e3:.3f} ms alone:")
        for seconds, task in sorted(timed, key=lambda entry: -entry[0]):
            share = f"{seconds / total:6.1%}"
            self._info(f"{share}  {task.count} x {task.label}, {len(task.space)} candidates")

    def _report_progress(self, limits: Limits) -> None:
        total = sum(s.task.count * (s.best_seconds or 0.0) for s in self.searches)
        label = f"trials, predicted {total * 1e3:.3f} ms"
        elapsed = self.clock.elapsed
        if limits.trials is not None:
            done = min(self.trials, limits.trials)
            fresh = max(1, self.trials - self.reused)
            left = elapsed / fresh * (limits.trials - done)
            self._progress(done, limits.trials, f"{label}, {left:.0f} s left")
        elif limits.seconds is not None:
            done = min(int(elapsed), int(limits.seconds))
            left = limits.seconds - elapsed
            self._progress(
                done, int(limits.seconds), f"s, {self.trials} {label}, {max(0.0, left):.0f} s left"
            )

    # ---- records

    def recorded(self) -> dict[str, Candidate]:
        """By operator, what an earlier run chose in this setting."""
        tasks = {search.task.operator: search.task for search in self.searches}
        found = {}
        for record in read_records(self.place.directory / RECORDS):
            operator, key = record.operator, candidate_key(record.rule, record.knobs)
            identity = identity_of(operator, self.place.setting, self._space)
            if operator in tasks and record.identity == identity:
                for candidate in tasks[operator].space:
                    if candidate.key == key:
                        found[operator] = candidate
        return found

    def finish(self, settled: Settled, stopped: str) -> Outcome:
        """Write the records of what was chosen; ``stopped``: why the search ended."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        records = []
        for search in self.searches:
            operator = search.task.operator
            winner = settled.chosen.get(operator)
            # one that an earlier run chose, and that was not measured again, stays as it is
            if winner is not None and winner.key in search.tried:
                records.append(self._record(search, winner, settled.inside.get(operator), now))
        setting = self.place.setting
        drop = [identity_of(op, setting, self._space) for op in settled.beaten]
        update_records(self.place.directory, records, drop)
        return self._outcome(settled, stopped)

    def _record(
        self, search: TaskSearch, winner: Candidate, inside: InNetwork | None, now: str
    ) -> Record:
        measurement: Measurement = search.tried[winner.key][1]
        assert measurement.seconds and measurement.spread and search.baseline  # it was a finalist
        return Record(
            operator=search.task.operator,
            rule=winner.rule.name,
            knobs=dataclasses.asdict(winner.knobs),
            fingerprint=fingerprint(winner.rule.build(search.task.spec, winner.knobs)),
            setting=self.place.setting,
            seconds=measurement.seconds,
            spread=measurement.spread,
            baseline_seconds=search.baseline,
            in_network=inside,
            time=now,
            seed=self.seed,
            space=self._space,
        )

    def _outcome(self, settled: Settled, stopped: str) -> Outcome:
        rows = []
        for search in self.searches:
            operator = search.task.operator
            best, winner = search.best, settled.chosen.get(operator)
            rows.append(
                TaskOutcome(
                    kind=search.task.spec.kind,
                    shape=str(search.task.spec),
                    count=search.task.count,
                    trials=len(search.tried),
                    failed=len(search.failures),
                    first_failure=next(iter(search.failures), None),
                    baseline_seconds=search.baseline,
                    best_seconds=None if best is None else best[1].seconds,
                    in_network=settled.inside.get(operator),
                    tuned=winner is not None,
                    knobs=None if winner is None else dataclasses.asdict(winner.knobs),
                )
            )
        race = settled.race
        ends = None if race is None else [float(np.median(times)) for times in race]
        return Outcome(
            network=self.label,
            target=self.place.target.name,
            directory=self.place.directory,
            setting=self.place.setting,
            tasks=tuple(rows),
            trials=self.trials,
            reused=self.reused,
            faults=settled.faults,
            before_seconds=None if ends is None else ends[0],
            after_seconds=None if ends is None else ends[1],
            speed_up=None if race is None else network.ratio(race[0], race[1]),
            records=len(settled.chosen),
            parity=settled.parity,
            stopped=stopped,
            seconds=self.clock.elapsed,
            spent=dict(self.clock.spent),
        )
