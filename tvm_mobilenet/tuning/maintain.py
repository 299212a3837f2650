"""Looking after records: what is there, is it still right and still faster, merge, prune."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.schedules.spec import from_json
from tvm_mobilenet.tuning.records import RECORDS, SKETCH, Record, read_records, update_records
from tvm_mobilenet.tuning.store import MEASURED, MeasuredLog

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.device import Checker
    from tvm_mobilenet.tuning.gpu_measure import GpuMeasurer
    from tvm_mobilenet.tuning.measure import Measurer


@dataclass(frozen=True)
class Summary:
    """One target's directory. ``measured``, ``failed``: candidates in its log."""

    target: str
    records: int
    threads: tuple[int, ...]
    devices: tuple[str, ...]
    newest: str | None
    measured: int
    failed: int
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """One record looked at again: ``current`` unless its kernel has changed or cannot be built;
    ``fault``: what is wrong with its numbers; ``speed_up``: over the analytic choice, now.
    """

    record: Record
    current: bool
    fault: str | None
    speed_up: float | None
    recorded_speed_up: float


def directories(logs: Path) -> list[Path]:
    """The targets' directories. Raises InputError when there is no such place."""
    if not logs.is_dir():
        raise InputError(f"{logs}: no such directory of tuning records")
    return sorted(
        path for path in logs.iterdir() if (path / RECORDS).is_file() or (path / MEASURED).is_file()
    )


def directory(logs: Path, target: str) -> Path:
    """One target's directory. Raises InputError, with the names that there are, for another."""
    found = {path.name: path for path in directories(logs)}
    if target not in found:
        names = ", ".join(found) or "nothing yet"
        raise InputError(f"{logs}: no records of '{target}'; there is {names}")
    return found[target]


def summaries(logs: Path) -> list[Summary]:
    """All targets with what there is of them."""
    return [_summary(path) for path in directories(logs)]


def _summary(path: Path) -> Summary:
    records = read_records(path / RECORDS)
    measured, damaged = MeasuredLog(path).read()
    return Summary(
        target=path.name,
        records=len(records),
        threads=tuple(sorted({record.setting.threads for record in records})),
        devices=tuple(sorted({record.setting.device for record in records})),
        newest=max((record.time for record in records), default=None),
        measured=len(measured),
        failed=sum(entry.seconds is None for entry in measured),
        damaged=tuple(damaged),
    )


def speed_up(record: Record) -> float:
    """Of a record over the analytic choice: inside the network where it was measured there."""
    if record.in_network is not None:
        return record.in_network.baseline_seconds / record.in_network.seconds
    return record.baseline_seconds / record.seconds


def merge(sources: Sequence[Path], into: Path) -> dict[str, tuple[int, int]]:
    """Add other directories' records and measurements; by target how many of each were new.

    Of two records of the same operator and setting the one that gained more stays; nothing is
    taken twice. Raises InputError for a source that is no directory of records or is damaged.
    """
    added: dict[str, tuple[int, int]] = {}
    for source in sources:
        for theirs in directories(source):
            ours = into / theirs.name
            known = {record.identity: record for record in read_records(ours / RECORDS)}
            better = [
                record
                for record in read_records(theirs / RECORDS)
                if record.identity not in known
                or speed_up(record) > speed_up(known[record.identity])
            ]
            update_records(ours, better)
            log = MeasuredLog(ours)
            have = {repr(asdict(entry)) for entry in log.read()[0]}
            entries, damaged = MeasuredLog(theirs).read()
            if damaged:
                raise InputError(f"{damaged[0]}; 'logs prune --logs {source}' removes such lines")
            fresh = [entry for entry in entries if repr(asdict(entry)) not in have]
            if fresh:
                log.append(fresh)
            before = added.get(theirs.name, (0, 0))
            added[theirs.name] = (before[0] + len(better), before[1] + len(fresh))
    return added


def is_current(record: Record, target: TargetSpec) -> bool:
    """Whether the rules still make the kernel that the record was measured with."""
    from tvm_mobilenet.schedules.base import fingerprint, rules_for

    if record.space == SKETCH:
        return True
    rule = next((rule for rule in rules_for(target) if rule.name == record.rule), None)
    if rule is None:
        return False
    try:
        kernel = rule.build(from_json(record.operator), rule.knobs_class(**record.knobs))
    except (TypeError, ValueError):  # knobs of another version of the template
        return False
    return fingerprint(kernel) == record.fingerprint


def prune(path: Path, target: TargetSpec) -> tuple[int, int]:
    """Remove records that no build would apply, and lines that are no measurements.

    Returns how many of each. ``target``: one that the directory's records are for.
    """
    stale = [r.identity for r in read_records(path / RECORDS) if not is_current(r, target)]
    if stale:
        update_records(path, [], stale)
    return len(stale), MeasuredLog(path).remove_damaged()


def check(
    path: Path,
    target: TargetSpec,
    measurer: Measurer | GpuMeasurer,
    device: Checker,
    *,
    threads: int,
    sample: int,
    seed: int,
    info: Callable[[str], None],
) -> list[Checked]:
    """Build, validate and measure a random sample of a directory's records again.

    Only records that apply to ``target`` on that many threads are looked at. Each is measured
    beside the analytic choice, cold and alone: inside the network its gain may be another.
    """
    from tvm_mobilenet.tuning import check as numbers
    from tvm_mobilenet.tuning.records import setting_of
    from tvm_mobilenet.tuning.task import Candidate, task_of

    setting = setting_of(target, threads, "")
    fitting = [
        record
        for record in read_records(path / RECORDS)
        if record.setting.fits(setting) and record.space == "template"
    ]
    chosen = random.Random(seed).sample(fitting, min(sample, len(fitting)))
    results = []
    work: list[tuple[Any, Any, Record]] = []
    for record in chosen:
        if not is_current(record, target):
            results.append(Checked(record, False, None, None, speed_up(record)))
            continue
        task = task_of(from_json(record.operator), target)
        rules = {candidate.rule.name: candidate.rule for candidate in (task.baseline, *task.space)}
        rule = rules[record.rule]
        work.append((task, Candidate(rule, rule.knobs_class(**record.knobs)), record))
    if work:
        info(f"checking the numbers and the times of {len(work)} records")
        faults = numbers.faults(
            [numbers.Job(t.operator, c.rule.name, c.knobs, target) for t, c, _ in work], device
        )
        kernels = [
            c.rule.build(task.spec, c.knobs)
            for task, candidate, _ in work
            for c in (task.baseline, candidate)
        ]
        times = [m.seconds for m in measurer.measure(kernels)]
        pairs = zip(times[::2], times[1::2], strict=True)
        for (_, _, record), fault, (before, after) in zip(work, faults, pairs, strict=True):
            now = before / after if before and after else None
            results.append(Checked(record, True, fault, now, speed_up(record)))
    return results
