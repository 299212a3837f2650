"""Recognise activation functions in the forms that the frontend promises."""

from __future__ import annotations

from tvm import relax

from tvm_mobilenet.schedules.spec import Activation

from .relax_graph import RelaxGraph, Step, scalar_of

Match = tuple[Activation, list[Step]]


def match_activation(graph: RelaxGraph, var: relax.Var) -> Match | None:
    """The activation applied to ``var``, with its steps in order, if it uses ``var`` up.

    Nothing but the activation may read ``var`` or a value inside it.
    """
    if var in graph.returned:
        return None
    user = graph.sole_user(var)
    if user is None:
        return _hard_swish(graph, var)
    if user.is_call("relax.nn.relu"):
        return Activation("clip"), [user]
    if user.is_call("relax.sigmoid"):
        return Activation("sigmoid"), [user]
    if user.is_call("relax.clip"):
        lower, upper = (float(bound.value) for bound in user.value.args[1:3])
        return Activation("clip", lower=lower, upper=upper), [user]
    return _hard_sigmoid(graph, user)


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


def _hard_swish(graph: RelaxGraph, var: relax.Var) -> Match | None:
    """``x * (clip(x + 3, 0, 6) / 6)``"""
    users = graph.users(var)
    if len(users) != 2:
        return None
    add, product = users
    clip = graph.sole_user(add.var)
    divide = graph.sole_user(clip.var) if clip else None
    if not (clip and divide and add.is_call("relax.add") and divide.is_call("relax.divide")):
        return None
    if scalar_of(add.value.args[1]) != 3.0 or _clip_bounds(clip) != (0.0, 6.0):
        return None
    if scalar_of(divide.value.args[1]) != 6.0 or graph.sole_user(divide.var) is not product:
        return None
    operands = set(product.value.args) if product.is_call("relax.multiply") else set()
    if operands != {var, divide.var}:
        return None
    return Activation("hardswish"), [add, clip, divide, product]


def _clip_bounds(step: Step) -> tuple[float, float] | None:
    if not step.is_call("relax.clip"):
        return None
    return float(step.value.args[1].value), float(step.value.args[2].value)
