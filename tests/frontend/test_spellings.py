"""Every spelling that MobileNet exports use: equal numbers to ONNX Runtime, one normal form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tvm_mobilenet.frontend import ImportedModel, import_onnx

Spelling = Callable[[Any, str], str]


def _shifted(g: Any, x: str, make: Callable[[Any], str]) -> str:
    """relu6(x + 3)."""
    return g.op("Clip", g.op("Add", x, make(3)), make(0), make(6))


def _max_min(g: Any, x: str) -> str:
    return g.op("Min", g.op("Max", x, g.constant(0)), g.constant(6))


RELU: dict[str, Spelling] = {
    "relu": lambda g, x: g.op("Relu", x),
    "clip_from_0": lambda g, x: g.op("Clip", x, g.constant(0)),
    "relu_twice": lambda g, x: g.op("Relu", g.op("Relu", x)),
}
RELU6: dict[str, Spelling] = {
    "clip_initializers": lambda g, x: g.op("Clip", x, g.constant(0), g.constant(6)),
    "clip_constant_nodes": lambda g, x: g.op("Clip", x, g.node_constant(0), g.node_constant(6)),
    "clip_of_relu": lambda g, x: g.op("Clip", g.op("Relu", x), g.constant(0), g.constant(6)),
    "min_of_max": _max_min,
}
HARD_SWISH: dict[str, Spelling] = {
    "hardswish": lambda g, x: g.op("HardSwish", x),
    "times_gate_over_6": lambda g, x: g.op(
        "Mul", x, g.op("Div", _shifted(g, x, g.constant), g.constant(6))
    ),
    "product_over_6": lambda g, x: g.op(
        "Div", g.op("Mul", x, _shifted(g, x, g.node_constant)), g.node_constant(6)
    ),
    "gate_first": lambda g, x: g.op(
        "Mul", g.op("Div", _shifted(g, x, g.node_constant), g.constant(6)), x
    ),
    "times_a_sixth": lambda g, x: g.op(
        "Mul", x, g.op("Mul", _shifted(g, x, g.constant), g.constant(1 / 6))
    ),
    "three_plus_x": lambda g, x: g.op(
        "Mul",
        x,
        g.op(
            "Div",
            g.op("Clip", g.op("Add", g.constant(3), x), g.constant(0), g.constant(6)),
            g.constant(6),
        ),
    ),
    "times_hardsigmoid": lambda g, x: g.op("Mul", x, g.op("HardSigmoid", x, alpha=1 / 6)),
    "hardsigmoid_times": lambda g, x: g.op("Mul", g.op("HardSigmoid", x, alpha=1 / 6, beta=0.5), x),
}
HARD_SIGMOID: dict[str, Spelling] = {
    "hardsigmoid": lambda g, x: g.op("HardSigmoid", x, alpha=1 / 6),
    "hardsigmoid_defaults": lambda g, x: g.op("HardSigmoid", x),
    "gate_over_6": lambda g, x: g.op("Div", _shifted(g, x, g.constant), g.constant(6)),
}
OTHER_CLIPS: dict[str, Spelling] = {
    "clip_without_bounds": lambda g, x: g.op("Clip", x),
    "clip_upper_only": lambda g, x: g.op("Clip", x, "", g.constant(0.5)),
    "clip_lower_only": lambda g, x: g.op("Clip", x, g.constant(-0.5)),
    "clip_reversed": lambda g, x: g.op("Clip", x, g.constant(1), g.constant(-1)),
    "min_of_relu": lambda g, x: g.op("Min", g.op("Relu", x), g.constant(6)),
}


def _spelled_out_batch_norm(g: Any, x: str) -> str:
    """Multiply and add, as TensorFlow's converters leave it, a bias of its own before them."""
    biased = g.op("Add", g.conv(x, 8, 4, bias=False), g.random(1, 4, 1, 1))
    return g.op("Add", g.op("Mul", g.random(4, 1, 1), biased), g.random(1, 4, 1, 1))


def _shared_conv(g: Any, x: str) -> str:
    conv = g.conv(x, 8, 8)
    return g.op("Add", g.batch_norm(conv, 8), conv)


