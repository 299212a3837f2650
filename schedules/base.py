"""Rules: who schedules which operator, and where the knobs come from.

A `Rule` is a template plus, for one kind of hardware, the analytic choice of its knobs and the
space that tuning searches. Rules are tried in order and the first that takes a spec schedules it.
The knobs come from a tuning record where there is one, else from the analytic choice, which needs
no measurement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from .spec import (
    ConvSpec,
    DenseSpec,
    DepthwiseSqueezeSpec,
    ExciteSpec,
    PoolSpec,
    Spec,
    SqueezeSpec,
)

if TYPE_CHECKING:
    import numpy as np
    from tvm import tirx

    from tvm_mobilenet.targets import TargetSpec

Knobs = Any  # a frozen dataclass of the template


class Rule(Protocol):
    """How one kind of operator runs on one kind of hardware.

    Three methods more are optional: ``pays(spec, target)``, of rules for joint operators, says
    whether joining is worth it (see `joins`); ``gate``, see the function of that name;
    ``predicted(spec, knobs, target)`` gives the cycles by which tuning orders candidates until it
    has measured some.
    """

    name: str
    knobs_class: type

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        """Whether this rule schedules ``spec`` on ``target``."""

    def analytic(self, spec: Any, target: TargetSpec) -> Knobs:
        """Knobs from the target's registers, vector width and caches alone.

        Rules whose knobs have ``vectors``, on which the layout of packed weights depends, take
        it as a third argument: the best knobs for weights that lie so already.
        """

    def space(self, spec: Any, target: TargetSpec) -> Iterable[Knobs]:
        """All knobs worth measuring."""

    def build(self, spec: Any, knobs: Knobs) -> tirx.PrimFunc:
        """The scheduled function."""

    def pack_weight(
        self, spec: Any, knobs: Knobs, weight: np.ndarray, argument: int = 1
    ) -> np.ndarray:
        """The weight at position ``argument`` in the order in which the function reads it."""


@dataclass(frozen=True)
class Scheduled:
    """A scheduled operator. ``source`` is ``tuned``, ``static``, ``analytic`` or ``fallback``.

    ``pack_weight(weight, argument)`` packs the weight at a position of the call (one of
    ``spec.weight_arguments``) as ``function`` reads it. ``note`` says why a tuning record that
    there is was not applied.
    """

    function: tirx.PrimFunc
    rule: str
    source: str
    knobs: dict[str, Any]
    pack_weight: Callable[[np.ndarray, int], np.ndarray] | None = None
    note: str = ""


@dataclass(frozen=True)
class Recorded:
    """What a tuning record says: the knobs, and the `fingerprint` of the kernel they made."""

    knobs: dict[str, Any]
    fingerprint: str
    static: bool = False  # predicted, not measured


# (spec, rule name) -> what is recorded, or None
Records = Callable[[Spec, str], Recorded | None]


def rules_for(target: TargetSpec) -> Sequence[Rule]:
    """The ordered rules for a target's kind of hardware."""
    if target.gpu is not None:
        from . import cuda

        return cuda.RULES
    if target.mtriple.startswith(("x86_64", "i686")):
        from . import x86

        return x86.RULES
    if target.mtriple.startswith(("aarch64", "arm")):
        from . import arm

        return arm.RULES_AARCH64 if target.mtriple.startswith("aarch64") else arm.RULES_ARMV7
    raise NotImplementedError(f"no schedules for {target.mtriple}")


def activation_lanes(target: TargetSpec) -> int:
    """Channels of a block of the blocked layout: a vector of the CPU, four on a GPU (a float4)."""
    return 4 if target.gpu is not None else target.lanes


def joins(spec: Spec, target: TargetSpec) -> bool:
    """Whether two operators are better one, ``spec``: a rule takes it and says that it ``pays``."""
    return any(
        rule.takes(spec, target) and rule.pays(spec, target)
        for rule in rules_for(target)
        if hasattr(rule, "pays")
    )


def gate(
    depthwise: ConvSpec | None,
    pool: PoolSpec,
    first: DenseSpec,
    second: DenseSpec,
    target: TargetSpec,
) -> tuple[SqueezeSpec | DepthwiseSqueezeSpec, ExciteSpec] | None:
    """Pooling and two dense layers after it as two operators, where a rule has it so.

    ``depthwise``: the convolution whose result is pooled, which may be part of the first.
    """
    for rule in rules_for(target):
        if hasattr(rule, "gate"):
            return rule.gate(depthwise, pool, first, second, target)
    return None


def schedule(
    spec: Spec, target: TargetSpec, records: Records | None = None, vectors: int | None = None
) -> Scheduled:
    """Schedule ``spec``: by its tuning record, else analytically by the first rule that takes it.

    ``vectors``: that knob's value, for weights that are packed already. A record whose kernel has
    changed since (another `fingerprint`) is not applied, and the note says so. Raises LookupError
    if no rule takes the spec: the rules of a target must cover all.
    """
    rules = [rule for rule in rules_for(target) if rule.takes(spec, target)]
    if not rules:
        raise LookupError(f"no rule takes {type(spec).__name__} {spec} on {target.name}")
    note = ""
    found = [(rule, records(spec, rule.name)) for rule in rules] if records else []
    for rule, recorded in found:
        if recorded is None:
            continue
        try:
            knobs = rule.knobs_class(**recorded.knobs)
            result = scheduled(rule, spec, knobs, "static" if recorded.static else "tuned")
        except (TypeError, ValueError) as error:  # knobs of another version of the template
            note = f"record not applied: {error}"
            continue
        if vectors is not None and knobs.vectors != vectors:
            note = "record not applied: its weights are packed otherwise than the first batch's"
            continue
        if fingerprint(result.function) == recorded.fingerprint:
            return result
        note = "record not applied: the kernel has changed since it was measured"
    given = () if vectors is None else (vectors,)
    analytic = rules[0].analytic(spec, target, *given)
    return dataclasses.replace(scheduled(rules[0], spec, analytic, "analytic"), note=note)


def scheduled(rule: Rule, spec: Spec, knobs: Knobs, source: str) -> Scheduled:
    """``spec`` scheduled by a rule with the given knobs."""
    pack = getattr(rule, "pack_weight", None)  # only operators with weights have one
    return Scheduled(
        function=rule.build(spec, knobs),
        rule=rule.name,
        source=source,
        knobs=dataclasses.asdict(knobs),
        pack_weight=partial(pack, spec, knobs) if pack else None,
    )


def fingerprint(function: tirx.PrimFunc) -> str:
    """A kernel's identity: equal for equal TensorIR, in every process (64 bits, hexadecimal)."""
    import tvm_ffi

    return f"{tvm_ffi.structural_hash(function) & (2**64 - 1):016x}"
