"""Elementwise operators, normalisation, activations, linear algebra and reductions."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.nn import functional

from tvm_mobilenet.parity.torch_operators.call import (
    Call,
    Unsupported,
    Value,
    elementwise,
    operator,
)


def _fold(function: Callable[[Value, Value], Value]) -> Callable[..., Value]:
    return lambda *values: functools.reduce(function, values)


def _divide(a: Value, b: Value) -> Value:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


elementwise(
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


@operator("BatchNormalization")
def _batch_normalization(call: Call) -> Value:
    if call.attribute("training_mode", 0):
        raise Unsupported("in training mode has no fixed result")
    scale, bias, mean, variance = (call[i] for i in range(1, 5))
    return functional.batch_norm(
        call[0], mean, variance, scale, bias, eps=call.attribute("epsilon", 1e-5)
    )


@operator("Clip")
def _clip(call: Call) -> Value:
    low, high = call.optional(1), call.optional(2)
    return call[0].clone() if low is None and high is None else torch.clamp(call[0], low, high)


@operator("HardSigmoid")
def _hard_sigmoid(call: Call) -> Value:
    alpha, beta = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    return torch.clamp(alpha * call[0] + beta, 0.0, 1.0)


@operator("LeakyRelu")
def _leaky_relu(call: Call) -> Value:
    return functional.leaky_relu(call[0], call.attribute("alpha", 0.01))


@operator("PRelu")
def _prelu(call: Call) -> Value:
    return torch.where(call[0] < 0, call[0] * call[1], call[0])


@operator("Elu")
def _elu(call: Call) -> Value:
    return functional.elu(call[0], call.attribute("alpha", 1.0))


@operator("Gelu")
def _gelu(call: Call) -> Value:
    return functional.gelu(call[0], approximate=call.attribute("approximate", "none"))


@operator("Softmax")
def _softmax(call: Call) -> Value:
    return torch.softmax(call[0], dim=call.attribute("axis", -1))


@operator("LogSoftmax")
def _log_softmax(call: Call) -> Value:
    return torch.log_softmax(call[0], dim=call.attribute("axis", -1))


@operator("Dropout")
def _dropout(call: Call) -> Value:
    training = call.optional(2)
    if training is not None and bool(training):
        raise Unsupported("in training mode has no fixed result")
    return call[0].clone()


@operator("Gemm")
def _gemm(call: Call) -> Value:
    a = call[0].T if call.attribute("transA", 0) else call[0]
    b = call[1].T if call.attribute("transB", 0) else call[1]
    result = call.attribute("alpha", 1.0) * (a @ b)
    bias = call.optional(2)
    return result if bias is None else result + call.attribute("beta", 1.0) * bias


@operator("ReduceMean")
def _reduce_mean(call: Call) -> Value:
    return _reduce(call, torch.mean)


@operator("ReduceSum")
def _reduce_sum(call: Call) -> Value:
    return _reduce(call, torch.sum)


@operator("ReduceMax")
def _reduce_max(call: Call) -> Value:
    return _reduce(call, torch.amax)


def _reduce(call: Call, function: Callable[..., Value]) -> Value:
    axes = call.integers(1, "axes")
    if not axes:
        if call.attribute("noop_with_empty_axes", 0):
            return call[0].clone()
        axes = list(range(call[0].dim()))
    return function(call[0], dim=axes, keepdim=bool(call.attribute("keepdims", 1)))
