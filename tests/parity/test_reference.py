"""OnnxInTorch against ONNX Runtime, an implementation with which it shares nothing."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.parity.reference import OnnxInTorch, evaluate

OPSET = 18
RANDOM = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def float32(*values: float) -> np.ndarray:
    return np.array(values[0] if len(values) == 1 else values, np.float32)


def int64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def graph(
    nodes: list[onnx.NodeProto],
    input_shape: tuple[int, ...],
    constants: dict[str, np.ndarray] | None = None,
    *,
    outputs: tuple[str, ...] = ("y",),
    opset: int = OPSET,
) -> onnx.ModelProto:
    built = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(built, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def one_node(
    operator: str,
    input_shape: tuple[int, ...],
    *constants: np.ndarray | None,
    opset: int = OPSET,
    **attributes: Any,
) -> onnx.ModelProto:
    named = {f"c{i}": array for i, array in enumerate(constants) if array is not None}
    names = [f"c{i}" if array is not None else "" for i, array in enumerate(constants)]
    node = helper.make_node(operator, ["x", *names], ["y"], name="the_node", **attributes)
    return graph([node], input_shape, named, opset=opset)


def assert_same(model: onnx.ModelProto, x: np.ndarray | None = None) -> None:
    if x is None:
        x = normal(*(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, {"x": x})
    module = OnnxInTorch(model)
    for dtype in (torch.float32, torch.float64):
        results = copy.deepcopy(module).to(dtype)(torch.from_numpy(x).to(dtype))
        for result, wanted in zip(results, expected, strict=True):
            assert result.dtype == dtype
            assert result.shape == wanted.shape
            np.testing.assert_allclose(result.numpy(), wanted, rtol=2e-5, atol=2e-5)


PICTURE = (2, 6, 9, 8)
CASES = {
    "conv": one_node("Conv", PICTURE, normal(4, 6, 3, 3), normal(4), strides=[2, 2]),
    "conv_1d": one_node("Conv", (2, 6, 9), normal(4, 6, 3), pads=[1, 1]),
    "conv_asymmetric_pads": one_node("Conv", PICTURE, normal(4, 6, 3, 3), pads=[0, 1, 2, 3]),
    "conv_depthwise": one_node("Conv", PICTURE, normal(6, 1, 5, 5), group=6, pads=[2] * 4),
    "conv_groups_dilated": one_node(
        "Conv", PICTURE, normal(4, 3, 3, 2), group=2, dilations=[2, 3], pads=[2, 1, 0, 3]
    ),
    "conv_same_upper": one_node(
        "Conv", PICTURE, normal(4, 6, 3, 3), auto_pad="SAME_UPPER", strides=[2, 3]
    ),
    "conv_same_lower": one_node(
        "Conv", PICTURE, normal(4, 6, 4, 2), auto_pad="SAME_LOWER", strides=[2, 1]
    ),
    "conv_valid": one_node("Conv", PICTURE, normal(4, 6, 3, 3), auto_pad="VALID"),
    "batch_norm": one_node(
        "BatchNormalization",
        PICTURE,
        normal(6),
        normal(6),
        normal(6),
        abs(normal(6)),
        epsilon=1e-3,
    ),
    "relu": one_node("Relu", PICTURE),
    "clip": one_node("Clip", PICTURE, float32(-0.5), float32(0.5)),
    "clip_low": one_node("Clip", PICTURE, float32(0.0)),
    "clip_high": one_node("Clip", PICTURE, None, float32(0.2)),
    "hard_swish": one_node("HardSwish", PICTURE),
    "hard_sigmoid": one_node("HardSigmoid", PICTURE, alpha=1 / 6),
    "sigmoid": one_node("Sigmoid", PICTURE),
    "leaky_relu": one_node("LeakyRelu", PICTURE, alpha=0.2),
    "prelu": one_node("PRelu", PICTURE, normal(6, 1, 1)),
    "elu": one_node("Elu", PICTURE, alpha=0.7),
    "add": one_node("Add", PICTURE, normal(6, 1, 1)),
    "sub": one_node("Sub", PICTURE, normal(1)),
    "mul": one_node("Mul", PICTURE, normal(2, 6, 1, 1)),
    "div": one_node("Div", PICTURE, float32(6.0)),
    "max": one_node("Max", PICTURE, normal(8), normal(9, 1)),
    "min": one_node("Min", PICTURE, normal(8)),
    "global_average_pool": one_node("GlobalAveragePool", PICTURE),
    "global_max_pool": one_node("GlobalMaxPool", PICTURE),
    "average_pool": one_node("AveragePool", PICTURE, kernel_shape=[3, 2], strides=[2, 1]),
    "average_pool_asymmetric": one_node(
        "AveragePool", PICTURE, kernel_shape=[3, 3], pads=[0, 1, 2, 1]
    ),
    "average_pool_counts_padding": one_node(
        "AveragePool", PICTURE, kernel_shape=[3, 3], pads=[1, 1, 1, 0], count_include_pad=1
    ),
    "average_pool_ceil": one_node(
        "AveragePool", PICTURE, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1
    ),
    "max_pool": one_node("MaxPool", PICTURE, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    "max_pool_ceil": one_node(
        "MaxPool", PICTURE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, pads=[0, 0, 0, 1]
    ),
    "max_pool_dilated": one_node("MaxPool", PICTURE, kernel_shape=[2, 2], dilations=[2, 3]),
    "reduce_mean": one_node("ReduceMean", PICTURE, int64(2, -1), keepdims=0),
    "reduce_mean_all": one_node("ReduceMean", PICTURE),
    "reduce_mean_13": one_node("ReduceMean", PICTURE, opset=13, axes=[2, 3], keepdims=1),
    "reduce_sum": one_node("ReduceSum", PICTURE, int64(1)),
    "reduce_max": one_node("ReduceMax", PICTURE, int64(1)),
    "gemm": one_node(
        "Gemm", (5, 4), normal(3, 5), normal(3), alpha=0.5, beta=2.0, transA=1, transB=1
    ),
    "matmul": one_node("MatMul", (2, 3, 4), normal(4, 5)),
    "flatten": one_node("Flatten", PICTURE, axis=2),
    "flatten_all": one_node("Flatten", PICTURE, axis=0),
    "reshape": one_node("Reshape", PICTURE, int64(0, -1, 2)),
    "squeeze": one_node("Squeeze", (3, 1, 4, 1), int64(-1)),
    "squeeze_all": one_node("Squeeze", (3, 1, 4, 1)),
    "unsqueeze": one_node("Unsqueeze", (3, 4), int64(0, -1)),
    "transpose": one_node("Transpose", PICTURE, perm=[0, 2, 3, 1]),
    "transpose_reversed": one_node("Transpose", PICTURE),
    "concat": one_node("Concat", PICTURE, normal(2, 3, 9, 8), axis=1),
    "expand": one_node("Expand", (3, 1), int64(2, 1, 4)),
    "softmax": one_node("Softmax", (3, 7), axis=1),
    "log_softmax": one_node("LogSoftmax", (3, 7)),
    "identity": one_node("Identity", PICTURE),
    "dropout": one_node("Dropout", PICTURE, float32(0.5)),
    "gather": one_node("Gather", PICTURE, np.array([[2, -1], [0, 1]]), axis=1),
    "slice": one_node("Slice", PICTURE, int64(-2, 1), int64(9, 7), int64(1, 3), int64(1, 2)),
    "slice_backwards": one_node("Slice", (5,), int64(-1), int64(-9), int64(0), int64(-2)),
    "pad": one_node("Pad", PICTURE, int64(0, 1, 2, 0, 0, 0, 1, 3), float32(2.0)),
    "pad_reflect": one_node("Pad", PICTURE, int64(0, 0, 2, 1, 0, 0, 1, 3), mode="reflect"),
    "pad_edge": one_node("Pad", PICTURE, int64(0, 0, 2, 1, 0, 0, 1, 3), mode="edge"),
    "pad_axes": one_node("Pad", PICTURE, int64(1, 2), None, int64(-1)),
    "cast": one_node("Cast", PICTURE, to=TensorProto.FLOAT),
}


@pytest.mark.parametrize("name", CASES)
def test_operator_matches_onnx_runtime(name: str) -> None:
    assert_same(CASES[name])


def test_shape_arithmetic_and_constants_of_every_form() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Constant", [], ["zero"], value_ints=[0]),
        helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(int64(-1))),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Concat", ["batch", "one"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["flat"]),
        helper.make_node("Constant", [], ["scale"], value_float=0.3),
        helper.make_node("Mul", ["flat", "scale"], ["y"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Add", ["x", "zeros"], ["z"]),
    ]
    assert_same(graph(nodes, PICTURE, outputs=("y", "z")))


def test_split_gives_several_outputs() -> None:
    split = helper.make_node("Split", ["x", "sizes"], ["y", "z"], axis=1)
    assert_same(graph([split], PICTURE, {"sizes": int64(2, 4)}, outputs=("y", "z")))


def test_local_functions_are_inlined() -> None:
    model = graph([helper.make_node("Twice", ["x"], ["y"], domain="own")], (2, 3))
    body = helper.make_function(
        "own",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", OPSET)],
    )
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("own", 1))
    assert_same(model)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 1)] * 4),
    operator=st.sampled_from(["Conv", "MaxPool", "AveragePool"]),
)
def test_any_window_matches_onnx_runtime(
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, ...],
    operator: str,
) -> None:
    if operator != "Conv" and 1 in kernel:
        pads = (0, 0, 0, 0)  # ONNX wants the padding smaller than the kernel
    constants = [normal(3, 2, *kernel)] if operator == "Conv" else []
    window: dict[str, Any] = {} if operator == "Conv" else {"kernel_shape": list(kernel)}
    assert_same(
        one_node(
            operator, (1, 2, *size), *constants, strides=list(strides), pads=list(pads), **window
        )
    )


def test_float64_sees_what_float32_rounds_away() -> None:
    # 1 + 2^-30 - 1: lost at float32.
    nodes = [
        helper.make_node("Add", ["x", "tiny"], ["sum"]),
        helper.make_node("Sub", ["sum", "x"], ["y"]),
    ]
    module = OnnxInTorch(graph(nodes, (1,), {"tiny": np.full(1, 2.0**-30, np.float32)}))
    assert module(torch.ones(1))[0].item() == 0.0
    assert module.double()(torch.ones(1).double())[0].item() == 2.0**-30


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (one_node("Det", (1, 3, 3)), ["'the_node'", "Det", "opset 18"]),
        (
            graph([helper.make_node("FusedConv", ["x"], ["y"], domain="com.other")], (1,)),
            ["number 0", "com.other.FusedConv"],
        ),
    ],
)
def test_unknown_operator_is_refused_by_name(model: onnx.ModelProto, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        OnnxInTorch(model)
    assert all(word in str(error.value) for word in words)


def test_unknown_variant_is_refused_by_name() -> None:
    model = one_node("AveragePool", PICTURE, kernel_shape=[2, 2], dilations=[2, 2], opset=19)
    with pytest.raises(InputError, match=r"'the_node'.*AveragePool.*dilation"):
        OnnxInTorch(model)(torch.zeros(PICTURE))


def test_the_users_module_is_the_judge_where_there_is_one() -> None:
    class Cube(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"cube": x * x * x, "same": x}

    x = normal(2, 3)
    imported: Any = SimpleNamespace(
        name="cube",
        module=Cube(),
        onnx=None,
        inputs=[SimpleNamespace(name="x")],
        outputs=[SimpleNamespace(name="y"), SimpleNamespace(name="z")],
    )
    (sample,) = evaluate(imported, [{"x": x}])
    assert sample.float64["y"].dtype == np.float64
    np.testing.assert_array_equal(sample.float64["y"], x.astype(np.float64) * x * x)
    np.testing.assert_array_equal(sample.float32["z"], x)

    imported.outputs = imported.outputs[:1]
    with pytest.raises(InputError, match="2 outputs"):
        evaluate(imported, [{"x": x}])
