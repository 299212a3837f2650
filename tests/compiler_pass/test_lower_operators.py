"""Operator chains become single calls, layouts change only where they must, numbers stay."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.compiler_pass.lower_operators import lower_operators
from tvm_mobilenet.compiler_pass.pipeline import compile_model
from tvm_mobilenet.compiler_pass.schedule_operators import spec_of

RNG = np.random.default_rng(0)


class Graph:
    """A small ONNX graph, written node by node."""

    def __init__(self, *shape: int) -> None:
        self.nodes, self.constants, self.shape = [], [], shape

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array.astype("float32"), name))
        return name

    def __call__(self, op: str, *inputs: str, **attributes) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def conv(self, x: str, o: int, i: int, k: int = 1, *, groups: int = 1, **attributes) -> str:
        weight = self.constant(RNG.standard_normal((o, i // groups, k, k)) / (i * k * k) ** 0.5)
        bias = self.constant(RNG.standard_normal(o))
        pads = attributes.pop("pads", [k // 2] * 4)
        return self("Conv", x, weight, bias, group=groups, pads=pads, **attributes)

    def model(self, *outputs: str) -> onnx.ModelProto:
        named = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        graph = helper.make_graph(self.nodes, "test", [x], named, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return onnx.shape_inference.infer_shapes(model)


def residual_block(g: Graph) -> tuple[str, ...]:
    a = g("Relu", g.conv("x", 8, 8))
    return (g("Relu", g("Add", g.conv(a, 8, 8), a)),)


def two_convolutions_added(g: Graph) -> tuple[str, ...]:
    return (g("Add", g.conv("x", 8, 8), g.conv("x", 8, 8, 3)),)


def convolution_read_twice(g: Graph) -> tuple[str, ...]:
    a = g.conv("x", 8, 8)
    return (g("Add", g("Relu", a), g("Sigmoid", a)),)


def convolution_added_to_itself(g: Graph) -> tuple[str, ...]:
    a = g.conv("x", 8, 8)
    return (g("Add", a, a),)


def intermediate_is_an_output(g: Graph) -> tuple[str, ...]:
    a = g.conv("x", 8, 8)
    return (a, g("Relu", a))


def squeeze_excite(g: Graph) -> tuple[str, ...]:
    a = g("HardSwish", g.conv("x", 8, 8, 5, groups=8))
    s = g("Relu", g.conv(g("GlobalAveragePool", a), 4, 8))
    s = g("HardSigmoid", g.conv(s, 8, 4), alpha=1 / 6)
    return (g.conv(g("Mul", s, a), 12, 8),)


def foreign_operators_between(g: Graph) -> tuple[str, ...]:
    a = g("MaxPool", g.conv("x", 8, 8), kernel_shape=[2, 2], strides=[2, 2])
    b = g("Concat", g.conv(a, 4, 8), g("Tanh", a), axis=1)
    return (g.conv(b, 8, 12, 3),)


def grouped_convolution(g: Graph) -> tuple[str, ...]:
    return (g("Relu", g.conv("x", 8, 8, 3, groups=2)),)


def channel_multiplier(g: Graph) -> tuple[str, ...]:
    return (g("Relu", g.conv("x", 16, 8, 3, groups=8)),)


def batch_norm_first(g: Graph) -> tuple[str, ...]:
    parameters = [g.constant(np.abs(RNG.standard_normal(8)) + 0.5) for _ in range(4)]
    return (g.conv(g("Relu", g("BatchNormalization", "x", *parameters)), 8, 8),)


def lone_hard_swish(g: Graph) -> tuple[str, ...]:
    return (g("HardSwish", "x"),)


def dense_head(g: Graph) -> tuple[str, ...]:
    a = g("Flatten", g("GlobalAveragePool", g("Clip", "x", g.constant(np.float32(0)))))
    w, b = g.constant(RNG.standard_normal((10, 8))), g.constant(RNG.standard_normal(10))
    return (g("HardSwish", g("Gemm", a, w, b, transB=1)),)


def flatten_with_pixels(g: Graph) -> tuple[str, ...]:
    a = g("Flatten", g.conv("x", 8, 8))
    return (g("Gemm", a, g.constant(RNG.standard_normal((8 * 6 * 5, 4)))),)


EXPECTED_CALLS = {
    residual_block: ["layout", "pointwise", "pointwise", "layout"],
    two_convolutions_added: ["layout", "conv", "pointwise", "layout"],
    convolution_read_twice: ["layout", "pointwise"] + ["elementwise"] * 3 + ["layout"],
    convolution_added_to_itself: ["layout", "pointwise", "elementwise", "layout"],
    intermediate_is_an_output: ["layout", "pointwise", "elementwise", "layout", "layout"],
    squeeze_excite: [
        *["layout", "depthwise", "pool", "dense", "dense", "squeeze-excite"],
        *["pointwise", "layout"],
    ],
    foreign_operators_between: None,
    grouped_convolution: None,
    channel_multiplier: None,
    batch_norm_first: ["layout", "depthwise", "pointwise", "layout"],
    lone_hard_swish: ["layout", "elementwise", "layout"],
    dense_head: ["layout", "elementwise", "pool", "dense"],
    flatten_with_pixels: ["layout", "pointwise", "layout", "dense"],
}


@pytest.mark.parametrize("write", EXPECTED_CALLS, ids=lambda f: f.__name__)
def test_graph(write):
    g = Graph(2, 8, 6, 5)
    outputs = write(g)
    model = g.model(*outputs)
    imported = frontend.import_onnx(model)
    compiled = compile_model(imported, targets.load("x86-64-v3"))
    calls = [operator.kind for operator in compiled.operators]
    if EXPECTED_CALLS[write] is not None:
        assert calls == EXPECTED_CALLS[write]
    else:
        assert "other" in calls

    x = RNG.standard_normal(g.shape).astype("float32")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    got = relax.VirtualMachine(compiled.executable, tvm.cpu())["main"](tvm.runtime.tensor(x))
    got = [got] if len(outputs) == 1 else list(got)
    for mine, expected in zip(got, session.run(None, {"x": x}), strict=True):
        assert mine.shape == expected.shape
        np.testing.assert_allclose(mine.numpy(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_unscheduled_functions_already_mean_the_same():
    """Between the passes the module is complete: the plain functions compute the network."""
    imported = frontend.load_model(
        "mobilenet_v3_small", alpha=0.5, resolution=32, classes=10, exporter="torchscript"
    )
    plain, _ = lower_operators(imported.mod, 8)
    x = tvm.runtime.tensor(RNG.standard_normal((1, 3, 32, 32)).astype("float32"))
    results = []
    for mod in (imported.mod, plain):
        executable = tvm.compile(mod, target="llvm")
        results.append(relax.VirtualMachine(executable, tvm.cpu())["main"](x).numpy())
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"]
)
def test_mobilenets_are_lowered_whole(name):
    """No layout change, no lone element-wise operator and nothing for the fallback is left."""
    imported = frontend.load_model(name, resolution=64, classes=10, exporter="torchscript")
    mod, call_sites = lower_operators(imported.mod, 16)
    kinds = {spec_of(function).kind for _, function in mod.functions.items() if spec_of(function)}
    assert not kinds & {"layout", "elementwise"}
    steps = [b.value for block in mod["main"].body.blocks for b in block.bindings]
    assert all(s.op.name == "relax.call_tir" for s in steps if isinstance(s, relax.Call))
    behind = [n for _, bindings in call_sites for b in bindings for n in imported.node_names[b]]
    nodes = {n for names in imported.node_names.values() for n in names}
    reshapes = {n for n in nodes if "Reshape" in n or "view" in n or "Flatten" in n}
    assert nodes - set(behind) <= reshapes


def test_dump_shows_each_phase(tmp_path):
    imported = frontend.load_model(
        "mobilenet_v1", alpha=0.25, resolution=32, classes=10, exporter="torchscript"
    )
    compile_model(imported, targets.load("x86-64-v2"), dump_ir=tmp_path)
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert names == [
        f"{i}_{phase}.py"
        for i, phase in enumerate(
            ["imported", "operators", "joined", "legalized", "scheduled", "planned"]
        )
    ]
    assert "R.nn.conv2d" in (tmp_path / names[0]).read_text()
    assert "R.call_tir(cls.pointwise_0" in (tmp_path / names[1]).read_text()
