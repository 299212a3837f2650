"""Mult-adds and parameters of a network, layer by layer, as the MobileNet papers count them.

The convention (arXiv 1704.04861, section 3.1): mult-adds are the multiply-accumulates of the
convolutions and fully connected layers, D_K * D_K * M * N * D_F * D_F for a standard convolution,
padding counted like pixels; biases, batch norm, activations and pooling count nothing.
Parameters are the weights of the same layers, without biases and batch norm: only so come table
2's 74.59 / 1.06 / 0.02 / 24.33 % and the 1.32 M of 0.50 MobileNet-160.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from tvm_mobilenet.errors import InputError

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

KINDS = ("stem", "depthwise", "pointwise", "conv", "squeeze-excite", "dense")


@dataclass(frozen=True)
class Layer:
    """One convolution or fully connected layer; shapes as the framework stores them."""

    name: str
    kind: str  # one of KINDS
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    mult_adds: int
    parameters: int


@dataclass(frozen=True)
class KindCost:
    """The layers of one kind together; shares are fractions of the whole network."""

    kind: str
    layers: int
    mult_adds: int
    mult_adds_share: float
    parameters: int
    parameters_share: float


@dataclass(frozen=True)
class Cost:
    """The cost of one pass over one batch."""

    layers: tuple[Layer, ...]
    all_parameters: int  # also biases and batch norm

    @property
    def mult_adds(self) -> int:
        """Multiply-accumulates of all layers."""
        return sum(layer.mult_adds for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Weights of all layers, without biases and batch norm."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def kinds(self) -> tuple[KindCost, ...]:
        """One row for each kind that occurs, in the order of KINDS."""
        rows = []
        for kind in KINDS:
            layers = [layer for layer in self.layers if layer.kind == kind]
            if layers:
                mult_adds = sum(layer.mult_adds for layer in layers)
                parameters = sum(layer.parameters for layer in layers)
                rows.append(
                    KindCost(
                        kind,
                        len(layers),
                        mult_adds,
                        mult_adds / max(self.mult_adds, 1),
                        parameters,
                        parameters / max(self.parameters, 1),
                    )
                )
        return tuple(rows)


def cost(module: nn.Module, input_shape: Sequence[int]) -> Cost:
    """Cost of a module with one input; traced on shapes alone, so nothing is computed.

    Functional calls count as well as layer objects; a layer used twice counts its mult-adds
    twice and its parameters once. Raises InputError when the module rejects the shape.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    counter = _Counter()
    seen: list[Any] = []  # keeps every tensor alive: their ids are the keys

    def value(tensor: torch.Tensor) -> _Value:
        seen.append(tensor)
        return _Value(id(tensor), tuple(tensor.shape))

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            outputs = [value(leaf) for leaf in tree_leaves(result) if torch.is_tensor(leaf)]
            name = func.overloadpacket.__name__
            if name == "convolution":
                x, weight, *_, transposed, _, groups = args
                counter.convolution(
                    value(x), value(weight), outputs[0], groups=groups, transposed=transposed
                )
            elif name in ("mm", "bmm"):
                counter.product(value(args[0]), value(args[1]), outputs[0])
            elif name in ("addmm", "baddbmm"):
                counter.product(value(args[1]), value(args[2]), outputs[0])
            else:
                leaves = tree_leaves((args, kwargs or {}))
                inputs = [value(leaf) for leaf in leaves if torch.is_tensor(leaf)]
                averages = name in ("mean", "avg_pool2d", "_adaptive_avg_pool2d")
                counter.other(inputs, outputs, averages=averages)
            return result

    for name, tensor in [*module.named_buffers(), *module.named_parameters()]:
        counter.constant(value(tensor), name)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    training = [layer for layer in module.modules() if layer.training]
    try:
        for layer in training:
            layer.training = False
        with torch.no_grad(), _shapes_only(device):
            images = torch.empty(tuple(input_shape), device=device)
            counter.network_input(value(images))
            with Recorder():
                module(images)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"cannot trace {type(module).__name__} on input {tuple(input_shape)}: {reason}"
        ) from error
    finally:
        for layer in training:
            layer.training = True
    return counter.cost(sum(p.numel() for p in module.parameters()))


