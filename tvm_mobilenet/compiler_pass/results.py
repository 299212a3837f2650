"""Which tensor of the ONNX model each operator of the compiled network computes, and how it lies.

The mapping is kept through the passes: `lower_operators` and `join_operators` note the Relax
bindings behind every own call, TVM's fusion keeps the name of a result that something else reads,
and the frontend knows which binding is which ONNX value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax

from tvm_mobilenet.schedules.spec import LayoutSpec, Spec, SqueezeSpec

from .relax_graph import RelaxGraph, bindings_of, is_kernel_call, shape_of
from .traced_entry import traced_elements

if TYPE_CHECKING:
    from tvm_mobilenet.frontend import ImportedModel

    from .lower_operators import CallSites


@dataclass(frozen=True)
class Result:
    """An operator's result.

    ``tensor`` is the name of the ONNX value, "" where the result is none (inside of what a node
    computes); ``shape`` that value's, else the result's own. ``lanes``: the channels of a block of
    the blocked layout (see `schedules.spec`), 0 where elements lie in the value's own order.
    ``offset`` and ``elements``: its place in the trace (see `traced_entry`), in float32.
    ``dtype``: what its elements are in memory.
    """

    tensor: str
    shape: tuple[int, ...]
    lanes: int
    offset: int
    elements: int
    dtype: str = "float32"


def results(
    scheduled: tvm.IRModule,
    planned: relax.Function,
    imported: ImportedModel,
    call_sites: CallSites,
    specs: Mapping[str, Spec],
) -> list[Result]:
    """One for each kernel call, in order of execution.

    ``scheduled``: the module of the calls before memory planning, ``planned`` its main after it;
    ``specs``: the specifications of own functions, by name.
    """
    names = _names(scheduled, imported, call_sites, specs)
    shapes = _shapes(imported)
    calls = [binding.value for binding in bindings_of(planned) if is_kernel_call(binding.value)]
    found = []
    offset = 0
    for (function, tensor), call in zip(names, calls, strict=True):
        elements = traced_elements(call)
        own = shape_of(call.args[-1])
        shape = shapes.get(tensor, own)
        lanes = _lanes(specs.get(function), shape) if tensor in shapes else 0
        dtype = str(call.args[-1].ty.dtype)
        known = tensor if tensor in shapes else ""
        found.append(Result(known, shape, lanes, offset, elements, dtype))
        offset += elements
    return found


def _shapes(imported: ImportedModel) -> dict[str, tuple[int, ...]]:
    """Shape of every ONNX value that is a binding of the imported module, input or output."""
    shapes = {info.name: info.shape for info in (*imported.inputs, *imported.outputs)}
    for step in RelaxGraph(imported.mod["main"]).steps:
        value = imported.value_names.get(step.var.name)
        if value is not None and isinstance(step.var.ty, relax.TensorType):
            shapes[value] = shape_of(step.var)
    return shapes


def _names(
    mod: tvm.IRModule,
    imported: ImportedModel,
    call_sites: CallSites,
    specs: Mapping[str, Spec],
) -> list[tuple[str, str]]:
    """Function and ONNX value of each call, in order."""
    values = {**imported.value_names, **_parameters(imported)}
    behind: dict[str, list[str]] = {}
    for function, bindings in call_sites:
        behind.setdefault(function, []).append(values.get(bindings[-1], ""))
    graph = RelaxGraph(mod["main"])
    returned = _returned(graph, [info.name for info in imported.outputs])
    found: list[tuple[relax.Var, str, str]] = []
    packed: dict[Any, str] = {}  # what a layout operator reads -> the value that it packs
    for step in graph.steps:
        if not step.is_call("relax.call_tir"):
            continue
        function = step.value.args[0].name_hint
        own = behind.get(function)
        name = own.pop(0) if own else values.get(step.var.name, "")
        if isinstance(specs.get(function), SqueezeSpec):
            name = ""  # shares of a dense layer's sums
        if isinstance(specs.get(function), LayoutSpec):
            packed[step.value.args[1].fields[0]] = name or returned.get(step.var, "")
        found.append((step.var, function, name))
    return [
        (function, name or returned.get(var, "") or packed.get(var, ""))
        for var, function, name in found
    ]


def _parameters(imported: ImportedModel) -> dict[str, str]:
    """The ONNX name of each of main's parameters."""
    parameters = imported.mod["main"].params
    return {
        parameter.name: info.name
        for parameter, info in zip(parameters, imported.inputs, strict=True)
    }


def _returned(graph: RelaxGraph, outputs: Sequence[str]) -> dict[Any, str]:
    """The model's output behind each variable that is one, seen through reshapes."""
    source = {step.var: step.value for step in graph.steps}

    def leaves(expr: Any) -> list[Any]:
        if isinstance(expr, relax.Tuple):
            return [leaf for part in expr.fields for leaf in leaves(part)]
        value = source.get(expr)
        if isinstance(value, relax.Tuple | relax.Var):
            return leaves(value)
        if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.reshape":
            return leaves(value.args[0])
        return [expr]

    found = leaves(graph.function.body.body)
    # one value may be several outputs: the first name serves
    return dict(reversed(list(zip(found, outputs, strict=True))))


def _lanes(spec: Spec | None, shape: tuple[int, ...]) -> int:
    plain = spec is None or (isinstance(spec, LayoutSpec) and spec.direction == "unpack")
    if plain or len(shape) != 4 or shape[2:] == (1, 1):
        return 0
    return spec.lanes  # type: ignore[union-attr]
