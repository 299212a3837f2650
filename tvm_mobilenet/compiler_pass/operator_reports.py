"""What the compiler tells of every operator: where its schedule came from, and its cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax, tirx

from .relax_graph import constant_of
from .results import Result
from .schedule_rest import Rest

if TYPE_CHECKING:
    from tvm_mobilenet.frontend import ImportedModel


@dataclass(frozen=True)
class OperatorReport:
    """One call in the compiled network, in order of execution.

    ``source`` says where its schedule came from: ``tuned``, ``analytic`` or ``fallback``;
    ``bytes`` are those of every tensor read or written once, ``weight_bytes`` those of its
    constants as they are stored; ``parallel``: it has a loop that is spread over the threads.
    """

    symbol: str
    kind: str
    shape: str
    onnx_nodes: tuple[str, ...]
    source: str
    schedule: str
    knobs: dict[str, Any]
    mult_adds: int
    bytes: int
    weight_bytes: int
    parallel: bool
    note: str = ""  # why a tuning record that there is was not applied
    result: Result | None = None  # which tensor of the model it computes


def calls_in_order(mod: tvm.IRModule) -> list[tuple[str, int]]:
    """The functions that ``main`` calls, one entry a call: name and bytes of its constants."""
    calls: list[tuple[str, int]] = []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
                constants = [constant_of(argument) for argument in value.args[1].fields]
                weight_bytes = sum(c.nbytes for c in constants if c is not None)
                calls.append((value.args[0].name_hint, weight_bytes))
    return calls


def _has_parallel_loop(statement: Any) -> bool:
    """Whether a loop in it is spread over the threads (TVM's Python has no visitor for this)."""
    if isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.PARALLEL:
        return True
    parts = [getattr(statement, name, None) for name in ("body", "block", "then_case", "else_case")]
    parts += getattr(statement, "seq", ())
    return any(_has_parallel_loop(part) for part in parts if part is not None)


def onnx_nodes(
    imported: ImportedModel, call_sites: list[tuple[str, tuple[str, ...]]]
) -> dict[str, list[tuple[str, ...]]]:
    """Per own function, the ONNX nodes of each of its calls, in order."""
    nodes: dict[str, list[tuple[str, ...]]] = {}
    for name, bindings in call_sites:
        behind = [n for binding in bindings for n in imported.node_names.get(binding, ())]
        nodes.setdefault(name, []).append(tuple(dict.fromkeys(behind)))
    return nodes


def report(
    name: str,
    weight_bytes: int,
    mod: tvm.IRModule,
    scheduled: dict[str, Any],
    rest: dict[str, Rest],
    nodes: dict[str, list[tuple[str, ...]]],
) -> OperatorReport:
    if name in scheduled:
        spec, result = scheduled[name]
        return OperatorReport(
            symbol=name,
            kind=spec.kind,
            shape=str(spec),
            onnx_nodes=nodes[name].pop(0),
            source=result.source,
            schedule=result.rule,
            knobs=result.knobs,
            mult_adds=spec.mult_adds,
            bytes=spec.min_bytes,
            weight_bytes=weight_bytes,
            parallel=_has_parallel_loop(mod[name].body),
            note=result.note,
        )
    assert name in rest, name
    params = mod[name].params
    shapes = [[int(e) for e in p.ty.shape] for p in params if hasattr(p.ty, "shape")]
    return OperatorReport(
        symbol=name,
        kind="other",
        shape=" ".join("x".join(map(str, shape)) or "1" for shape in shapes),
        onnx_nodes=(),
        source=rest[name].source,
        schedule="sketch" if rest[name].source == "tuned" else "fallback",
        knobs={},
        mult_adds=0,
        bytes=sum(4 * math.prod(shape) for shape in shapes),
        weight_bytes=weight_bytes,
        parallel=_has_parallel_loop(mod[name].body),
        note=rest[name].note,
    )
