"""The reference: a model in PyTorch, at float32 and at float64.

The judge is the user's own PyTorch module where there is one; a model that came as ONNX is
evaluated by `OnnxInTorch`, which shares no code with the importer or the compiler. It follows
onnx.ai/onnx/operators, opset 13 and later.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.parity.judge import SAMPLES
from tvm_mobilenet.parity.samples import Sample

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from tvm_mobilenet.frontend import ImportedModel

Value = torch.Tensor
Peer = Callable[[Mapping[str, "np.ndarray"]], Mapping[str, "np.ndarray"]]  # inputs to outputs


def evaluate(
    imported: ImportedModel,
    inputs: Sequence[Mapping[str, np.ndarray]],
    *,
    kinds: Sequence[str] | None = None,
    peer: Peer | None = None,
) -> list[Sample]:
    """PyTorch's outputs at float32 and float64 for each mapping of inputs by name.

    kinds: of each of the inputs (None: all `SAMPLES`). peer: another float32 implementation of the
    model, whose outputs are noted beside (see `parity.onnxruntime_outputs`).
    """
    module = imported.module if imported.module is not None else OnnxInTorch(imported.onnx)
    single = copy.deepcopy(module).float().eval()
    double = copy.deepcopy(module).double().eval()
    names = [info.name for info in imported.outputs]

    def outputs(model: nn.Module, values: Mapping[str, np.ndarray], dtype: torch.dtype) -> Any:
        arguments = [torch.tensor(values[info.name], dtype=dtype) for info in imported.inputs]
        with torch.inference_mode():
            results = torch.utils._pytree.tree_leaves(model(*arguments))
        if len(results) != len(names):
            raise InputError(
                f"{imported.name}: PyTorch gives {len(results)} outputs, the model has {len(names)}"
            )
        return {name: result.numpy() for name, result in zip(names, results, strict=True)}

    return [
        Sample(
            values,
            outputs(single, values, torch.float32),
            outputs(double, values, torch.float64),
            kind=kind,
            onnxruntime=None if peer is None else peer(values),
        )
        for values, kind in zip(inputs, kinds or [SAMPLES] * len(inputs), strict=True)
    ]


def onnxruntime_outputs(imported: ImportedModel) -> Peer | None:
    """ONNX Runtime on the model, on one thread; None where it is missing or refuses the model."""
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # fatal: what it refuses is said by the result
    try:
        session = onnxruntime.InferenceSession(
            imported.onnx.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except (errors.InvalidGraph, errors.NotImplemented, errors.Fail, errors.InvalidArgument):
        return None
    names = [info.name for info in imported.outputs]
    return lambda values: dict(zip(names, session.run(names, dict(values)), strict=True))


class OnnxInTorch(nn.Module):
    """An ONNX graph of the MobileNet family as a PyTorch module.

    Takes the graph's inputs in order and returns its outputs as a tuple. `.double()` makes it
    compute at float64: every float constant and cast follows the module's precision.
    Raises InputError naming node, operator and opset for anything it does not know.
    """

    precision: torch.Tensor

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        import onnx
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
        self.opset = next(
            (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0
        )
        self.register_buffer("precision", torch.zeros(()))
        self._buffer_of: dict[str, str] = {}
        for number, tensor in enumerate(model.graph.initializer):
            self._buffer_of[tensor.name] = f"constant_{number}"
            self.register_buffer(f"constant_{number}", _tensor(tensor))
        self.input_names = [
            entry.name for entry in model.graph.input if entry.name not in self._buffer_of
        ]
        self.output_names = [entry.name for entry in model.graph.output]
        self.initializers = list(model.graph.initializer)
        self._nodes = list(model.graph.node)
        for number, node in enumerate(self._nodes):
            if node.domain not in ("", "ai.onnx") or node.op_type not in _OPERATORS:
                raise self._error(number, "has no reference in PyTorch")
        self._producer = {
            name: number for number, node in enumerate(self._nodes) for name in node.output if name
        }

    def forward(self, *inputs: Value) -> tuple[Value, ...]:
        """The graph's outputs for its inputs, both in the graph's order."""
        given = dict(zip(self.input_names, inputs, strict=True))
        values = self.values(given, self.output_names)
        return tuple(values[name] for name in self.output_names)

    def values(self, given: Mapping[str, Value], wanted: Iterable[str]) -> dict[str, Value]:
        """Any of the graph's values by name, worked out from any others that lead to them.

        Nothing behind a given value is evaluated; those not wanted are dropped after their last
        use. Raises InputError naming a node that cannot be evaluated, KeyError for a value that
        does not follow from what is given.
        """
        kept = set(wanted)
        values: dict[str, Value] = {
            name: getattr(self, buffer) for name, buffer in self._buffer_of.items()
        }
        values |= given
        numbers = self._between(given, kept)
        last_use = {name: i for i in numbers for name in self._nodes[i].input}
        for number in numbers:
            node = self._nodes[number]
            arguments = [values[name] if name else None for name in node.input]
            call = Call(arguments, _attributes(node), self.opset, self.precision.dtype)
            try:
                results = _OPERATORS[node.op_type](call)
            except _Unsupported as error:
                raise self._error(number, str(error)) from error
            except (RuntimeError, IndexError, ValueError) as error:
                raise self._error(number, f"cannot be evaluated ({error})") from error
            if isinstance(results, torch.Tensor):
                results = (results,)
            # An optional second output (Dropout's mask) may be missing: nothing may use it.
            for name, result in zip(node.output, results, strict=False):
                values.setdefault(name, result)  # what is given stays
            for name in node.input:
                if last_use.get(name) == number and name not in kept:
                    values.pop(name, None)
        return {name: values[name] for name in kept}

    def has_value(self, name: str) -> bool:
        """Whether the graph has a value of that name."""
        return name in self._producer or name in self._buffer_of or name in self.input_names

    def nodes_between(self, given: Iterable[str], wanted: Iterable[str]) -> list[onnx.NodeProto]:
        """The nodes by which wanted values follow from given ones, in order."""
        return [self._nodes[number] for number in self._between(given, wanted)]

    def _between(self, given: Iterable[str], wanted: Iterable[str]) -> list[int]:
        known = {*given, *self._buffer_of, ""}
        numbers: set[int] = set()
        missing = [name for name in wanted if name not in known]
        while missing:
            number = self._producer.get(missing.pop())
            if number is not None and number not in numbers:
                numbers.add(number)
                missing += [name for name in self._nodes[number].input if name not in known]
        return sorted(numbers)

    def _error(self, number: int, problem: str) -> InputError:
        node = self._nodes[number]
        name = f"'{node.name}'" if node.name else f"number {number}"
        domain = f"{node.domain}." if node.domain else ""
        return InputError(
            f"node {name}: operator {domain}{node.op_type} (opset {self.opset}) {problem}; "
            "parity needs the model as a PyTorch module or without it"
        )


class _Unsupported(Exception):
    """An operator's attribute or shape that this reference does not compute."""