def _shapes_only(device: torch.device) -> AbstractContextManager[object]:
    """Within it, modules on the device compute shapes but no values."""
    if device.type == "meta":
        return nullcontext()
    # Several times slower to import and run, but takes modules with weights.
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def cost_of_onnx(
    model: onnx.ModelProto, *, batch: int | None = None, resolution: int | None = None
) -> Cost:
    """Cost of an ONNX model; batch (default 1) and resolution (224) fill in symbolic dimensions.

    `all_parameters` counts every floating-point constant, so a model with batch norm not
    folded also counts its running statistics. Raises InputError when a fixed dimension differs
    from the one asked for, a shape cannot be inferred or an operator cannot be counted.
    """
    import onnx
    import onnx.inliner

    original, model = model, onnx.ModelProto()
    model.CopyFrom(original)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _fix_input_shapes(model, batch, resolution)
    shapes = _infer_shapes(model)
    constants = _constants_of(model)
    shapes |= {name: tuple(tensor.dims) for name, tensor in constants.items()}

    def value(name: str) -> _Value:
        if name not in shapes:
            raise InputError(f"ONNX model: the shape of {name!r} cannot be inferred")
        return _Value(name, shapes[name])

    counter = _Counter()
    for name in constants:
        counter.constant(value(name), name)
    for graph_input in model.graph.input:
        if graph_input.name not in constants:
            counter.network_input(value(graph_input.name))
    for node in model.graph.node:
        label = node.name or node.output[0]
        if node.op_type in _UNCOUNTED or any(a.HasField("g") for a in node.attribute):
            raise InputError(f"ONNX node {label!r}: cannot count the operator {node.op_type}")
        if node.op_type == "Conv":
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            x, weight = value(node.input[0]), value(node.input[1])
            counter.convolution(x, weight, value(node.output[0]), groups=groups, label=label)
        elif node.op_type in ("Gemm", "MatMul"):
            x, weight = value(node.input[0]), value(node.input[1])
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            depth = x.shape[0] if transposed else x.shape[-1]
            counter.product(x, weight, value(node.output[0]), depth=depth, label=label)
        else:
            # Shapes matter for averages only; optional inputs and outputs have empty names.
            averages = node.op_type in ("GlobalAveragePool", "AveragePool", "ReduceMean")
            inputs = [_Value(n, shapes.get(n, ())) for n in node.input if n]
            outputs = [_Value(n, shapes.get(n, ())) for n in node.output if n]
            counter.other(inputs, outputs, averages=averages)
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    return counter.cost(sum(math.prod(t.dims) for t in constants.values() if t.data_type in floats))


def by_resolution_rule(at_224: Cost, resolution: int) -> float:
    """Mult-adds as the MobileNetV1 paper prints them in tables 7 and 8: cost at 224 times rho^2.

    The rule (section 3.4) also scales the fully connected layer, which in truth costs the same
    at every resolution, so a count of what is computed is higher by up to 1.0 M: 290.7, not 290,
    for 1.0 MobileNet-160.
    """
    return at_224.mult_adds * (resolution / 224) ** 2


class _Value(NamedTuple):
    """A tensor in the dataflow: the identity of what it holds, and its shape."""

    key: Hashable
    shape: tuple[int, ...]


