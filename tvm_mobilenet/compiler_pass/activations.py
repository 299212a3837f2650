"""Recognise activation functions in the forms that the frontend promises."""

from __future__ import annotations

from tvm import relax

from tvm_mobilenet.schedules.spec import Activation

from .relax_graph import RelaxGraph, Step, scalar_of

Match = tuple[Activation, list[Step]]


def match_activation(graph: RelaxGraph, var: relax.Var, first: Step | None = None) -> Match | None:
    """The activation applied to ``var``, with its steps in order.

    Without ``first`` it must use ``var`` up: nothing else may read it. With ``first`` the match
    must begin with that step, and ``var`` may have other readers. Values inside never may.
    """
    absorbing = first is None
    if absorbing and var in graph.returned:
        return None
    start = graph.sole_user(var) if absorbing else first
    if start is None:  # hard-swish reads its argument twice
        users = graph.users(var)
        match = _hard_swish(graph, var, users[0]) if len(users) == 2 else None
        return match if match and match[1][-1] is users[1] else None
    if start.is_call("relax.nn.relu"):
        return Activation("clip"), [start]
    if start.is_call("relax.sigmoid"):
        return Activation("sigmoid"), [start]
    if bounds := _clip_bounds(start):
        return Activation("clip", lower=bounds[0], upper=bounds[1]), [start]
    return _hard_sigmoid(graph, start) or _hard_swish(graph, var, start)


def _hard_sigmoid(graph: RelaxGraph, multiply: Step) -> Match | None:
    """``clip(x * alpha + beta, 0, 1)``"""
    add = graph.sole_user(multiply.var)
    clip = graph.sole_user(add.var) if add else None
    if not (add and clip and multiply.is_call("relax.multiply") and add.is_call("relax.add")):
        return None
    alpha, beta = scalar_of(multiply.value.args[1]), scalar_of(add.value.args[1])
    if alpha is None or beta is None or _clip_bounds(clip) != (0.0, 1.0):
        return None
    return Activation("hardsigmoid", alpha=alpha, beta=beta), [multiply, add, clip]


def _hard_swish(graph: RelaxGraph, var: relax.Var, add: Step) -> Match | None:
    """``x * (clip(x + 3, 0, 6) / 6)``"""
    clip = graph.sole_user(add.var)
    divide = graph.sole_user(clip.var) if clip else None
    product = graph.sole_user(divide.var) if divide else None
    if not (clip and divide and product):
        return None
    if not (add.is_call("relax.add") and divide.is_call("relax.divide")):
        return None
    if scalar_of(add.value.args[1]) != 3.0 or _clip_bounds(clip) != (0.0, 6.0):
        return None
    operands = set(product.value.args) if product.is_call("relax.multiply") else set()
    if scalar_of(divide.value.args[1]) != 6.0 or operands != {var, divide.var}:
        return None
    return Activation("hardswish"), [add, clip, divide, product]


def _clip_bounds(step: Step) -> tuple[float, float] | None:
    if not step.is_call("relax.clip"):
        return None
    return float(step.value.args[1].value), float(step.value.args[2].value)