class Call:
    """One node's arguments (None where an optional one is left out) and attributes."""

    def __init__(
        self,
        arguments: Sequence[Value | None],
        attributes: Mapping[str, Any],
        opset: int,
        precision: torch.dtype,
    ) -> None:
        self.arguments, self.attributes = arguments, attributes
        self.opset, self.precision = opset, precision

    def __getitem__(self, position: int) -> Value:
        value = self.optional(position)
        if value is None:
            raise _Unsupported(f"lacks its input {position}")
        return value

    def optional(self, position: int) -> Value | None:
        """The argument at that position, or None."""
        return self.arguments[position] if position < len(self.arguments) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute's value, or the default."""
        return self.attributes.get(name, default)

    def integers(self, position: int, name: str) -> list[int] | None:
        """Whole numbers given as an argument (newer opsets) or as an attribute (older ones)."""
        value = self.optional(position)
        if value is not None:
            return [int(number) for number in value.flatten().tolist()]
        return self.attribute(name)


Operator = Callable[[Call], "Value | Sequence[Value]"]
_OPERATORS: dict[str, Operator] = {}


def _operator(*names: str) -> Callable[[Operator], Operator]:
    def register(function: Operator) -> Operator:
        _OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


def _elementwise(**functions: Callable[..., Value]) -> None:
    def operator(function: Callable[..., Value]) -> Operator:
        return lambda call: function(*(call[i] for i in range(len(call.arguments))))

    _OPERATORS.update({name: operator(function) for name, function in functions.items()})


def _fold(function: Callable[[Value, Value], Value]) -> Callable[..., Value]:
    return lambda *values: functools.reduce(function, values)


def _divide(a: Value, b: Value) -> Value:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


