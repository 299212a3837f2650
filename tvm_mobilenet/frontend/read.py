"""Reads an ONNX model and checks all that can be said before it is compiled.

Every complaint is an `InputError` of one line: which file, what is wrong, what to do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.frontend import limits, mistakes

OLDEST_OPSET = 13
# HardSwish, which hard-swish patterns are rewritten to, appeared in 14; 18 is a well-trodden one.
_REWRITABLE_OPSET, _RAISED_OPSET = 14, 18
_DEFAULT_DOMAINS = ("", "ai.onnx")
_CONTRIB_DOMAIN = "com.microsoft"
_AXES = ("batch", "channels", "height", "width")


def read_file(path: Path) -> ModelProto:
    """The model in a file, external data loaded. InputError when it cannot be read whole."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
        # whatever the suffix: onnx would read some as JSON or text
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a directory, not an .onnx file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read it: {error.strerror or error}") from None
    except (DecodeError, ValueError, TypeError):
        raise InputError(f"{path}: {_what_else(head)}") from None
    if not model.ir_version or not model.HasField("graph"):
        raise InputError(f"{path}: {_what_else(head)}")
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            _load_external(tensor, path)
    return model


def _what_else(head: bytes) -> str:
    if head == b"PK\x03\x04":
        return (
            "not an ONNX model but a zip archive, as torch.save writes; give weights with --weights"
        )
    return "not an ONNX model, or it is truncated; export or download it again"


