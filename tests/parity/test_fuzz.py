"""Random MobileNet-like graphs: ONNX -> build -> run, held to the error rule of a bundle.

A `Network` is data: hypothesis draws and shrinks it, and what fails is printed so that it can be
pasted into REGRESSIONS. Every run draws the same graphs. More, and others:

    FUZZ_GRAPHS=2000 FUZZ_SEED=7 pytest tests/parity/test_fuzz.py -k graphs
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import onnx
import onnx.compose
import pytest
import tvm
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tvm import relax

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.compiler_pass.pipeline import compile_model
from tvm_mobilenet.deploy.builder import compile_and_prove
from tvm_mobilenet.frontend import ImportedModel
from tvm_mobilenet.parity import check, samples
from tvm_mobilenet.runtime.library import use_threads

GRAPHS = int(os.environ.get("FUZZ_GRAPHS", "200"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
CHUNKS = 8  # test items, dealt to the workers and to the levels
ARM_GRAPHS = 6
V4 = ("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl")
LEVELS = [
    pytest.param("x86-64-v4", marks=pytest.mark.needs_cpu(*V4)),
    pytest.param("x86-64-v3", marks=pytest.mark.needs_cpu("avx2", "fma")),
]


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution with what may follow it. `shape` "depthwise" and "grouped" keep the channels.

    pads: top, left, bottom, right. shortcut: where the newest earlier value of the same shape is
    added, "before" or "behind" the activation.
    """

    shape: str = "full"
    outputs: int = 8
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    auto_pad: str = "NOTSET"
    pad_node: bool = False
    bias: bool = True
    norm: bool = False
    activation: str = ""
    shortcut: str = ""


@dataclasses.dataclass(frozen=True)
class SqueezeExcite:
    """Global pooling, two pointwise convolutions, a gate, and the product with the input."""

    reduced: int = 4
    gate: str = "HardSigmoid"
    gate_first: bool = False


@dataclasses.dataclass(frozen=True)
class Pool:
    """MaxPool or AveragePool."""

    op: str = "MaxPool"
    kernel: int = 3
    stride: int = 2
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    ceil_mode: bool = False


@dataclasses.dataclass(frozen=True)
class Alone:
    """An operator with nothing to absorb it: an activation, "norm", or "concat" with itself."""

    op: str = "norm"


Layer = Conv | SqueezeExcite | Pool | Alone


@dataclasses.dataclass(frozen=True)
class Network:
    """A whole graph; layers that do not fit the size that is left of the picture are passed over.

    head: "" gives the last picture, else global pooling and how the scores are made of it.
    taps: layers whose result is an output of the graph as well.
    """

    batch: int = 1
    channels: int = 3
    size: tuple[int, int] = (9, 9)
    layers: tuple[Layer, ...] = ()
    head: str = ""
    classes: int = 5
    taps: tuple[int, ...] = ()
    threads: int = 1


# Networks that once failed, with what was wrong.
REGRESSIONS = [
    # the rule: of its 2592 sums one of 234 terms and a bias rounded to the same side all along, to
    # 5.1 times the largest error of PyTorch, which sums in blocks
    Network(
        channels=5,
        size=(18, 11),
        layers=(
            Conv(outputs=26, activation="HardSwish"),
            Conv("depthwise", 1, strides=(2, 2), bias=False),
            Conv(outputs=16, kernel=(3, 3), pads=(1, 1, 1, 1)),
        ),
    ),
]


# ---------------------------------------------------------------- drawing


PLAIN_ACTIVATIONS = ("", "Relu", "Clip 0 6", "HardSwish")
ACTIVATIONS = (
    *PLAIN_ACTIVATIONS,
    *("Clip -1 1.5", "Clip 0.5 none", "HardSigmoid", "Sigmoid", "LeakyRelu", "Tanh", "Swish"),
    *("x*relu6(x+3)/6", "Min Max", "PRelu"),
)
few = functools.partial(st.integers, 0)
widths = st.one_of(st.integers(1, 40), st.sampled_from([8, 16, 17, 24, 32, 33, 64, 65]))
kernel_sizes = st.sampled_from([1, 1, 3, 3, 3, 5, 7])