_elementwise(
    Abs=torch.abs,
    Add=torch.add,
    Ceil=torch.ceil,
    Div=_divide,
    Equal=torch.eq,
    Erf=torch.erf,
    Exp=torch.exp,
    Floor=torch.floor,
    Greater=torch.gt,
    HardSwish=functional.hardswish,
    Identity=torch.clone,
    Less=torch.lt,
    Log=torch.log,
    MatMul=torch.matmul,
    Max=_fold(torch.maximum),
    Min=_fold(torch.minimum),
    Mish=functional.mish,
    Mul=torch.mul,
    Neg=torch.neg,
    Not=torch.logical_not,
    Pow=torch.pow,
    Reciprocal=torch.reciprocal,
    Relu=torch.relu,
    Sigmoid=torch.sigmoid,
    Softplus=functional.softplus,
    Sqrt=torch.sqrt,
    Sub=torch.sub,
    Sum=_fold(torch.add),
    Tanh=torch.tanh,
    Where=torch.where,
)


# ---------------------------------------------------------------- convolution and pooling


@_operator("Conv")
def _conv(call: Call) -> Value:
    x, weight, bias = call[0], call[1], call.optional(2)
    window = _Window(call, weight.shape[2:])
    convolve = _by_rank("conv", window.rank)
    return convolve(
        window.pad(x, 0.0),
        weight,
        bias,
        stride=window.strides,
        dilation=window.dilations,
        groups=call.attribute("group", 1),
    )


@_operator("MaxPool")
def _max_pool(call: Call) -> Value:
    window = _Window(call, call.attribute("kernel_shape"))
    pool = _by_rank("max_pool", window.rank)
    padded = window.pad(call[0], -math.inf)
    return pool(padded, window.kernel, stride=window.strides, dilation=window.dilations)


@_operator("AveragePool")
def _average_pool(call: Call) -> Value:
    x = call[0]
    window = _Window(call, call.attribute("kernel_shape"))
    if any(step != 1 for step in window.dilations):
        raise _Unsupported("with dilation has no reference in PyTorch")
    pool = _by_rank("avg_pool", window.rank)
    # What counts towards the divisor: the picture; with count_include_pad its padding as well,
    # but never what ceil_mode adds behind it.
    counted = torch.ones_like(x)
    if call.attribute("count_include_pad", 0):
        counted = functional.pad(counted, window.torch_pads, value=1.0)
        counted = functional.pad(counted, window.torch_ceil_pads(x), value=0.0)
    else:
        counted = window.pad(counted, 0.0)
    total, share = (
        pool(v, window.kernel, stride=window.strides) for v in (window.pad(x, 0.0), counted)
    )
    return total / share


@_operator("GlobalAveragePool")
def _global_average_pool(call: Call) -> Value:
    return call[0].mean(dim=list(range(2, call[0].dim())), keepdim=True)


@_operator("GlobalMaxPool")
def _global_max_pool(call: Call) -> Value:
    return call[0].amax(dim=list(range(2, call[0].dim())), keepdim=True)


