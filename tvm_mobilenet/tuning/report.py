"""What a tuning run found, as data; the command line prints it."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.tuning.records import InNetwork, Setting
from tvm_mobilenet.tuning.store import os_errors_named

if TYPE_CHECKING:
    from tvm_mobilenet.profiling.statistics import Ratio
    from tvm_mobilenet.tuning.sketch import SketchOutcome


@dataclass(frozen=True)
class TaskOutcome:
    """One operator. Seconds are of one cold run alone; ``in_network`` is measured where it runs."""

    kind: str
    shape: str
    count: int
    trials: int
    failed: int
    first_failure: str | None
    baseline_seconds: float | None
    best_seconds: float | None
    in_network: InNetwork | None
    tuned: bool  # whether a record of it was written
    knobs: dict[str, Any] | None

    @property
    def label(self) -> str:
        """Kind and shape, which no other operator of the network has."""
        return f"{self.kind} {self.shape}"

    @property
    def gain(self) -> float | None:
        """How many times as fast as the analytic choice the best is, alone."""
        if self.baseline_seconds is None or self.best_seconds is None:
            return None
        return self.baseline_seconds / self.best_seconds


@dataclass(frozen=True)
class Outcome:
    """One run. ``before_seconds`` and ``after_seconds`` are of the whole network, end to end,
    measured in turns; None when nothing was faster or nothing could be raced here.

    ``spent``: seconds by what was done. ``reused``: trials of earlier runs that were not repeated.
    ``faults``: finalists whose numbers were wrong. ``parity``: see `finalists.Settled`.
    """

    network: str
    target: str
    directory: Path
    setting: Setting
    tasks: tuple[TaskOutcome, ...]
    trials: int
    reused: int
    faults: tuple[str, ...]
    before_seconds: float | None
    after_seconds: float | None
    speed_up: Ratio | None
    records: int
    parity: str | None
    stopped: str
    seconds: float
    spent: dict[str, float]

    @property
    def trials_per_minute(self) -> float | None:
        """Of this run, over the time of searching alone; None when none was made."""
        fresh = self.trials - self.reused
        search = sum(self.spent.get(name, 0.0) for name in SEARCHING)
        return 60.0 * fresh / search if fresh and search else None

    def predicted(self, which: str) -> float:
        """Sum over the operators of calls times seconds alone: ``baseline`` or ``best``."""
        return sum(t.count * (getattr(t, f"{which}_seconds") or 0.0) for t in self.tasks)


SEARCHING = ("choosing candidates", "building", "measuring")
COLUMNS = (
    "kind",
    "shape",
    "count",
    "share",
    "trials",
    "failed",
    "analytic_us",
    "best_us",
    "network_before_us",
    "network_after_us",
    "tuned",
)


def rows(outcome: Outcome) -> list[tuple[Any, ...]]:
    """The table of the operators, see COLUMNS; times of one call in microseconds."""
    total = outcome.predicted("baseline") or 1.0
    table = []
    for task in outcome.tasks:
        inside = task.in_network
        table.append(
            (
                task.kind,
                task.shape,
                task.count,
                task.count * (task.baseline_seconds or 0.0) / total,
                task.trials,
                task.failed,
                _us(task.baseline_seconds),
                _us(task.best_seconds),
                _us(inside.baseline_seconds / inside.calls if inside else None),
                _us(inside.seconds / inside.calls if inside else None),
                task.tuned,
            )
        )
    return table


@contextlib.contextmanager
def csv_writer(path: Path) -> Iterator[Any]:
    """A `csv.writer` of a new file; InputError when it cannot be written."""
    named = os_errors_named(path, "name another file: --csv FILE")
    with named, path.open("w", newline="", encoding="utf-8") as file:
        yield csv.writer(file)


def write_csv(outcome: Outcome, path: Path) -> None:
    """The same table and a last line for the network; InputError when it cannot be written."""
    with csv_writer(path) as writer:
        writer.writerow(COLUMNS)
        writer.writerows(rows(outcome))
        ends = (_us(outcome.before_seconds), _us(outcome.after_seconds))
        sums = (_us(outcome.predicted("baseline")), _us(outcome.predicted("best")))
        failed = sum(task.failed for task in outcome.tasks)
        tuned = sum(task.tuned for task in outcome.tasks)
        whole = ("network", outcome.network, 1, 1.0, outcome.trials, failed, *sums, *ends, tuned)
        writer.writerow(whole)


def sketch_columns() -> list[str]:
    """What is told of a function; the record itself is in the directory of logs."""
    from tvm_mobilenet.tuning.sketch import SketchOutcome

    return [field.name for field in fields(SketchOutcome) if field.name != "record"]


def sketch_fields(outcome: SketchOutcome) -> dict[str, Any]:
    """One function's outcome as data, by `sketch_columns`."""
    return {name: getattr(outcome, name) for name in sketch_columns()}


def write_sketch_csv(outcomes: Sequence[SketchOutcome], path: Path) -> None:
    """A line for each function; InputError when it cannot be written."""
    with csv_writer(path) as writer:
        writer.writerow(sketch_columns())
        writer.writerows(sketch_fields(outcome).values() for outcome in outcomes)


def _us(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e6, 3)