BATCH_NORM: dict[str, Spelling] = {
    "after_conv": lambda g, x: g.batch_norm(g.conv(x, 8, 12, 3), 12),
    "after_conv_without_bias": lambda g, x: g.batch_norm(g.conv(x, 8, 12, 3, bias=False), 12),
    "after_depthwise": lambda g, x: g.batch_norm(g.conv(x, 8, 8, 3, bias=False, group=8), 8),
    "large_epsilon": lambda g, x: g.batch_norm(g.conv(x, 8, 8), 8, epsilon=0.1),
    "of_a_shared_conv": _shared_conv,
    "after_an_activation": lambda g, x: g.batch_norm(g.op("Relu", x), 8),
    "spelled_out": _spelled_out_batch_norm,
    "after_bias": lambda g, x: g.batch_norm(
        g.op("Add", g.conv(x, 8, 4, 3, bias=False, group=4), g.random(1, 4, 1, 1)), 4
    ),
    "gated_conv": lambda g, x: g.op("Div", _shifted(g, g.conv(x, 8, 4), g.constant), g.constant(6)),
    "after_gemm": lambda g, x: g.batch_norm(
        g.op(
            "Gemm",
            g.op("Flatten", g.op("GlobalAveragePool", x)),
            g.random(5, 8),
            g.random(5),
            transB=1,
        ),
        5,
    ),
}


def _pad_then_conv(g: Any, x: str) -> str:
    padded = g.op("Pad", x, g.constant([0, 0, 0, 0, 0, 0, 1, 1], "int64"))
    return g.conv(padded, 8, 8, 3, strides=[2, 2], pads=[0, 0, 0, 0])


def _squeeze_excite(g: Any, x: str) -> str:
    squeezed = g.op("Relu", g.conv(g.op("GlobalAveragePool", x), 8, 4))
    return g.op("Mul", g.op("HardSigmoid", g.conv(squeezed, 4, 8), alpha=1 / 6), x)


def _residual(g: Any, x: str) -> str:
    return g.op("Add", x, g.conv(g.op("Relu", g.conv(x, 8, 24)), 24, 8))


def _nhwc(g: Any, x: str) -> str:
    there = g.op("Transpose", x, perm=[0, 2, 3, 1])
    return g.conv(g.op("Transpose", there, perm=[0, 3, 1, 2]), 8, 4)


CONV: dict[str, Spelling] = {
    "same_upper": lambda g, x: g.conv(x, 8, 4, 3, auto_pad="SAME_UPPER", strides=[2, 2]),
    "same_lower": lambda g, x: g.conv(x, 8, 4, 4, auto_pad="SAME_LOWER"),
    "valid": lambda g, x: g.conv(x, 8, 4, 3, auto_pad="VALID"),
    "asymmetric": lambda g, x: g.conv(x, 8, 4, 3, pads=[0, 1, 2, 0]),
    "grouped": lambda g, x: g.conv(x, 8, 16, 3, group=4),
    "multiplier": lambda g, x: g.conv(x, 8, 24, 5, group=8, strides=[2, 2]),
    "pad_before": _pad_then_conv,
    "bias_as_add": lambda g, x: g.op("Add", g.random(4, 1, 1), g.conv(x, 8, 4, bias=False)),
    "squeeze_excite": _squeeze_excite,
    "residual": _residual,
    "transposed_twice": _nhwc,
    "identity_and_dropout": lambda g, x: g.op(
        "Dropout", g.op("Identity", g.conv(x, 8, 4)), g.constant(0.3)
    ),
}


def _pooled(g: Any, x: str) -> str:
    return g.op("GlobalAveragePool", x)


def _gemm(g: Any, x: str) -> str:
    return g.op("Gemm", x, g.random(5, 8), g.random(5), transB=1)


def _shape_computed(g: Any, x: str) -> str:
    """The classic `x.view(x.size(0), -1)`."""
    pooled = _pooled(g, x)
    batch = g.op("Gather", g.op("Shape", pooled), g.constant(0, "int64"))
    one = g.constant([0], "int64")
    target = g.op("Concat", g.op("Unsqueeze", batch, one), g.node_constant([-1], "int64"), axis=0)
    return _gemm(g, g.op("Reshape", pooled, target))