class _Window:
    """Kernel, strides, dilations and padding of a convolution or pooling node."""

    def __init__(self, call: Call, kernel: Sequence[int]) -> None:
        self.kernel = list(kernel)
        self.rank = len(self.kernel)
        self.strides: list[int] = call.attribute("strides", [1] * self.rank)
        self.dilations: list[int] = call.attribute("dilations", [1] * self.rank)
        self._ceil = bool(call.attribute("ceil_mode", 0))
        size = call[0].shape[2:]
        auto = call.attribute("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            before, after = self._same_pads(size, more_behind=auto == "SAME_UPPER")
        else:
            pads = call.attribute("pads", [0] * 2 * self.rank)
            pads = pads if auto == "NOTSET" else [0] * 2 * self.rank
            before, after = pads[: self.rank], pads[self.rank :]
        self._before, self._after = before, after

    @property
    def torch_pads(self) -> list[int]:
        """The node's padding in PyTorch's order: last axis first, before and after."""
        return _interleave(self._before, self._after)

    def torch_ceil_pads(self, x: Value) -> list[int]:
        """What ceil_mode adds behind the padded input, in PyTorch's order."""
        return _interleave([0] * self.rank, self._ceil_extra(x.shape[2:]))

    def pad(self, x: Value, value: float) -> Value:
        """x with the node's padding and what ceil_mode needs behind it."""
        if any(pad < 0 for pad in (*self._before, *self._after)):
            raise _Unsupported("with negative padding has no reference in PyTorch")
        padded = functional.pad(x, self.torch_pads, value=value)
        return functional.pad(padded, self.torch_ceil_pads(x), value=value)

    def _extents(self) -> list[int]:
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    def _same_pads(self, size: Sequence[int], *, more_behind: bool) -> tuple[list[int], list[int]]:
        total = [
            max((-(-n // stride) - 1) * stride + extent - n, 0)
            for n, stride, extent in zip(size, self.strides, self._extents(), strict=True)
        ]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        return (less, more) if more_behind else (more, less)

    def _ceil_extra(self, size: Sequence[int]) -> list[int]:
        """Missing at the end for the last, partial window; none that would start in the padding."""
        if not self._ceil:
            return [0] * self.rank
        extra = []
        for i, extent in enumerate(self._extents()):
            whole = size[i] + self._before[i] + self._after[i]
            stride = self.strides[i]
            windows = -(-(whole - extent) // stride) + 1
            if (windows - 1) * stride >= size[i] + self._before[i]:
                windows -= 1
            extra.append(max((windows - 1) * stride + extent - whole, 0))
        return extra


def _interleave(before: Sequence[int], after: Sequence[int]) -> list[int]:
    pairs = list(zip(before, after, strict=True))
    return [pad for pair in reversed(pairs) for pad in pair]


def _by_rank(name: str, rank: int) -> Callable[..., Value]:
    if rank not in (1, 2, 3):
        raise _Unsupported(f"over {rank} axes has no reference in PyTorch")
    function: Callable[..., Value] = getattr(functional, f"{name}{rank}d")
    return function


# ---------------------------------------------------------------- normalisation, activation


@_operator("BatchNormalization")
def _batch_normalization(call: Call) -> Value:
    if call.attribute("training_mode", 0):
        raise _Unsupported("in training mode has no fixed result")
    scale, bias, mean, variance = (call[i] for i in range(1, 5))
    return functional.batch_norm(
        call[0], mean, variance, scale, bias, eps=call.attribute("epsilon", 1e-5)
    )


@_operator("Clip")
def _clip(call: Call) -> Value:
    low, high = call.optional(1), call.optional(2)
    return call[0].clone() if low is None and high is None else torch.clamp(call[0], low, high)


@_operator("HardSigmoid")
def _hard_sigmoid(call: Call) -> Value:
    alpha, beta = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    return torch.clamp(alpha * call[0] + beta, 0.0, 1.0)


@_operator("LeakyRelu")
def _leaky_relu(call: Call) -> Value:
    return functional.leaky_relu(call[0], call.attribute("alpha", 0.01))


@_operator("PRelu")
def _prelu(call: Call) -> Value:
    return torch.where(call[0] < 0, call[0] * call[1], call[0])


@_operator("Elu")
def _elu(call: Call) -> Value:
    return functional.elu(call[0], call.attribute("alpha", 1.0))


@_operator("Gelu")
def _gelu(call: Call) -> Value:
    return functional.gelu(call[0], approximate=call.attribute("approximate", "none"))


@_operator("Softmax")
def _softmax(call: Call) -> Value:
    return torch.softmax(call[0], dim=call.attribute("axis", -1))


@_operator("LogSoftmax")
def _log_softmax(call: Call) -> Value:
    return torch.log_softmax(call[0], dim=call.attribute("axis", -1))


@_operator("Dropout")
def _dropout(call: Call) -> Value:
    training = call.optional(2)
    if training is not None and bool(training):
        raise _Unsupported("in training mode has no fixed result")
    return call[0].clone()


# ---------------------------------------------------------------- linear algebra, reduction


@_operator("Gemm")
def _gemm(call: Call) -> Value:
    a = call[0].T if call.attribute("transA", 0) else call[0]
    b = call[1].T if call.attribute("transB", 0) else call[1]
    result = call.attribute("alpha", 1.0) * (a @ b)
    bias = call.optional(2)
    return result if bias is None else result + call.attribute("beta", 1.0) * bias


@_operator("ReduceMean")
def _reduce_mean(call: Call) -> Value:
    return _reduce(call, torch.mean)


@_operator("ReduceSum")
def _reduce_sum(call: Call) -> Value:
    return _reduce(call, torch.sum)


@_operator("ReduceMax")
def _reduce_max(call: Call) -> Value:
    return _reduce(call, torch.amax)


def _reduce(call: Call, function: Callable[..., Value]) -> Value:
    axes = call.integers(1, "axes")
    if not axes:
        if call.attribute("noop_with_empty_axes", 0):
            return call[0].clone()
        axes = list(range(call[0].dim()))
    return function(call[0], dim=axes, keepdim=bool(call.attribute("keepdims", 1)))


# ---------------------------------------------------------------- shape


@_operator("Flatten")
def _flatten(call: Call) -> Value:
    axis = call.attribute("axis", 1) % (call[0].dim() + 1)
    return call[0].reshape(math.prod(call[0].shape[:axis]), -1)


@_operator("Reshape")
def _reshape(call: Call) -> Value:
    shape = [int(n) for n in call[1].tolist()]
    if not call.attribute("allowzero", 0):
        shape = [call[0].shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return call[0].reshape(shape)


@_operator("Squeeze")
def _squeeze(call: Call) -> Value:
    axes = call.integers(1, "axes")
    return call[0].squeeze() if axes is None else call[0].squeeze(tuple(axes))


@_operator("Unsqueeze")
def _unsqueeze(call: Call) -> Value:
    result = call[0]
    axes = call.integers(1, "axes") or []
    rank = result.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        result = result.unsqueeze(axis)
    return result


@_operator("Transpose")
def _transpose(call: Call) -> Value:
    return call[0].permute(call.attribute("perm", list(range(call[0].dim()))[::-1]))


@_operator("Concat")
def _concat(call: Call) -> Value:
    return torch.cat([call[i] for i in range(len(call.arguments))], dim=call.attribute("axis"))


@_operator("Split")
def _split(call: Call) -> Sequence[Value]:
    axis = call.attribute("axis", 0)
    parts = call.integers(1, "split")
    if parts is None:
        count = call.attribute("num_outputs")
        if count is None:
            raise _Unsupported("without sizes has no reference in PyTorch")
        return torch.split(call[0], -(-call[0].shape[axis] // count), dim=axis)
    return torch.split(call[0], parts, dim=axis)


@_operator("Expand")
def _expand(call: Call) -> Value:
    shape = torch.broadcast_shapes(call[0].shape, tuple(int(n) for n in call[1].tolist()))
    return call[0].expand(shape)


@_operator("Pad")
def _pad(call: Call) -> Value:
    x, pads = call[0], call.integers(1, "pads") or []
    axes = call.integers(3, "axes")
    axes = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]
    before, after = [0] * x.dim(), [0] * x.dim()
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[len(axes) + i]
    mode = call.attribute("mode", "constant")
    if mode == "constant":
        value = call.optional(2)
        fill = 0.0 if value is None else float(value)
        return functional.pad(x, _interleave(before, after), value=fill)
    if any((*before[:2], *after[:2])):
        raise _Unsupported(f"in mode {mode} over batch or channels has no reference in PyTorch")
    torch_mode = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode]
    return functional.pad(x, _interleave(before[2:], after[2:]), mode=torch_mode)


@_operator("Shape")
def _shape(call: Call) -> Value:
    shape = list(call[0].shape)[call.attribute("start", 0) : call.attribute("end")]
    return torch.tensor(shape, dtype=torch.int64)


@_operator("Gather")
def _gather(call: Call) -> Value:
    data, axis = call[0], call.attribute("axis", 0) % call[0].dim()
    indices = call[1] % data.shape[axis]
    picked = data.index_select(axis, indices.flatten())
    return picked.reshape(*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])


@_operator("Slice")
def _slice(call: Call) -> Value:
    starts, ends = call.integers(1, "starts") or [], call.integers(2, "ends") or []
    axes, steps = call.integers(3, "axes"), call.integers(4, "steps")
    result = call[0]
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = axes[i] if axes else i, steps[i] if steps else 1
        chosen = range(result.shape[axis])[start:end:step]
        result = result.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64))
    return result


@_operator("Cast")
def _cast(call: Call) -> Value:
    return call[0].to(_torch_type(call.attribute("to"), call.precision))


@_operator("Constant")
def _constant(call: Call) -> Value:
    for name, value in call.attributes.items():
        if name == "value":
            tensor = _tensor(value)
        elif name in ("value_float", "value_floats", "value_int", "value_ints"):
            tensor = torch.tensor(value)
        else:
            break
        return tensor.to(call.precision) if tensor.is_floating_point() else tensor
    raise _Unsupported("of this kind has no reference in PyTorch")


@_operator("ConstantOfShape")
def _constant_of_shape(call: Call) -> Value:
    value = call.attribute("value")
    fill = torch.zeros(1) if value is None else _tensor(value)
    dtype = call.precision if fill.is_floating_point() else fill.dtype
    return torch.full([int(n) for n in call[0].tolist()], fill.item(), dtype=dtype)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    values = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    return {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in values.items()
    }


def _tensor(proto: onnx.TensorProto) -> Value:
    import onnx

    array = torch.from_numpy(onnx.numpy_helper.to_array(proto).copy())
    return array.float() if array.is_floating_point() else array


def _torch_type(onnx_type: int, precision: torch.dtype) -> torch.dtype:
    import onnx

    name = onnx.helper.tensor_dtype_to_np_dtype(onnx_type).name
    if name in ("float16", "float32", "float64", "bfloat16"):
        return precision
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise _Unsupported(f"to {name} has no reference in PyTorch")
    return dtype