def _load_external(tensor: TensorProto, path: Path) -> None:
    from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor

    location = ExternalDataInfo(tensor).location
    try:
        load_external_data_for_tensor(tensor, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        if not (path.parent / location).exists():
            reason = f"{path.parent / location} is missing; it belongs beside the model"
        else:
            reason = first_line(error)
        raise InputError(
            f"{path}: cannot load the external data of '{tensor.name}': {reason}"
        ) from None
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def checked(model: ModelProto, where: str, batch: int | None = None) -> ModelProto:
    """A copy of the model that the importer can take: valid, static shapes, opset 14 or later.

    where: how messages call the model. batch: size for a symbolic batch axis (default 1); a model
    with a fixed batch of another size is refused.
    """
    if not model.graph.node:
        raise InputError(f"{where}: the graph has no nodes")
    if not model.graph.output:
        raise InputError(f"{where}: the graph has no outputs, so there is nothing to compute")
    limits.check_size(_nodes(model), where)
    original, model = model, onnx.ModelProto()
    model.CopyFrom(original)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    _check_tensors(model, where)
    _check_operators(model, where)
    _check_training(model, where)
    limits.check_windows(_nodes(model), where)
    types = {tensor.name: tensor.data_type for tensor in _tensors(model.graph)}
    mistakes.check_faults(_nodes(model), where, types)
    _fix_shapes(model, where, batch)
    _check_validity(model, where)
    return _raised_opset(model, where)


def opset_of(model: ModelProto) -> int:
    """The version of the default operator set; 1 where none is named, as ONNX has it."""
    versions = [e.version for e in model.opset_import if e.domain in _DEFAULT_DOMAINS]
    return max(versions, default=1)


def graph_inputs(graph: GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must give: those without an initializer."""
    constants = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in constants]


def batched_outputs(graph: GraphProto) -> list[str]:
    """The outputs whose first axis is declared as the symbolic batch of an input."""
    firsts = {value.name: value.type.tensor_type.shape.dim[:1] for value in graph.output}
    inputs = [value.type.tensor_type.shape.dim[:1] for value in graph_inputs(graph)]
    symbols = {dim.dim_param for dims in inputs for dim in dims if dim.dim_param}
    return [name for name, dims in firsts.items() if any(d.dim_param in symbols for d in dims)]


def _check_tensors(model: ModelProto, where: str) -> None:
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise InputError(
                f"{where}: the data of '{tensor.name}' is external and not loaded; give the path "
                "of the .onnx file, or call onnx.load with load_external_data=True"
            )
        try:
            # Strings have no fixed size; they are refused as weights later.
            onnx.numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{where}: tensor '{tensor.name}' of shape {list(tensor.dims)} does not match its "
                f"data: {first_line(error)}"
            ) from None


def _check_operators(model: ModelProto, where: str) -> None:
    from tvm.relax.frontend.onnx.onnx_frontend import _get_convert_map

    known = {*_get_convert_map(), "Constant", "If"}
    local = {(function.domain, function.name) for function in model.functions}
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = opset_of(model)
    unknown: dict[str, list[str]] = defaultdict(list)
    for node in _nodes(model):
        if (node.domain, node.op_type) in local:
            continue
        standard = onnx.defs.has(node.op_type, "")
        if node.domain in _DEFAULT_DOMAINS:
            version, label = opset, "ai.onnx"
            importable = standard and node.op_type in known
        else:
            # TVM's importer looks at the operator's name only: a foreign Relu would become ONNX's.
            version, label = versions.get(node.domain, 0), node.domain
            importable = node.domain == _CONTRIB_DOMAIN and not standard and node.op_type in known
        if not importable:
            unknown[f"{node.op_type} (domain {label}, opset {version})"].append(f"'{node.name}'")
    if unknown:
        listed = "; ".join(f"{what} at node {', '.join(at)}" for what, at in unknown.items())
        raise InputError(f"{where}: operators that TVM cannot import: {listed}")


def _check_training(model: ModelProto, where: str) -> None:
    for node in _nodes(model):
        if node.op_type == "BatchNormalization" and any(
            a.name == "training_mode" and a.i for a in node.attribute
        ):
            raise InputError(
                f"{where}: node '{node.name}' is a BatchNormalization in training mode; call "
                "module.eval() before the export"
            )


def _check_validity(model: ModelProto, where: str) -> None:
    # The checker insists on the outputs' shapes, which nobody else needs.
    shapeless = [value for value in model.graph.output if not _has_shape(value)]
    try:
        for value in shapeless:
            value.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise InputError(f"{where}: not valid ONNX: {first_line(error)}") from None
    for value in shapeless:
        value.type.tensor_type.ClearField("shape")


def _has_shape(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.HasField("shape"))


def _fix_shapes(model: ModelProto, where: str, batch: int | None) -> None:
    """Writes static shapes into the graph's inputs and drops stale shapes elsewhere."""
    if batch is not None and batch < 1:
        raise InputError(f"batch {batch} is not a whole number of at least 1")
    names = set()
    for value in graph_inputs(model.graph):
        kind = value.type.tensor_type
        if kind.elem_type != TensorProto.FLOAT:
            raise InputError(
                f"{where}: input '{value.name}' is {type_name(kind.elem_type)}; only float32 "
                "inputs can be built, so move the conversion out of the model"
            )
        if not _has_shape(value):
            raise InputError(
                f"{where}: input '{value.name}' has no shape; export the model with a fixed one"
            )
        names |= _fix_input(value, where, batch)
    _fix_outputs(model, names, batch)
    del model.graph.value_info[:]


def _fix_input(value: onnx.ValueInfoProto, where: str, batch: int | None) -> set[str]:
    """Makes one input static; returns the name of its symbolic batch, if it has one."""
    dims = value.type.tensor_type.shape.dim
    symbols = set()
    for axis, dim in enumerate(dims):
        label = _AXES[axis] if len(dims) == len(_AXES) else f"axis {axis}"
        if dim.HasField("dim_value"):
            if dim.dim_value < 1:
                raise InputError(
                    f"{where}: input '{value.name}' has {label} {dim.dim_value}; it must be at "
                    "least 1"
                )
            if axis == 0 and batch is not None and dim.dim_value != batch:
                raise InputError(
                    f"{where}: input '{value.name}' has a fixed batch of {dim.dim_value}, so "
                    f"batch {batch} cannot be built; export the model with a dynamic batch axis"
                )
        elif axis == 0:
            if dim.dim_param:
                symbols.add(dim.dim_param)
            dim.dim_value = batch or 1
        elif dim.dim_param and dim.dim_param in symbols:
            dim.dim_value = batch or 1
        else:
            named = f" ('{dim.dim_param}')" if dim.dim_param else ""
            raise InputError(
                f"{where}: input '{value.name}' has a dynamic {label}{named}, axis {axis}; kernels "
                "are built for one size: export it fixed, or fix it with 'python -m "
                f"onnxruntime.tools.make_dynamic_shape_fixed --input_name {value.name} "
                "--input_shape 1,3,224,224 IN.onnx OUT.onnx'"
            )
    limits.check_shape([dim.dim_value for dim in dims], f"{where}: input '{value.name}'")
    return symbols


def _fix_outputs(model: ModelProto, symbols: set[str], batch: int | None) -> None:
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param in symbols:
                dim.dim_value = batch or 1


def _raised_opset(model: ModelProto, where: str) -> ModelProto:
    opset = opset_of(model)
    if opset >= _REWRITABLE_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, _RAISED_OPSET)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(
            f"{where}: opset {opset} cannot be raised to {_RAISED_OPSET} ({first_line(error)}); "
            f"export the model again with opset {OLDEST_OPSET} or later"
        ) from None


def _nodes(model: ModelProto) -> Iterator[onnx.NodeProto]:
    yield from _graph_nodes(model.graph)
    for function in model.functions:
        yield from function.node


def _graph_nodes(graph: GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graph_nodes(attribute.g)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in _graph_nodes(graph):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t


def type_name(elem_type: int) -> str:
    """How messages call an ONNX element type."""
    return TensorProto.DataType.Name(elem_type).lower() if elem_type else "of unknown type"


def first_line(error: BaseException) -> str:
    """The first line of an exception's text that says something; its type where none does."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
