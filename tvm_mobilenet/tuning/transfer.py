"""What earlier runs know: their measurements, and winners of similar operators to start from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.schedules.base import Rule, fingerprint, rules_for
from tvm_mobilenet.schedules.spec import Spec, from_json
from tvm_mobilenet.tuning.measure import Measurement
from tvm_mobilenet.tuning.records import RECORDS, Record, Setting, directories_for, read_records
from tvm_mobilenet.tuning.store import Measured
from tvm_mobilenet.tuning.task import Candidate, Task, candidate_key

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

SEEDS = 3  # winners of similar operators that are measured before the search


def known_measurements(
    task: Task, entries: Sequence[Measured], setting: Setting
) -> list[tuple[Candidate, Measurement, str]]:
    """What was measured of a task in the same setting and still is the same kernel: the candidate,
    the measurement, the kernel's fingerprint.

    Failures count only when the analytic choice itself could be measured: else something was wrong
    with the machine, not with them.
    """
    ours = comparable(dataclasses.asdict(setting))
    latest: dict[str, Measured] = {}
    for entry in entries:
        if entry.operator == task.operator and comparable(entry.setting) == ours:
            latest[candidate_key(entry.rule, entry.knobs)] = entry
    baseline = latest.get(task.baseline.key)
    if baseline is None or baseline.seconds is None:
        return []
    candidates = {c.key: c for c in (task.baseline, *task.space)}
    found = []
    for key, entry in latest.items():
        candidate = candidates.get(key)
        if candidate is None:
            continue
        kernel = candidate.rule.build(task.spec, candidate.knobs)
        if fingerprint(kernel) == entry.fingerprint:
            measurement = Measurement(entry.seconds, entry.spread, entry.error)
            found.append((candidate, measurement, entry.fingerprint))
    return found if any(c.key == task.baseline.key for c, *_ in found) else []


class Winners:
    """Winners of earlier runs, of whatever target and network."""

    def __init__(self, records: Sequence[tuple[Record, bool]], rules: Sequence[Rule]) -> None:
        """records: each with whether it is of this target."""
        self._rules = {rule.name: rule for rule in rules}
        self._known = []
        for record, own in records:
            rule = self._rules.get(record.rule)
            if rule is not None:
                self._known.append((record, from_json(record.operator), own, rule))

    def seeds_for(self, task: Task) -> list[Candidate]:
        """At most SEEDS distinct candidates, those of the most similar operators first.

        They are only ideas: each is measured like any other candidate.
        """
        near = sorted(
            (
                (distance(spec, task.spec), not own, record.time, record, rule)
                for record, spec, own, rule in self._known
                if type(spec) is type(task.spec) and spec.kind == task.spec.kind
            ),
            key=lambda entry: entry[:3],
        )
        allowed = {candidate.key for candidate in task.space}
        seeds: dict[str, Candidate] = {}
        for *_, record, rule in near:
            key = candidate_key(rule.name, record.knobs)
            if key in allowed and len(seeds) < SEEDS:
                seeds.setdefault(key, Candidate(rule, rule.knobs_class(**record.knobs)))
        return list(seeds.values())


def earlier_winners(logs: Path, target: TargetSpec) -> Winners:
    """All records under a directory of logs. Raises InputError for a damaged file."""
    own = set(directories_for(target))
    records = [
        (record, path.parent.name in own)
        for path in sorted(logs.glob(f"*/{RECORDS}"))
        for record in read_records(path)
        if record.space == "template"
    ]
    return Winners(records, rules_for(target))


def distance(a: Spec, b: Spec) -> float:
    """How unlike two operators of one kind are: doublings of every size, added up."""
    total = 0.0
    ours, theirs = dataclasses.asdict(a), dataclasses.asdict(b)
    for name, value in ours.items():
        other = theirs[name]
        if isinstance(value, int) and isinstance(other, int):
            total += abs(math.log2(1 + value) - math.log2(1 + other))
        elif value != other:
            total += 1.0
    return total


def comparable(setting: dict[str, Any]) -> dict[str, Any]:
    """Without our own version: a kernel that changed is found by its fingerprint."""
    return {key: value for key, value in setting.items() if key != "tvm_mobilenet"}
