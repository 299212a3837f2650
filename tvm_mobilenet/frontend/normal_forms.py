"""One Relax spelling per operation, whatever the ONNX spelling was.

Each rule takes an ONNX node's inputs (Relax expressions) and attributes and returns the Relax
expression in normal form, or None where TVM's own conversion serves. The package's docstring lists
the forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvm_mobilenet.frontend import limits

# Inputs past the end read as None: the importer's own list type.
Rule = Callable[[Sequence[Any], dict[str, Any]], Any]


def constant(expr: Any) -> np.ndarray | None:
    """The value of a Relax constant as an array, or None when it is no constant."""
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


def static_shape(expr: Any) -> tuple[int, ...]:
    """The shape of a tensor expression; TypeError when a dimension is symbolic."""
    return tuple(int(dim) for dim in expr.ty.shape)


def _per_channel(value: np.ndarray, rank: int) -> Any:
    """A [C] vector as a constant that broadcasts over NCHW: [1, C, 1, 1]."""
    return relax.const(value.reshape(1, -1, *[1] * (rank - 2)).astype("float32"))


def _conv(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """conv2d with explicit four-sided padding; the bias is an add of a [1, C, 1, 1] constant."""
    data, weight, bias = inputs[0], inputs[1], inputs[2]
    if len(static_shape(data)) != 4:
        return None
    kernel = static_shape(weight)[2:]
    strides = list(attributes.get("strides", (1, 1)))
    dilations = list(attributes.get("dilations", (1, 1)))
    pads = list(attributes.get("pads", (0, 0, 0, 0)))
    auto = attributes.get("auto_pad", b"NOTSET").decode()
    if auto.startswith("SAME"):
        sizes = zip(static_shape(data)[2:], strides, dilations, kernel, strict=True)
        total = [
            max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size) for size, s, d, k in sizes
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
    value = constant(bias)
    if value is None:
        return relax.op.add(out, relax.op.reshape(bias, (1, -1, 1, 1)))
    return relax.op.add(out, _per_channel(value, 4))


def _batch_norm(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """A batch norm that could not be folded: multiply and add of [1, C, 1, 1] constants."""
    parameters = [constant(value) for value in inputs[1:5]]
    if any(value is None for value in parameters):
        return None
    gamma, beta, mean, variance = (value.astype("float64") for value in parameters)  # type: ignore[union-attr]
    scale = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    rank = len(static_shape(inputs[0]))
    scaled = relax.op.multiply(inputs[0], _per_channel(scale, rank))
    return relax.op.add(scaled, _per_channel(beta - mean * scale, rank))


def _hard_sigmoid(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    scaled = relax.op.multiply(inputs[0], relax.const(alpha, "float32"))
    return relax.op.clip(relax.op.add(scaled, relax.const(beta, "float32")), 0.0, 1.0)


def _hard_swish(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    shifted = relax.op.add(inputs[0], relax.const(3.0, "float32"))
    gate = relax.op.divide(relax.op.clip(shifted, 0.0, 6.0), relax.const(6.0, "float32"))
    return relax.op.multiply(inputs[0], gate)


def _clip(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """relu for bounds (0, none), clip for two constant bounds; else TVM's own form."""
    low, high = (None if bound is None else constant(bound) for bound in (inputs[1], inputs[2]))
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
    rank = len(static_shape(data))
    axes = sorted(axis % rank for axis in axes)
    mean = relax.op.mean(data, axes, keepdims=True)
    if keepdims:
        return mean
    kept = [size for axis, size in enumerate(static_shape(data)) if axis not in axes]
    return relax.op.reshape(mean, kept)


def _reduce_mean(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    axes = attributes.get("axes")
    if inputs[1] is not None:
        given = constant(inputs[1])
        axes = None if given is None else given.tolist()
    return _mean(inputs[0], list(axes), bool(attributes.get("keepdims", 1))) if axes else None


def _global_pool(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    return _mean(inputs[0], list(range(2, len(static_shape(inputs[0])))), keepdims=True)


def _average_pool(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """An average pool whose window is the whole picture is a global one."""
    whole = tuple(attributes["kernel_shape"]) == static_shape(inputs[0])[2:]
    same = attributes.get("auto_pad", b"").startswith(b"SAME")
    if not whole or same or any(attributes.get("pads", ())):
        return None
    return _global_pool(inputs, attributes)


def _gemm(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """matmul(x[N, K], w[K, M]) + bias[M] with transposition and scales folded into constants."""
    data, weight, bias = inputs[0], constant(inputs[1]), inputs[2]
    bias_value = None if bias is None else constant(bias)
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


def _add(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    return _commutative(relax.op.add, inputs)


def _multiply(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    return _commutative(relax.op.multiply, inputs)


def _commutative(operator: Callable, inputs: Sequence[Any]) -> Any:
    """The constant operand last, and of one of the shapes [], [M] (for 2-D data), [1, C, 1, 1]."""
    data, other = inputs[0], inputs[1]
    if constant(data) is not None:
        data, other = other, data
    value = constant(other)
    if value is None or constant(data) is not None:
        return None
    rank = len(static_shape(data))
    if value.size == 1 and value.ndim <= rank:
        value = value.reshape(())
    elif rank == 2 and value.ndim == 2 and value.shape[0] == 1:
        value = value.reshape(-1)
    elif rank > 2 and value.ndim < rank:
        value = value.reshape(*[1] * (rank - value.ndim), *value.shape)
    return operator(data, relax.const(value))


def _range(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """TVM's own form, which is an array at once: so its length is looked at before."""
    bounds = [constant(value) for value in inputs[:3]]
    if all(value is not None and value.size == 1 for value in bounds):
        start, limit, step = (value.item() for value in bounds)  # type: ignore[union-attr]
        if step:
            limits.check_shape([max(1, math.ceil((limit - start) / step))], "a Range")


def _resize(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """TVM's own form, which knows sizes only: right for scales that give whole sizes.

    ValueError for others, and for the nearest pixel at a scale that is no whole number.
    """
    shape, scales, sizes = static_shape(inputs[0]), inputs[2], inputs[3]
    factors = None if scales is None else constant(scales)
    wanted = None if sizes is None else constant(sizes)
    if wanted is not None and len(wanted) == len(shape):
        factors = wanted / np.array(shape)
    elif factors is not None and len(factors) == len(shape):
        new = np.array(shape) * factors.astype("float64")
        if not np.allclose(new, np.round(new), atol=1e-6):
            raise ValueError(f"scales of {factors.tolist()} give no whole sizes")
    else:
        return None
    nearest = attributes.get("mode", b"nearest") == b"nearest"
    if nearest and not np.allclose(factors, np.round(factors)):
        raise ValueError(f"the nearest pixel at scales of {factors.tolist()}")
    return None


NORMAL_FORMS: dict[str, Rule] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Conv": _conv,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Mul": _multiply,
    "Range": _range,
    "ReduceMean": _reduce_mean,
    "Resize": _resize,
}
