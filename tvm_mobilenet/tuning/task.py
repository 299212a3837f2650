"""The operators of a network that tuning may speed up."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.compiler_pass.join_operators import join_operators
from tvm_mobilenet.compiler_pass.lower_operators import lower_operators
from tvm_mobilenet.compiler_pass.schedule_operators import spec_of
from tvm_mobilenet.schedules.base import Rule, activation_lanes, rules_for
from tvm_mobilenet.schedules.spec import Spec, to_json

if TYPE_CHECKING:
    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.targets import TargetSpec


@dataclass(frozen=True)
class Candidate:
    """One way to run an operator: a rule of the target with knobs for it."""

    rule: Rule
    knobs: Any

    @cached_property
    def key(self) -> str:
        """Stable text: equal candidates have equal keys, in every process."""
        return candidate_key(self.rule.name, dataclasses.asdict(self.knobs))


@dataclass(frozen=True)
class Task:
    """One distinct operator of a network and how often it is called."""

    spec: Spec
    count: int
    baseline: Candidate  # the analytic choice
    space: tuple[Candidate, ...]  # everything worth measuring, the baseline not included

    @cached_property
    def operator(self) -> str:
        """The specification's JSON."""
        return to_json(self.spec)

    @property
    def label(self) -> str:
        """Kind and shape, for people."""
        return f"{self.spec.kind} {self.spec}"


def candidate_key(rule: str, knobs: dict[str, Any]) -> str:
    """See `Candidate.key`."""
    return f"{rule} {json.dumps(knobs, sort_keys=True)}"


def tasks_of(imported: ImportedModel, target: TargetSpec) -> list[Task]:
    """The distinct operators of a network that have a template, in order of execution."""
    with target.tvm_target():
        lanes = activation_lanes(target)
        mod, call_sites = lower_operators(imported.mod, lanes, target.precision)
        mod, call_sites = join_operators(mod, call_sites, target)
    specs = [spec_of(mod[name]) for name, _ in call_sites]
    counts = Counter(to_json(spec) for spec in specs if spec is not None)
    distinct = {to_json(spec): spec for spec in specs if spec is not None}
    return [task_of(spec, target, counts[text]) for text, spec in distinct.items()]


def task_of(spec: Spec, target: TargetSpec, count: int = 1) -> Task:
    """The task of one operator: every rule that takes it contributes its space."""
    rules = [rule for rule in rules_for(target) if rule.takes(spec, target)]
    baseline = Candidate(rules[0], rules[0].analytic(spec, target))
    space: dict[str, Candidate] = {}
    for rule in rules:
        for knobs in rule.space(spec, target):
            candidate = Candidate(rule, knobs)
            space.setdefault(candidate.key, candidate)
    space.pop(baseline.key, None)
    return Task(spec, count, baseline, tuple(space.values()))
