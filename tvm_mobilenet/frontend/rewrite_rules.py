"""Own ONNX rewrite rules, where the library has none or gives two constants one name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

# Bounds of a Clip from the constants in its spelling; NaN for a constant that is none.
Bounds = Callable[..., tuple[float, float]]


def own_rules() -> list[pattern.RewriteRule]:
    """Clip for every pair of bounds, `/ 6` for Keras' `* (1/6)`, which the library's HardSwish
    rules know, and per-channel factors and terms behind a Conv (a batch norm spelled out) into it.
    """
    clips: list[tuple[Callable, Bounds]] = [
        (lambda op, x, low, high: op.Min(op.Max(x, low), high), _ordered),
        (lambda op, x, low, high: op.Min(op.Max(low, x), high), _ordered),
        (lambda op, x, low, high: op.Max(op.Min(x, high), low), _if_ordered),
        (lambda op, x, low, high: op.Max(op.Min(high, x), low), _if_ordered),
        (lambda op, x, high: op.Min(op.Relu(x), high), _relu_below),
        (lambda op, x, low, high: op.Clip(op.Relu(x), low, high), _relu_between),
    ]
    sixth = pattern.RewriteRule(
        lambda op, x, low, high, factor: op.Clip(x, low, high) * factor,
        lambda op, x, low, high, **_: op.Div(op.Clip(x, low, high), _constant(op, 6.0)),
        lambda context, factor, **_: math.isclose(_scalar(factor), 1 / 6, rel_tol=1e-6),
        name="sixth_as_division",
    )
    factor = pattern.RewriteRule(
        lambda op, x, channels: op.Conv(x, _allow_other_inputs=True, _outputs=["conv"]) * channels,
        lambda op, x, conv, channels: _conv(op, x, conv, factor=_numpy(channels)),
        lambda context, conv, channels, **_: _is_per_channel(conv, channels),
        name="factor_into_conv",
    )
    term = pattern.RewriteRule(
        lambda op, x, channels: op.Conv(x, _allow_other_inputs=True, _outputs=["conv"]) + channels,
        lambda op, x, conv, channels: _conv(op, x, conv, term=_numpy(channels)),
        lambda context, conv, channels, **_: _is_per_channel(conv, channels),
        name="term_into_conv",
    )
    clip_rules = [_clip_rule(spelling, bounds) for spelling, bounds in clips]
    return [*clip_rules, *sixth.commute(), *factor.commute(), *term.commute()]


def _ordered(low: float, high: float) -> tuple[float, float]:
    return low, high


def _if_ordered(low: float, high: float) -> tuple[float, float]:
    # Max(Min(x, high), low) is low where the bounds cross, Clip is high.
    return (low, high) if low <= high else (math.nan, math.nan)


def _relu_below(high: float) -> tuple[float, float]:
    return 0.0, high


def _relu_between(low: float, high: float) -> tuple[float, float]:
    return (low if math.isnan(low) else max(low, 0.0)), high


def _clip_rule(spelling: Callable, bounds: Bounds) -> pattern.RewriteRule:
    def have_bounds(context: Any, x: ir.Value, **scalars: ir.Value) -> bool:
        return not any(map(math.isnan, bounds(**_values(scalars))))

    def as_clip(op: Any, x: ir.Value, **scalars: ir.Value) -> ir.Value:
        return op.Clip(x, *(_constant(op, bound) for bound in bounds(**_values(scalars))))

    return pattern.RewriteRule(spelling, as_clip, have_bounds, name="bounds_as_clip")


def _values(scalars: dict[str, ir.Value]) -> dict[str, float]:
    return {name: _scalar(value) for name, value in scalars.items()}


def _scalar(value: ir.Value) -> float:
    """The value of a constant float32 scalar, NaN for anything else."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size != 1 or tensor.dtype != ir.DataType.FLOAT:
        return math.nan
    return float(tensor.numpy().item())


def _is_per_channel(conv: ir.Value, value: ir.Value) -> bool:
    """Whether value is a [C, 1, 1] or [1, C, 1, 1] constant behind a constant Conv of C channels.

    Not for scalars: `conv + 3` may begin a hard-sigmoid.
    """
    node = conv.producer()
    if node is None or len(node.inputs) < 2:
        return False
    constants = [
        ir.convenience.get_const_tensor(v) for v in (value, *node.inputs[1:]) if v is not None
    ]
    if any(c is None or c.dtype != ir.DataType.FLOAT for c in constants):
        return False
    shape, weight = _numpy(value).shape, _numpy(node.inputs[1])
    channels = (1,) * (4 - len(shape)) + shape == (1, len(weight), 1, 1)
    return weight.ndim == 4 and channels and len(weight) > 1


def _numpy(value: ir.Value | None) -> np.ndarray:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    assert tensor is not None, "the rule's condition lets constants through only"
    return tensor.numpy()


def _conv(
    op: Any,
    x: ir.Value,
    conv: ir.Value,
    *,
    factor: np.ndarray | float = 1.0,
    term: np.ndarray | float = 0.0,
) -> ir.Value:
    """factor * conv + term as one Conv; factor and term have one value or one a channel."""
    node = conv.producer()
    assert node is not None
    weight = _numpy(node.inputs[1])
    bias = _numpy(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(len(weight), np.float32)
    weight = weight * np.reshape(factor, (-1, 1, 1, 1))
    bias = bias * np.reshape(factor, -1) + np.reshape(term, -1)
    return op.Conv(x, _constant(op, weight), _constant(op, bias), **node.attributes)


def _constant(op: Any, value: np.ndarray | float) -> ir.Value:
    # A Constant node, not an initializer: those need names, and equal names replace each other.
    return op.Constant(value=ir.tensor(np.asarray(value, np.float32)))