@st.composite
def convs(draw: st.DrawFn) -> Conv:
    kernel = draw(kernel_sizes)
    square = draw(st.integers(0, 3)) > 0
    kernels = (kernel, kernel if square else draw(kernel_sizes))
    dilations = draw(st.sampled_from([(1, 1)] * 4 + [(2, 2), (1, 2), (3, 1)]))
    same = tuple((k - 1) * d // 2 for k, d in zip(kernels, dilations, strict=True))
    any_pads = st.tuples(*(few(k // 2 + 1) for k in (*kernels, *kernels)))
    return Conv(
        shape=draw(st.sampled_from(["full", "depthwise", "depthwise", "grouped"])),
        outputs=draw(widths),
        kernel=kernels,
        strides=draw(st.sampled_from([(1, 1)] * 3 + [(2, 2), (2, 2), (1, 2), (3, 2)])),
        dilations=dilations,
        pads=draw(st.sampled_from([same * 2]) | any_pads),  # type: ignore[arg-type]
        auto_pad=draw(st.sampled_from(["NOTSET"] * 6 + ["SAME_UPPER", "SAME_LOWER", "VALID"])),
        pad_node=draw(st.integers(0, 7)) == 7,
        bias=draw(st.booleans()),
        norm=draw(st.integers(0, 3)) == 3,
        activation=draw(st.sampled_from(PLAIN_ACTIVATIONS) | st.sampled_from(ACTIVATIONS)),
        shortcut=draw(st.sampled_from(["", "", "before", "behind"])),
    )


pointwise = st.builds(
    Conv,
    outputs=widths,
    norm=st.booleans(),
    activation=st.sampled_from(PLAIN_ACTIVATIONS),
    shortcut=st.sampled_from(["", "before", "behind"]),
)
excites = st.builds(
    SqueezeExcite,
    reduced=st.integers(1, 12),
    gate=st.sampled_from(["HardSigmoid", "Sigmoid", "Clip 0 6"]),
    gate_first=st.booleans(),
)
pools = st.builds(
    Pool,
    op=st.sampled_from(["MaxPool", "AveragePool"]),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    pads=st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 1, 1), (1, 0, 0, 1)]),
    ceil_mode=st.booleans(),
)
alone = st.builds(Alone, st.sampled_from([*ACTIVATIONS[1:], "norm", "norm", "concat"]))
some_layers = st.lists(
    st.one_of(convs(), convs(), convs(), pointwise, pointwise, excites, pools, alone),
    min_size=1,
    max_size=4,
)
networks = st.builds(
    Network,
    batch=st.sampled_from([1, 1, 2, 3, 4]),
    channels=st.sampled_from([1, 3, 3, 4, 5, 8, 13, 16, 24]),
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    layers=some_layers.map(tuple),
    head=st.sampled_from(["", "", "Gemm", "MatMul", "Conv", "Gemm Softmax", "Mean Gemm"]),
    classes=st.integers(1, 40),
    taps=st.lists(few(3), max_size=1).map(tuple),
    threads=st.sampled_from([1, 1, 2, 3]),
)


# ---------------------------------------------------------------- as ONNX


class Graph:
    """Writes a network as an ONNX graph; `shape` is that of the newest value."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(1)
        self.shape = (network.batch, network.channels, *network.size)
        self.seen: list[tuple[str, tuple[int, ...]]] = [("x", self.shape)]

    def model(self) -> onnx.ModelProto:
        value, taps = "x", []
        for number, layer in enumerate(self.network.layers):
            value = self.layer(layer, value)
            self.seen.append((value, self.shape))
            if number in self.network.taps and value != "x":
                taps.append(value)
        value = self.head(value)
        outputs = dict.fromkeys([self.op("Identity", value), *taps])
        float_tensor = functools.partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
        x_shape = [self.network.batch, self.network.channels, *self.network.size]
        graph = helper.make_graph(
            self.nodes,
            "fuzz",
            [float_tensor("x", shape=x_shape)],
            [float_tensor(name, shape=None) for name in outputs],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, values: Any, dtype: str = "float32") -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weight(self, *shape: int) -> str:
        """Normal values that keep the scale of what they are applied to."""
        fan_in = int(np.prod(shape[1:]))
        return self.constant(self.random.normal(0, fan_in**-0.5, shape))

    def layer(self, layer: Layer, x: str) -> str:
        if isinstance(layer, Conv):
            return self.conv(layer, x)
        if isinstance(layer, SqueezeExcite):
            return self.excite(layer, x)
        if isinstance(layer, Pool):
            return self.pool(layer, x)
        if layer.op == "norm":
            return self.norm(x)
        if layer.op == "concat":
            n, c, h, w = self.shape
            self.shape = (n, 2 * c, h, w)
            return self.op("Concat", x, x, axis=1)
        return self.activation(layer.op, x)

    def conv(self, layer: Conv, x: str) -> str:
        n, c, *size = self.shape
        top, left, bottom, right = layer.pads
        pads = layer.pads if layer.auto_pad == "NOTSET" else (0, 0, 0, 0)
        extents = [(k - 1) * d + 1 for k, d in zip(layer.kernel, layer.dilations, strict=True)]
        if layer.auto_pad.startswith("SAME"):
            new = [-(-s // stride) for s, stride in zip(size, layer.strides, strict=True)]
        else:
            whole = [size[0] + pads[0] + pads[2], size[1] + pads[1] + pads[3]]
            if any(w < e for w, e in zip(whole, extents, strict=True)):
                return x
            new = [(w - e) // s + 1 for w, e, s in zip(whole, extents, layer.strides, strict=True)]
        groups = {"full": 1, "depthwise": c, "grouped": 2 if c % 2 == 0 else 1}[layer.shape]
        outputs = layer.outputs if layer.shape == "full" else c
        options: dict[str, Any] = {"group": groups, "kernel_shape": layer.kernel}
        options |= {"strides": layer.strides, "dilations": layer.dilations}
        if layer.auto_pad != "NOTSET":
            options["auto_pad"] = layer.auto_pad
        elif layer.pad_node:
            before_and_behind = [0, 0, top, left, 0, 0, bottom, right]
            x = self.op("Pad", x, self.constant(before_and_behind, "int64"))
        else:
            options["pads"] = layer.pads
        bias = [self.constant(self.random.normal(0, 0.5, outputs))] if layer.bias else []
        x = self.op("Conv", x, self.weight(outputs, c // groups, *layer.kernel), *bias, **options)
        self.shape = (n, outputs, *new)
        if layer.norm:
            x = self.norm(x)
        if layer.shortcut == "before":
            x = self.shortcut(x)
        x = self.activation(layer.activation, x)
        return self.shortcut(x) if layer.shortcut == "behind" else x

    def shortcut(self, x: str) -> str:
        other = next((name for name, shape in self.seen[::-1] if shape == self.shape), None)
        return x if other is None else self.op("Add", x, other)

    def excite(self, layer: SqueezeExcite, x: str) -> str:
        c = self.shape[1]
        mean = self.op("GlobalAveragePool", x)
        hidden = self.op("Relu", self.op("Conv", mean, self.weight(layer.reduced, c, 1, 1)))
        bias = self.constant(self.random.normal(0, 0.5, c))
        gate = self.op("Conv", hidden, self.weight(c, layer.reduced, 1, 1), bias)
        gate = self.activation(layer.gate, gate)
        return self.op("Mul", *((gate, x) if layer.gate_first else (x, gate)))

    def pool(self, layer: Pool, x: str) -> str:
        n, c, *size = self.shape
        top, left, bottom, right = layer.pads
        whole = [size[0] + top + bottom, size[1] + left + right]
        if layer.kernel <= max(layer.pads) or min(whole) < layer.kernel:
            return x
        new = []
        for extent, pad, length in zip(whole, layer.pads[:2], size, strict=True):
            steps = (extent - layer.kernel) / layer.stride
            places = int(np.ceil(steps) if layer.ceil_mode else np.floor(steps)) + 1
            # the last window must begin within the picture
            new.append(places - ((places - 1) * layer.stride >= length + pad))
        self.shape = (n, c, *new)
        return self.op(
            layer.op,
            x,
            kernel_shape=[layer.kernel] * 2,
            strides=[layer.stride] * 2,
            pads=layer.pads,
            ceil_mode=int(layer.ceil_mode),
        )

    def norm(self, x: str) -> str:
        c = self.shape[1]
        parts = [self.random.normal(1, 0.2, c), self.random.normal(0, 0.3, c)]
        parts += [self.random.normal(0, 0.3, c), self.random.uniform(0.5, 2, c)]
        return self.op("BatchNormalization", x, *map(self.constant, parts))

    def activation(self, name: str, x: str) -> str:
        scalar = self.constant
        if name == "":
            return x
        if name.startswith("Clip"):
            low, high = ("" if b == "none" else scalar(float(b)) for b in name.split()[1:])
            return self.op("Clip", x, low, high)
        if name == "Swish":
            return self.op("Mul", x, self.op("Sigmoid", x))
        if name == "x*relu6(x+3)/6":
            gate = self.op("Clip", self.op("Add", x, scalar(3.0)), scalar(0.0), scalar(6.0))
            return self.op("Div", self.op("Mul", x, gate), scalar(6.0))
        if name == "Min Max":
            return self.op("Min", self.op("Max", x, scalar(0.0)), scalar(6.0))
        if name == "PRelu":
            return self.op(
                "PRelu", x, self.constant(self.random.normal(0, 0.3, (self.shape[1], 1, 1)))
            )
        return self.op(name, x)

    def head(self, x: str) -> str:
        kind, classes = self.network.head, self.network.classes
        if not kind:
            return x
        c = self.shape[1]
        if kind == "Mean Gemm":
            x = self.op("ReduceMean", x, axes=[2, 3], keepdims=0)
        else:
            x = self.op("GlobalAveragePool", x)
        bias = self.constant(self.random.normal(0, 0.5, classes))
        if kind == "Conv":
            return self.op("Flatten", self.op("Conv", x, self.weight(classes, c, 1, 1), bias))
        if kind != "Mean Gemm":
            x = self.op("Flatten", x)
        if kind == "MatMul":
            return self.op("Add", self.op("MatMul", x, self.weight(c, classes)), bias)
        x = self.op("Gemm", x, self.weight(classes, c), bias, transB=1)
        return self.op("Softmax", x) if "Softmax" in kind else x


# ---------------------------------------------------------------- the tests


def imported(network: Network) -> ImportedModel | None:
    """The network in Relax; None when no layer fits the picture."""
    model = Graph(network).model()
    return frontend.import_onnx(model) if len(model.graph.node) > 1 else None


def runner(model: ImportedModel, target: targets.TargetSpec) -> Callable[..., Mapping[str, Any]]:
    """Compiles for this machine, without linking."""
    executable = compile_model(model, target).executable
    machine = relax.VirtualMachine(executable, tvm.cpu())

    def run(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        result = machine["main"](*(tvm.runtime.tensor(values[i.name]) for i in model.inputs))
        results = [result] if len(model.outputs) == 1 else list(result)
        return {o.name: r.numpy() for o, r in zip(model.outputs, results, strict=True)}

    return run


def assert_parity(network: Network, level: str) -> None:
    model = imported(network)
    if model is None:
        return
    target = dataclasses.replace(targets.load(level), cores=network.threads)
    use_threads(network.threads, exactly=False)
    report = check(runner(model, target), model, samples(model, count=3))
    assert report.passed, report.summary()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "network", REGRESSIONS, ids=lambda network: f"{len(network.layers)} layers"
)
def test_what_once_failed(network: Network, level: str) -> None:
    assert_parity(network, level)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS // 2))
@pytest.mark.parametrize("level", LEVELS)
def test_graphs(level: str, chunk: int) -> None:
    @hypothesis.seed(SEED * CHUNKS + 2 * chunk + (level == "x86-64-v3"))
    @hypothesis.settings(
        max_examples=-(-GRAPHS // CHUNKS), database=None, deadline=None, print_blob=False
    )
    @hypothesis.given(networks)
    def holds(network: Network) -> None:
        assert_parity(network, level)

    holds()


@pytest.mark.arm
@pytest.mark.slow
@pytest.mark.needs_tool("qemu-aarch64", "qemu-user")
@pytest.mark.needs_tool("qemu-arm", "qemu-user")
@pytest.mark.needs_tool("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
@pytest.mark.needs_tool("arm-linux-gnueabihf-g++", "g++-arm-linux-gnueabihf")
@pytest.mark.parametrize("board", ["rpi4", "rpi2"])
def test_graphs_on_arm_under_qemu(board: str, tmp_path: Path) -> None:
    """Several graphs side by side in one model: linking a runner costs more than compiling."""
    drawn: list[Network] = []

    @hypothesis.seed(SEED + (board == "rpi2"))
    @hypothesis.settings(max_examples=ARM_GRAPHS, database=None, deadline=None)
    @hypothesis.given(networks.filter(lambda network: imported(network) is not None))
    def draw(network: Network) -> None:
        drawn.append(network)

    draw()
    model = frontend.import_onnx(side_by_side([*REGRESSIONS, *drawn]))
    library = tmp_path / "model.so"
    proven = compile_and_prove(model, targets.load(board), library, progress=lambda message: None)
    assert proven.parity.machine.startswith("qemu-")
    assert proven.parity.passed, proven.parity.summary()


def side_by_side(several: list[Network]) -> onnx.ModelProto:
    """One model that computes all networks, each with its own input."""
    whole, *others = (
        onnx.compose.add_prefix(Graph(network).model(), f"n{number}_")
        for number, network in enumerate(several)
    )
    for other in others:
        for field in ("node", "initializer", "input", "output"):
            getattr(whole.graph, field).extend(getattr(other.graph, field))
    return whole
