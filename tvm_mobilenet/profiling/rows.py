"""Flat rows of a profile: one a call, one a function, or one a kind of layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.profiling.layers import layer_name

By = Literal["layer", "op", "kind"]
BY: tuple[By, ...] = ("layer", "op", "kind")


@dataclass(frozen=True)
class OperatorCall:
    """One operator call of a network, as its bundle describes it."""

    index: int
    symbol: str
    kind: str  # of layers.KINDS
    onnx_nodes: tuple[str, ...]
    shape: str
    schedule: str
    source: str
    knobs: Mapping[str, Any]

    @property
    def name(self) -> str:
        """See `layer_name`."""
        return layer_name(self.onnx_nodes, self.symbol)


def described(index: int, kind: str, description: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `OperatorCall`; description: the operator's entry in the manifest."""
    return {
        "index": index,
        "symbol": str(description["symbol"]),
        "kind": kind,
        "onnx_nodes": tuple(description["onnx_nodes"]),
        "shape": str(description["shape"]),
        "schedule": str(description["schedule"]),
        "source": str(description["source"]),
        "knobs": description["knobs"],
    }


Operator = TypeVar("Operator", bound=OperatorCall)


def grouped(operators: Sequence[Operator], by: By) -> list[list[Operator]]:
    """The operators that share a row; InputError when `by` is not one of BY."""
    if by not in BY:
        raise InputError(f"by must be one of {', '.join(BY)}, not {by!r}")
    groups: dict[Any, list[Operator]] = {}
    for operator in operators:
        key = {"layer": operator.index, "op": operator.symbol, "kind": operator.kind}[by]
        groups.setdefault(key, []).append(operator)
    return list(groups.values())


def row_of(group: Sequence[OperatorCall], by: By, figures: Mapping[str, Any]) -> dict[str, Any]:
    """What the calls of a row have in common, with its figures in between."""
    head = group[0]
    return {
        "name": {"layer": head.name, "op": head.symbol, "kind": head.kind}[by],
        "index": head.index if by == "layer" else None,
        "kind": head.kind,
        "symbol": None if by == "kind" else head.symbol,
        "shape": None if by == "kind" else head.shape,
        "onnx_nodes": [node for operator in group for node in operator.onnx_nodes],
        "calls": len(group),
        **figures,
        "schedule": same([operator.schedule for operator in group]),
        "source": same([operator.source for operator in group]),
        "knobs": dict(head.knobs) if by != "kind" else None,
    }


def same(values: Sequence[str]) -> str | None:
    """The value that all share, "mixed", or None for none."""
    distinct = set(values)
    return None if not distinct else distinct.pop() if len(distinct) == 1 else "mixed"
