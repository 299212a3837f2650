"""Flat rows of a profile: one a call, one a function, or one a kind of layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.profiling import counters

if TYPE_CHECKING:
    from tvm_mobilenet.profiling.profile import OperatorProfile

By = Literal["layer", "op", "kind"]
BY: tuple[By, ...] = ("layer", "op", "kind")


class _Identified(Protocol):
    """An operator call of a network, as far as grouping goes."""

    @property
    def index(self) -> int: ...
    @property
    def symbol(self) -> str: ...
    @property
    def kind(self) -> str: ...


Operator = TypeVar("Operator", bound=_Identified)


def grouped(operators: Sequence[Operator], by: By) -> list[list[Operator]]:
    """The operators that share a row; InputError when `by` is not one of BY."""
    if by not in BY:
        raise InputError(f"by must be one of {', '.join(BY)}, not {by!r}")
    groups: dict[Any, list[Operator]] = {}
    for operator in operators:
        key = {"layer": operator.index, "op": operator.symbol, "kind": operator.kind}[by]
        groups.setdefault(key, []).append(operator)
    return list(groups.values())


def row_of(
    group: Sequence[OperatorProfile], by: By, cumulative: float, percentiles: tuple[float, float]
) -> dict[str, Any]:
    """What the calls of a row have in common; `percentiles`: median and 90th of their sum."""
    head = group[0]
    time, flops, moved = (
        sum(getattr(operator, name) for operator in group) for name in ("time", "flops", "bytes")
    )
    firsts = [operator.first for operator in group]
    roofs = [operator.roof for operator in group if operator.roof is not None]
    least = sum(r.microseconds for r in roofs) if len(roofs) == len(group) else None
    single = by == "layer"
    return {
        "name": {"layer": head.name, "op": head.symbol, "kind": head.kind}[by],
        "index": head.index if single else None,
        "kind": head.kind,
        "symbol": None if by == "kind" else head.symbol,
        "shape": None if by == "kind" else head.shape,
        "onnx_nodes": [node for operator in group for node in operator.onnx_nodes],
        "calls": len(group),
        "first_us": None if None in firsts else sum(filter(None, firsts)),
        "time_us": time,
        "mean_us": sum(operator.mean for operator in group),
        "p50_us": percentiles[0],
        "p90_us": percentiles[1],
        "share": sum(operator.share for operator in group),
        "cumulative_share": cumulative,
        "flops": flops,
        "bytes": moved,
        "gflops": flops / time / 1e3,
        "gb_per_s": moved / time / 1e3,
        "intensity": flops / moved if moved else None,
        "roof_us": least,
        "roof_share": None if least is None else least / time,
        "bound": same([o.roof.bound for o in group if o.roof]),
        "threads": max(operator.threads for operator in group),
        "schedule": same([operator.schedule for operator in group]),
        "source": same([operator.source for operator in group]),
        "knobs": dict(head.knobs) if by != "kind" else None,
        **counters.row([operator.counts for operator in group]),
    }


def same(values: Sequence[str]) -> str | None:
    """The value that all share, "mixed", or None for none."""
    distinct = set(values)
    return None if not distinct else distinct.pop() if len(distinct) == 1 else "mixed"
