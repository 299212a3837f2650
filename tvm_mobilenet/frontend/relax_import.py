"""ONNX -> Relax: TVM's importer, with one spelling per operation and a name for every binding."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

from tvm_mobilenet.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable


def _constant(expr: Any) -> np.ndarray | None:
    """The value of a Relax constant as an array, or None when it is no constant."""
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


def _shape(expr: Any) -> tuple[int, ...]:
    return tuple(int(dim) for dim in expr.ty.shape)


def _per_channel(value: np.ndarray, rank: int) -> Any:
    """A [C] vector as a constant that broadcasts over NCHW: [1, C, 1, 1]."""
    return relax.const(value.reshape(1, -1, *[1] * (rank - 2)).astype("float32"))


def _conv(inputs: Any, attributes: dict, build: Callable) -> Any:
    """conv2d with explicit four-sided padding; the bias is an add of a [1, C, 1, 1] constant."""
    data, weight, bias = inputs[0], inputs[1], inputs[2]
    if len(_shape(data)) != 4:
        return None
    kernel = _shape(weight)[2:]
    strides = list(attributes.get("strides", (1, 1)))
    dilations = list(attributes.get("dilations", (1, 1)))
    pads = list(attributes.get("pads", (0, 0, 0, 0)))
    auto = attributes.get("auto_pad", b"NOTSET").decode()
    if auto.startswith("SAME"):
        total = [
            max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
            for size, s, d, k in zip(_shape(data)[2:], strides, dilations, kernel, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = small + large if auto == "SAME_UPPER" else large + small
    elif auto == "VALID":
        pads = [0, 0, 0, 0]
    out = relax.op.nn.conv2d(
        data, weight, strides, pads, dilations, groups=attributes.get("group", 1)
    )
    if bias is None:
        return out
    value = _constant(bias)
    if value is None:
        return relax.op.add(out, relax.op.reshape(bias, (1, -1, 1, 1)))
    return relax.op.add(out, _per_channel(value, 4))


def _batch_norm(inputs: Any, attributes: dict, build: Callable) -> Any:
    """A batch norm that could not be folded: multiply and add of [1, C, 1, 1] constants."""
    parameters = [_constant(value) for value in inputs[1:5]]
    if any(value is None for value in parameters):
        return None
    gamma, beta, mean, variance = (value.astype("float64") for value in parameters)  # type: ignore[union-attr]
    scale = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    rank = len(_shape(inputs[0]))
    scaled = relax.op.multiply(inputs[0], _per_channel(scale, rank))
    return relax.op.add(scaled, _per_channel(beta - mean * scale, rank))


def _hard_sigmoid(inputs: Any, attributes: dict, build: Callable) -> Any:
    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    scaled = relax.op.multiply(inputs[0], relax.const(alpha, "float32"))
    return relax.op.clip(relax.op.add(scaled, relax.const(beta, "float32")), 0.0, 1.0)


def _hard_swish(inputs: Any, attributes: dict, build: Callable) -> Any:
    shifted = relax.op.add(inputs[0], relax.const(3.0, "float32"))
    gate = relax.op.divide(relax.op.clip(shifted, 0.0, 6.0), relax.const(6.0, "float32"))
    return relax.op.multiply(inputs[0], gate)


def _clip(inputs: Any, attributes: dict, build: Callable) -> Any:
    """relu for bounds (0, none), clip for two constant bounds; else TVM's own form."""
    low, high = (
        None if bound is None else _constant(bound) for bound in (inputs[1], inputs[2])
    )
    if (low is None and inputs[1] is not None) or (high is None and inputs[2] is not None):
        return None
    lower = -np.inf if low is None or np.isnan(low) else float(low)
    upper = np.inf if high is None or np.isnan(high) else float(high)
    if lower == 0 and upper == np.inf:
        return relax.op.nn.relu(inputs[0])
    if np.isinf(lower) or np.isinf(upper) or lower > upper:
        return None
    return relax.op.clip(inputs[0], lower, upper)