class _Counter:
    """Counts layers and tells their kinds from the dataflow, fed operation by operation.

    The kinds need no names of classes or nodes: a stem reads the network's input; what comes
    after global pooling is the dense head, or, if it is multiplied back onto a feature map,
    squeeze-excite.
    """

    _IMAGE, _FEATURES = -1, -2  # origins; those from 0 up are global poolings

    def __init__(self) -> None:
        self._origins: dict[Hashable, int] = {}
        self._constants: dict[Hashable, str] = {}
        self._layers: list[tuple[Layer, int]] = []  # with the pooling it depends on, else < 0
        self._poolings = 0
        self._gates: set[int] = set()
        self._counted: set[str] = set()

    def constant(self, weight: _Value, name: str) -> None:
        """A parameter, buffer or initializer."""
        self._constants[weight.key] = name

    def network_input(self, image: _Value) -> None:
        """What the network reads."""
        self._origins[image.key] = self._IMAGE

    def convolution(
        self,
        x: _Value,
        weight: _Value,
        out: _Value,
        *,
        groups: int,
        transposed: bool = False,
        label: str | None = None,
    ) -> None:
        """Weight is (outputs, inputs / groups, *kernel), or inputs first when transposed."""
        positions = x if transposed else out
        if groups == x.shape[1] > 1:
            kind = "depthwise"
        elif self._origins.get(x.key) == self._IMAGE:
            kind = "stem"
        else:
            kind = "pointwise" if math.prod(weight.shape[2:]) == 1 and groups == 1 else "conv"
        mult_adds = math.prod(positions.shape) * math.prod(weight.shape[1:])
        self._add(label, kind, x, weight, out, mult_adds)

    def product(
        self,
        x: _Value,
        weight: _Value,
        out: _Value,
        *,
        depth: int = 0,
        label: str | None = None,
    ) -> None:
        """A matrix product that sums over depth elements, by default x's last dimension."""
        mult_adds = math.prod(out.shape) * (depth or x.shape[-1])
        self._add(label, "dense", x, weight, out, mult_adds)

    def other(
        self, inputs: Sequence[_Value], outputs: Sequence[_Value], *, averages: bool = False
    ) -> None:
        """Any operation that costs nothing here, but carries values on."""
        if inputs and all(x.key in self._constants for x in inputs):
            for out in outputs:
                self._constants[out.key] = self._constants[inputs[0].key]
            return
        origins = {self._origins[x.key] for x in inputs if x.key in self._origins}
        if not origins:
            return
        origin = min(origins)
        if origin < 0:  # pooled vectors that meet a feature map
            self._gates.update(origins - {self._IMAGE, self._FEATURES})
            origin = origin if len(origins) == 1 else self._FEATURES
        if averages and math.prod(outputs[0].shape) == math.prod(inputs[0].shape[:2]):
            origin, self._poolings = self._poolings, self._poolings + 1
        for out in outputs:
            self._origins[out.key] = origin

    def cost(self, all_parameters: int) -> Cost:
        """What has been counted."""
        return Cost(tuple(self._settled()), all_parameters)

    def _add(
        self,
        label: str | None,
        kind: str,
        x: _Value,
        weight: _Value,
        out: _Value,
        mult_adds: int,
    ) -> None:
        stored = self._constants.get(weight.key)
        # An exporter that folds batch norm loses the weight's name but keeps the node's.
        name = label or stored or "functional"
        if stored is not None and stored.endswith(".weight"):
            name = stored.removesuffix(".weight")
        parameters = 0
        if stored is not None and stored not in self._counted:
            self._counted.add(stored)
            parameters = math.prod(weight.shape)
        origin = self._origins.get(x.key, self._FEATURES)
        layer = Layer(name, kind, x.shape, weight.shape, out.shape, mult_adds, parameters)
        self._layers.append((layer, origin))
        self._origins[out.key] = origin if origin >= 0 else self._FEATURES

    def _settled(self) -> Iterable[Layer]:
        for layer, origin in self._layers:
            if origin < 0:
                yield layer
            elif origin in self._gates:
                yield replace(layer, kind="squeeze-excite")
            else:
                yield replace(layer, kind="dense")


# Operators that multiply and accumulate but that cost_of_onnx does not know.
_UNCOUNTED = frozenset(
    {
        "Attention",
        "ConvInteger",
        "ConvTranspose",
        "DeformConv",
        "Einsum",
        "GRU",
        "LSTM",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "RNN",
    }
)


def _fix_input_shapes(model: onnx.ModelProto, batch: int | None, resolution: int | None) -> None:
    wanted = (batch, None, resolution, resolution)
    defaults = (1, 3, 224, 224)
    weights = {tensor.name for tensor in model.graph.initializer}
    for graph_input in model.graph.input:
        if graph_input.name in weights:
            continue
        for axis, dim in enumerate(graph_input.type.tensor_type.shape.dim[:4]):
            if not dim.HasField("dim_value"):
                dim.dim_value = wanted[axis] or defaults[axis]
            elif wanted[axis] not in (None, dim.dim_value):
                raise InputError(
                    f"ONNX input {graph_input.name!r} has a fixed size of {dim.dim_value} on axis "
                    f"{axis}, not {wanted[axis]}; export the model again with that size"
                )
    # Shapes stored at export may still have the symbols.
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")


def _infer_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of every value that has a static one."""
    import onnx.shape_inference

    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"ONNX model: shapes cannot be inferred: {reason}") from error
    graph = inferred.graph
    shapes = {}
    for info in [*graph.input, *graph.value_info, *graph.output]:
        dims = info.type.tensor_type.shape.dim
        if info.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[info.name] = tuple(d.dim_value for d in dims)
    return shapes


def _constants_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers and the tensors of Constant nodes, by the name of their value."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors = [a.t for a in node.attribute if a.name == "value"]
            constants.update(zip(node.output, tensors, strict=False))
    return constants
