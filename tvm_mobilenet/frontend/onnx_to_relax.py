"""ONNX -> Relax: check, simplify, import node by node in normal forms, name what came of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.frontend import limits, read
from tvm_mobilenet.frontend.model import ImportedModel, TensorInfo
from tvm_mobilenet.frontend.normal_forms import NORMAL_FORMS, static_shape
from tvm_mobilenet.frontend.quiet import quiet
from tvm_mobilenet.frontend.simplify import CONSTANT_MARK, simplify, source_nodes

if TYPE_CHECKING:
    import torch


def import_onnx(
    model: onnx.ModelProto | str | Path,
    *,
    batch: int | None = None,
    name: str | None = None,
    module: torch.nn.Module | None = None,
    source: str | None = None,
) -> ImportedModel:
    """Imports an ONNX model of the MobileNet family (float32, NCHW or not, opset 13 or later).

    model: a file, or a model in memory. batch: size of a symbolic batch axis (default 1). name:
    default the file's stem or the graph's name. module: the PyTorch module that it came from.
    source: how to call the model in messages (default the path).

    Raises InputError, one line: the file is missing, truncated or no ONNX; external data is
    missing; TVM cannot import an operator (each with node, domain, opset); a size is dynamic, zero
    or huge; an input or weight is not float32; nothing is computed; `batch` contradicts the model.
    """
    if isinstance(model, onnx.ModelProto):
        name = name or model.graph.name or "model"
        where = source or f"ONNX model '{name}'"
    else:
        path = Path(model)
        name, where = name or path.stem, source or str(path)
        model = read.read_file(path)
    try:
        fixed = read.checked(model, where, batch)
    except InputError:
        raise
    except Exception as error:  # damage that decodes: names that are no text, unknown types
        raise InputError(
            f"{where}: not valid ONNX ({type(error).__name__}: {read.first_line(error)})"
        ) from error
    mod, node_names, value_names = _to_relax(fixed, where)
    main = mod["main"]
    results = main.ret_ty.fields if isinstance(main.ret_ty, relax.TupleType) else [main.ret_ty]
    inputs = _infos(read.graph_inputs(fixed.graph), [p.ty for p in main.params], where)
    outputs = _infos(fixed.graph.output, results, where)
    for output in outputs:
        if output.name in read.batched_outputs(model.graph) and (
            output.shape[:1] != inputs[0].shape[:1]
        ):
            raise InputError(
                f"{where}: output '{output.name}' comes out as {list(output.shape)} for batch "
                f"{inputs[0].shape[0]}; a Reshape in the model fixes the batch, so export it again"
            )
    return ImportedModel(name, mod, fixed, inputs, outputs, module, where, node_names, value_names)


_WEIGHT_TYPES = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.INT64,
    onnx.TensorProto.INT32,
    onnx.TensorProto.BOOL,
)
_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


class _Importer(ONNXGraphImporter):
    """TVM's importer, taken node by node: normal forms, errors that name the node, origins."""

    def __init__(self, where: str) -> None:
        super().__init__({}, None)
        self._where = where
        self._in_function = False
        self.ends: list[tuple[str, onnx.NodeProto]] = []
        self.values: dict[str, str] = {}  # variable -> the ONNX value that it was made for

    def from_onnx(self, graph: onnx.GraphProto, opset: int) -> tvm.IRModule:
        try:
            return super().from_onnx(graph, opset)
        except BaseException:
            if self._in_function:
                self.bb._end_block()  # or TVM complains on stderr when the builder is freed
            raise

    def _sanitize_name(self, name: str) -> str:
        return _identifier(name)

    def _construct_nodes(self, graph: onnx.GraphProto) -> None:
        self._in_function = True
        for node in graph.node:
            try:
                super()._construct_nodes(onnx.GraphProto(node=[node]))
                for output in node.output:
                    self._emit(output, node)
            except InputError:
                raise
            except Exception as error:  # TVM's converters raise whatever they meet
                raise InputError(
                    f"{self._where}: node '{source_nodes(node)[0]}' ({node.op_type}, opset "
                    f"{self.opset}) cannot be imported: {read.first_line(error)}"
                ) from error

    def _emit(self, output: str, node: onnx.NodeProto) -> None:
        """Binds the value to a variable of its own, and notes that the node's work ends there."""
        value = self._nodes.get(output)
        if isinstance(value, tvm.ir.Call | relax.TupleGetItem):
            self._nodes[output] = value = self.bb.emit(value)
        if isinstance(value, relax.Var):
            self._check_size(value, node)
            self.ends.append((value.name, node))
            self.values.setdefault(value.name, output)

    def _check_size(self, value: relax.Var, node: onnx.NodeProto) -> None:
        if not isinstance(value.ty, relax.TensorType):
            return
        shape = value.ty.shape
        if shape is None or not all(isinstance(dim, tvm.tirx.IntImm) for dim in shape):
            raise InputError(
                f"{self._where}: node '{source_nodes(node)[0]}' ({node.op_type}) has an output "
                "whose size depends on data; only static shapes can be built"
            )
        limits.check_shape(
            static_shape(value), f"{self._where}: node '{source_nodes(node)[0]}' ({node.op_type})"
        )

    def _convert_operator(self, op_name: str, inputs: Any, attrs: dict, opset: int) -> Any:
        rule = NORMAL_FORMS.get(op_name)
        result = rule(inputs, attrs) if rule else None
        if result is not None:
            return self.bb.normalize(result)
        result = super()._convert_operator(op_name, inputs, attrs, opset)
        if op_name in _RESHAPES and isinstance(result, tvm.ir.Call):
            return self.bb.normalize(relax.op.reshape(inputs[0], static_shape(result)))
        return result