def _mean(data: Any, axes: list[int], keepdims: bool) -> Any:
    rank = len(_shape(data))
    axes = sorted(axis % rank for axis in axes)
    mean = relax.op.mean(data, axes, keepdims=True)
    if keepdims:
        return mean
    kept = [size for axis, size in enumerate(_shape(data)) if axis not in axes]
    return relax.op.reshape(mean, kept)


def _reduce_mean(inputs: Any, attributes: dict, build: Callable) -> Any:
    axes = attributes.get("axes")
    if inputs[1] is not None:
        given = _constant(inputs[1])
        axes = None if given is None else given.tolist()
    return _mean(inputs[0], list(axes), bool(attributes.get("keepdims", 1))) if axes else None


def _global_pool(inputs: Any, attributes: dict, build: Callable) -> Any:
    return _mean(inputs[0], list(range(2, len(_shape(inputs[0])))), keepdims=True)


def _average_pool(inputs: Any, attributes: dict, build: Callable) -> Any:
    """An average pool whose window is the whole picture is a global one."""
    whole = tuple(attributes["kernel_shape"]) == _shape(inputs[0])[2:]
    if not whole or any(attributes.get("pads", ())) or attributes.get("auto_pad", b"") in (
        b"SAME_UPPER",
        b"SAME_LOWER",
    ):
        return None
    return _global_pool(inputs, attributes, build)


def _gemm(inputs: Any, attributes: dict, build: Callable) -> Any:
    """matmul(x[N, K], w[K, M]) + bias[M] with transposition and scales folded into constants."""
    data, weight, bias = inputs[0], _constant(inputs[1]), inputs[2]
    bias_value = None if bias is None else _constant(bias)
    if attributes.get("transA") or weight is None or (bias is not None and bias_value is None):
        return None
    weight = weight.T if attributes.get("transB") else weight
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    weight = np.ascontiguousarray(weight if alpha == 1.0 else weight * np.float32(alpha))
    out = relax.op.matmul(data, relax.const(weight))
    if bias_value is None:
        return out
    bias_value = bias_value if beta == 1.0 else bias_value * np.float32(beta)
    return relax.op.add(out, relax.const(bias_value))


def _as_reshape(inputs: Any, attributes: dict, build: Callable) -> Any:
    """Flatten, Squeeze, Unsqueeze and Reshape of a tensor: reshape to a static shape."""
    out = build()
    if not isinstance(out.ty, relax.TensorType) or _constant(out) is not None:
        return out
    return relax.op.reshape(inputs[0], _shape(out))


_NORMAL_FORMS: dict[str, Callable] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Conv": _conv,
    "Flatten": _as_reshape,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "ReduceMean": _reduce_mean,
    "Reshape": _as_reshape,
    "Squeeze": _as_reshape,
    "Unsqueeze": _as_reshape,
}


class _Importer(ONNXGraphImporter):
    """TVM's importer, node by node: own normal forms, a binding per ONNX value, clear errors."""

    def __init__(self) -> None:
        super().__init__({}, None, sanitize=False)
        self.finals: list[tuple[Any, onnx.NodeProto]] = []

    def _construct_nodes(self, graph: onnx.GraphProto) -> None:
        for node in graph.node:
            single = onnx.GraphProto(node=[node])
            super()._construct_nodes(single)
            for name in node.output:
                value = self._nodes.get(name)
                if isinstance(value, tvm.ir.Call | relax.TupleGetItem):
                    self._nodes[name] = value = self.bb.emit(value)
                if isinstance(value, relax.Var):
                    self.finals.append((value, node))

    def _convert_operator(self, op_name: str, inputs: Any, attrs: dict, opset: int) -> Any:
        def build() -> Any:
            return super(_Importer, self)._convert_operator(op_name, inputs, attrs, opset)

        rule = _NORMAL_FORMS.get(op_name)
        out = rule(inputs, attrs, build) if rule else None
        return build() if out is None else self.bb.normalize(out)