HEADS: dict[str, Spelling] = {
    "flatten_gemm": lambda g, x: _gemm(g, g.op("Flatten", _pooled(g, x))),
    "reshape_gemm": lambda g, x: _gemm(
        g, g.op("Reshape", _pooled(g, x), g.constant([0, -1], "int64"))
    ),
    "squeeze_gemm": lambda g, x: _gemm(
        g, g.op("Squeeze", _pooled(g, x), g.constant([2, 3], "int64"))
    ),
    "shape_computed_reshape": _shape_computed,
    "mean_matmul_add": lambda g, x: g.op(
        "Add",
        g.random(5),
        g.op("MatMul", g.op("ReduceMean", x, axes=[2, 3], keepdims=0), g.random(8, 5)),
    ),
    "mean_negative_axes": lambda g, x: _gemm(
        g, g.op("Flatten", g.op("ReduceMean", x, axes=[-1, -2]))
    ),
    "average_pool": lambda g, x: _gemm(
        g, g.op("Flatten", g.op("AveragePool", x, kernel_shape=[9, 9]))
    ),
    "gemm_scaled": lambda g, x: g.op(
        "Gemm",
        g.op("Flatten", _pooled(g, x)),
        g.random(8, 5),
        g.random(1, 5),
        alpha=0.5,
        beta=2.0,
    ),
    "gemm_without_bias": lambda g, x: g.op("Gemm", g.op("Flatten", _pooled(g, x)), g.random(8, 5)),
    "transposed_weight": lambda g, x: g.op(
        "MatMul",
        g.op("Flatten", _pooled(g, x)),
        g.op("Transpose", g.random(5, 8), perm=[1, 0]),
    ),
    "conv_head": lambda g, x: g.op("Flatten", g.conv(_pooled(g, x), 8, 5)),
}


ALL = {
    f"{group}:{name}": spelling
    for group, spellings in {
        "relu": RELU,
        "relu6": RELU6,
        "hard_swish": HARD_SWISH,
        "hard_sigmoid": HARD_SIGMOID,
        "clip": OTHER_CLIPS,
        "batch_norm": BATCH_NORM,
        "conv": CONV,
        "head": HEADS,
    }.items()
    for name, spelling in spellings.items()
}


@pytest.mark.parametrize("spelling", ALL.values(), ids=ALL.keys())
def test_every_spelling_computes_what_onnx_runtime_computes(
    spelling: Spelling, build: Callable, compare: Callable
) -> None:
    compare(import_onnx(build(spelling)))


def test_auto_pad_counts_dilation(build: Callable, compare: Callable) -> None:
    """ONNX Runtime refuses this one, so the same convolution with explicit padding judges."""

    def conv(**padding: Any) -> Spelling:
        return lambda g, x: g.conv(x, 8, 4, 3, dilations=[2, 2], **padding)

    same, explicit = build(conv(auto_pad="SAME_UPPER")), build(conv(pads=[2, 2, 2, 2]))
    compare(import_onnx(same), explicit)


def operators(imported: ImportedModel) -> Counter[str]:
    """How often each Relax operator occurs."""
    bindings = [b for block in imported.mod["main"].body.blocks for b in block.bindings]
    return Counter(binding.value.op.name.removeprefix("relax.") for binding in bindings)


NORMAL_FORMS = [
    (RELU, {"nn.relu": 1}),
    (RELU6, {"clip": 1}),
    (HARD_SWISH, {"add": 1, "clip": 1, "divide": 1, "multiply": 1}),
    (HARD_SIGMOID, {"multiply": 1, "add": 1, "clip": 1}),
    (
        {name: BATCH_NORM[name] for name in ("after_conv", "spelled_out", "after_bias")},
        {"nn.conv2d": 1, "add": 1},
    ),
    (
        {"gated_conv": BATCH_NORM["gated_conv"]},
        {"nn.conv2d": 1, "add": 2, "multiply": 1, "clip": 1},
    ),
    (
        {
            name: HEADS[name]
            for name in ("flatten_gemm", "mean_matmul_add", "shape_computed_reshape")
        },
        {"mean": 1, "reshape": 1, "matmul": 1, "add": 1},
    ),
]


@pytest.mark.parametrize(
    ("spelling", "form"),
    [
        pytest.param(spelling, form, id=name)
        for spellings, form in NORMAL_FORMS
        for name, spelling in spellings.items()
    ],
)
def test_spellings_of_one_thing_have_one_form(
    spelling: Spelling, form: dict, build: Callable
) -> None:
    assert operators(import_onnx(build(spelling))) == form
