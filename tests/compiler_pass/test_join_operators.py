"""Operators become fewer calls where a rule wants it, and only where that is safe."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import tvm
from torch import nn

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.compiler_pass.join_operators import join_operators
from tvm_mobilenet.compiler_pass.lower_operators import lower_operators
from tvm_mobilenet.compiler_pass.pipeline import compile_model
from tvm_mobilenet.parity import samples
from tvm_mobilenet.parity.cuda_network import NetworkEmulator
from tvm_mobilenet.parity.per_layer import per_layer
from tvm_mobilenet.schedules import base
from tvm_mobilenet.schedules.spec import RELU, ConvSpec, SeparableSpec

CHANNELS = 16
SHAPE = (1, CHANNELS, 12, 10)


class Network(nn.Module):
    """Depthwise, pointwise, and another reader of either where asked for."""

    def __init__(self, reader: str) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.pointwise = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.reader = reader

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        between = torch.relu(self.depthwise(x))
        y = self.pointwise(between)
        if self.reader == "also the sum":
            return torch.relu(y + between)
        if self.reader == "residual":
            return torch.relu(y + x)
        return torch.relu(y)


@pytest.fixture
def wanted(monkeypatch):
    """Every pair is wanted, whatever the hardware."""
    monkeypatch.setattr("tvm_mobilenet.compiler_pass.join_operators.joins", lambda spec, _: True)


def imported(reader: str, folder, network=Network):
    torch.manual_seed(0)
    module = network(reader).eval()
    path = folder / "network.onnx"
    torch.onnx.export(module, (torch.zeros(SHAPE),), path, dynamo=False)
    return module, frontend.load_model(path)


def largest_difference(executable, module) -> float:
    x = torch.randn(SHAPE)
    run = tvm.relax.VirtualMachine(executable, tvm.cpu())["main"]
    got = run(tvm.runtime.tensor(x.numpy())).numpy()
    return float(np.abs(got - module(x).detach().numpy()).max())


@pytest.mark.parametrize(
    ("reader", "kinds"),
    [
        ("none", ["layout", "separable", "layout"]),
        ("residual", ["layout", "separable", "layout"]),
        ("also the sum", ["layout", "depthwise", "pointwise", "layout"]),
    ],
)
def test_only_a_sole_reader_is_joined_and_numbers_stay(wanted, reader, kinds, tmp_path):
    module, model = imported(reader, tmp_path)
    compiled = compile_model(model, targets.load("x86-64-v2"))
    assert [operator.kind for operator in compiled.operators] == kinds
    assert largest_difference(compiled.executable, module) < 1e-5


def test_a_joint_call_stands_for_the_nodes_of_both(wanted, tmp_path):
    _, model = imported("none", tmp_path)
    operators = compile_model(model, targets.load("x86-64-v2")).operators
    joint = next(operator for operator in operators if operator.kind == "separable")
    kinds = {node.name: node.op_type for node in model.onnx.graph.node}
    assert [kinds[name] for name in joint.onnx_nodes] == ["Conv", "Relu", "Conv", "Relu"]


def test_the_plain_joint_function_means_the_same(wanted, tmp_path):
    module, model = imported("residual", tmp_path)
    target = targets.load("x86-64-v2")
    mod, sites = lower_operators(model.mod, target.lanes)
    mod, sites = join_operators(mod, sites, target)
    assert [name for name, _ in sites] == ["layout_0", "separable_0", "layout_1"]
    assert largest_difference(tvm.compile(mod, target=target.tvm_target()), module) < 1e-5


class SqueezeExcite(nn.Module):
    """A block of V3's, and another reader of the scaled map or of the first layer's result."""

    def __init__(self, reader: str) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.first, self.second = nn.Conv2d(CHANNELS, 6, 1), nn.Conv2d(6, CHANNELS, 1)
        self.pointwise = nn.Conv2d(CHANNELS, 24, 1)
        self.reader = reader

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.reader != "no depthwise":
            x = torch.relu(self.depthwise(x))
        hidden = torch.relu(self.first(x.mean((2, 3), keepdim=True)))
        scaled = x * nn.functional.hardsigmoid(self.second(hidden))
        if self.reader == "another gate":
            other = torch.relu(self.first(nn.functional.adaptive_avg_pool2d(x, 1)))
            scaled = scaled * nn.functional.hardsigmoid(self.second(other))
        y = self.pointwise(scaled)
        if self.reader == "of the map":
            return y.mean((2, 3)) + scaled.mean()
        return y.mean((2, 3)) + hidden.mean() if self.reader == "of the layer" else y.mean((2, 3))


@pytest.mark.parametrize(
    ("reader", "kinds"),
    [
        ("none", ["depthwise_squeeze", "excite", "scaled", "pool"]),
        ("no depthwise", ["squeeze", "excite", "scaled", "pool"]),
        ("of the map", ["depthwise_squeeze", "excite", "squeeze_excite", "pointwise", "pool"]),
        (
            "another gate",
            [
                "depthwise_squeeze",
                "excite",
                "squeeze_excite",
                "squeeze",
                "excite",
                "scaled",
                "pool",
            ],
        ),
        ("of the layer", ["depthwise", "pool", "dense", "dense", "scaled", "pool"]),
    ],
)
def test_squeeze_excite_keeps_its_numbers_in_fewer_calls(reader, kinds, tmp_path):
    target = targets.load("cuda-sm90")
    module, model = imported(reader, tmp_path, SqueezeExcite)
    mod, sites = join_operators(*lower_operators(model.mod, 4), target)
    found = [name.rsplit("_", 1)[0] for name, _ in sites if not name.startswith("layout")]
    assert found[: len(kinds)] == kinds
    cpu = targets.load("x86-64-v2").tvm_target()
    assert largest_difference(tvm.compile(mod, target=cpu), module) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["none", "no depthwise"])
def test_every_joint_operator_is_judged(reader, tmp_path):
    """By emulation: its tensor of the model, from the reference's own inputs."""
    _, model = imported(reader, tmp_path, SqueezeExcite)
    compiled = compile_model(model, targets.load("cuda-sm90"))
    inputs = samples(model, count=1)
    operators = [dataclasses.asdict(operator) for operator in compiled.operators]
    with NetworkEmulator(compiled) as network:
        report = per_layer(network.trace, operators, model, inputs)
    assert report.passed, report.summary()
    kinds = {row.kind: row for row in report.operators}
    nodes = {node.name: node.op_type for node in model.onnx.graph.node}
    behind = {kind: [nodes[name] for name in row.onnx_nodes] for kind, row in kinds.items()}
    gate = ["ReduceMean", "Conv"]
    if reader == "none":
        assert behind["depthwise-squeeze"] == ["Conv", *gate, "Relu"]
        assert kinds["depthwise-squeeze"].verdict == "passed"
    else:
        assert behind["squeeze"] == gate
        assert kinds["squeeze"].verdict == "-"  # shares of sums: no tensor of the model
    assert behind["excite"] == ["Conv", "Relu", "Conv", "HardSigmoid"]
    assert behind["scaled"] == ["Mul", "Conv"]
    assert kinds["excite"].verdict == kinds["scaled"].verdict == "passed"


@pytest.mark.parametrize("cores", [1, 2])
def test_large_and_shared_pairs_are_wanted_and_heavy_ones_are_not(cores):
    target = dataclasses.replace(targets.load("x86-64-v4"), cores=cores, l2_kib=2048)

    def pair(channels: int, size: int, outputs: int) -> SeparableSpec:
        first = ConvSpec(
            1, channels, size, size, channels, (3, 3), (1, 1), (1,) * 4, groups=channels
        )
        return SeparableSpec(first, ConvSpec(1, channels, size, size, outputs, activation=RELU))

    assert base.joins(pair(32, 112, 64), target)  # its input is not in L2
    assert base.joins(pair(128, 8, 128), target) == (cores > 1)  # saves a meeting of threads
    assert not base.joins(pair(512, 14, 512), target)  # 1 MiB of weights for every strip
    assert not base.joins(pair(32, 112, 64), targets.load("rpi4"))  # no such rule there
