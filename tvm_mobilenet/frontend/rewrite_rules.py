"""Own ONNX rewrite rules, where the library has none or names its new constants twice."""

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
    """Clip for every pair of bounds, and `/ 6` for Keras' `* (1/6)`, which HardSwish rules know."""
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
    return [*(_rule(spelling, bounds) for spelling, bounds in clips), *sixth.commute()]


def _ordered(low: float, high: float) -> tuple[float, float]:
    return low, high


def _if_ordered(low: float, high: float) -> tuple[float, float]:
    # Max(Min(x, high), low) is low where the bounds cross, Clip is high.
    return (low, high) if low <= high else (math.nan, math.nan)


def _relu_below(high: float) -> tuple[float, float]:
    return 0.0, high


def _relu_between(low: float, high: float) -> tuple[float, float]:
    return (low if math.isnan(low) else max(low, 0.0)), high


def _rule(spelling: Callable, bounds: Bounds) -> pattern.RewriteRule:
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


def _constant(op: Any, value: float) -> ir.Value:
    # A Constant node, not an initializer: those need names, and equal names replace each other.
    return op.Constant(value=ir.tensor(np.float32(value)))