def _to_relax(
    model: onnx.ModelProto, where: str
) -> tuple[tvm.IRModule, dict[str, tuple[str, ...]], dict[str, str]]:
    try:
        with quiet():
            simple = simplify(model)
            _check_weight_types(simple, where)
            importer = _Importer(where)
            mod = importer.from_onnx(simple.graph, read.opset_of(simple))
            if not importer.ends:
                raise InputError(f"{where}: the outputs do not depend on the inputs")
            nodes = _nodes_of_bindings(mod["main"], importer.ends)
            mod = _tidied(mod)
    except InputError:
        raise
    except Exception as error:  # a graph can be odd in ways that no check above foresees
        root = _root_cause(error)
        raise InputError(
            f"{where}: cannot be imported ({type(root).__name__}: {read.first_line(root)})"
        ) from error
    names = _binding_names(mod["main"], nodes)
    mod["main"] = _Renamer(names).visit_expr(mod["main"])
    values = {names[old]: value for old, value in importer.values.items() if old in names}
    return mod, {names[old]: source_nodes(nodes[old]) for old in names}, values


def _tidied(mod: tvm.IRModule) -> tvm.IRModule:
    """Without constant subexpressions, trivial bindings and what nothing uses."""
    passes = [
        relax.transform.FoldConstant(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.DeadCodeElimination(),
    ]
    return tvm.ir.transform.Sequential(passes)(mod)


def _root_cause(error: BaseException) -> BaseException:
    return _root_cause(error.__cause__) if error.__cause__ else error


def _check_weight_types(simple: onnx.ModelProto, where: str) -> None:
    """InputError when a constant that simplification has left is neither float32 nor an index."""
    for tensor in simple.graph.initializer:
        if tensor.data_type not in _WEIGHT_TYPES:
            raise InputError(
                f"{where}: weight '{tensor.name.removesuffix(CONSTANT_MARK)}' is "
                f"{read.type_name(tensor.data_type)}; only float32 models can be built, so export "
                "it without quantisation or reduced precision"
            )


def _nodes_of_bindings(
    main: relax.Function, ends: list[tuple[str, onnx.NodeProto]]
) -> dict[str, onnx.NodeProto]:
    """Binding -> ONNX node. Bindings come in node order; each node's run to its end."""
    end_of = dict(reversed(ends))
    nodes: dict[str, onnx.NodeProto] = {}
    open_run: list[str] = []
    for binding in _bindings(main):
        open_run.append(binding.var.name)
        if node := end_of.get(binding.var.name):
            nodes |= dict.fromkeys(open_run, node)
            open_run = []
    # What follows the last node only gathers the outputs.
    return nodes | dict.fromkeys(open_run, ends[-1][1])


def _binding_names(main: relax.Function, nodes: Mapping[str, onnx.NodeProto]) -> dict[str, str]:
    """Old name -> new: the ONNX value's for a node's last binding, plus the operator for others."""
    used = {parameter.name for parameter in main.params}
    bindings = list(_bindings(main))
    last = {nodes[b.var.name].output[0]: b.var.name for b in bindings}
    names = {}
    for binding in bindings:
        old = binding.var.name
        stem = _identifier(nodes[old].output[0])
        if last[nodes[old].output[0]] != old:
            stem += f"_{_operator(binding.value)}"
        new, count = stem, 1
        while new in used:
            new, count = f"{stem}_{count}", count + 1
        used.add(new)
        names[old] = new
    return names


def _operator(value: Any) -> str:
    """`conv2d` for a call of relax.nn.conv2d, the PrimFunc's name for a call_tir."""
    if not isinstance(value, tvm.ir.Call):
        return "value"
    if isinstance(value.op, tvm.ir.Op) and value.op.name == "relax.call_tir":
        return value.args[0].name_hint
    return value.op.name.rsplit(".", 1)[-1] if isinstance(value.op, tvm.ir.Op) else "call"


def _bindings(main: relax.Function) -> list[Any]:
    return [binding for block in main.body.blocks for binding in block.bindings]


def _identifier(name: str) -> str:
    """A Relax name made from an ONNX one: letters, digits and underscores."""
    word = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    return word if word and not word[0].isdigit() else f"v_{word}"


@relax.expr_functor.mutator
class _Renamer(relax.PyExprMutator):
    """Gives the bindings of a function new names."""

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__()
        self._names = names

    def visit_dataflow_var_def_(self, var: relax.DataflowVar) -> relax.Var:
        return self._renamed(var, relax.DataflowVar)

    def visit_var_def_(self, var: relax.Var) -> relax.Var:
        return self._renamed(var, relax.Var) if var.name in self._names else var

    def _renamed(self, var: relax.Var, kind: type) -> relax.Var:
        new = kind(self._names[var.name], var.ty)
        self.set_var_remap(var, new)
        return new


def _infos(
    values: Iterable[onnx.ValueInfoProto], types: Iterable[Any], where: str
) -> tuple[TensorInfo, ...]:
    infos = []
    for value, ty in zip(values, types, strict=True):
        if not isinstance(ty, relax.TensorType):
            raise InputError(
                f"{where}: '{value.name}' is no tensor; a model maps tensors to tensors"
            )
        infos.append(TensorInfo(value.name, tuple(int(dim) for dim in ty.shape), str(ty.dtype)))
    return tuple(infos)
