"""A builder of small ONNX graphs, and a plain, unscheduled run of what is imported from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax

from tvm_mobilenet.frontend import ImportedModel


class Graph:
    """Grows a graph node by node; every method returns the name of the new value."""

    def __init__(self, opset: int = 17, channels: int = 8, size: int = 9) -> None:
        self.opset, self.channels, self.size = opset, channels, size
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"v{len(self.nodes)}"
        name = attributes.pop("name", f"{kind.lower()}_{len(self.nodes)}")
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=name, **attributes))
        return output

    def constant(self, value: Any, dtype: str = "float32") -> str:
        """An initializer."""
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node_constant(self, value: Any, dtype: str = "float32") -> str:
        """A Constant node."""
        return self.op("Constant", value=numpy_helper.from_array(np.asarray(value, dtype)))

    def random(self, *shape: int) -> str:
        return self.constant(self._rng.normal(0, 0.5, shape))

    def conv(
        self, x: str, inputs: int, outputs: int, kernel: int = 1, bias: bool = True, **options: Any
    ) -> str:
        weight = self.random(outputs, inputs // options.get("group", 1), kernel, kernel)
        rest = [self.random(outputs)] if bias else []
        if "auto_pad" not in options:
            options.setdefault("pads", [kernel // 2] * 4)
        return self.op("Conv", x, weight, *rest, **options)

    def batch_norm(self, x: str, channels: int, **options: Any) -> str:
        variance = self.constant(self._rng.uniform(0.5, 2, channels))
        parameters = [self.random(channels) for _ in range(3)]
        return self.op("BatchNormalization", x, *parameters, variance, **options)

    def model(
        self,
        output: str,
        batch: int | str = 1,
        spatial: Sequence[int | str] | None = None,
        elem_type: int = TensorProto.FLOAT,
    ) -> onnx.ModelProto:
        """The model from input `x` [batch, channels, size, size] to `output`, called `y`."""
        shape = [batch, self.channels, *(spatial or [self.size, self.size])]
        last = helper.make_node("Identity", [output], ["y"], name="last")
        graph = helper.make_graph(
            [*self.nodes, last],
            "tiny",
            [helper.make_tensor_value_info("x", elem_type, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.fixture
def new_graph() -> type[Graph]:
    """The graph builder."""
    return Graph


@pytest.fixture
def build() -> Callable[..., onnx.ModelProto]:
    """build(spelling, opset=17, **options): the model of spelling(graph, input name) -> output."""

    def make(spelling: Callable, opset: int = 17, **options: Any) -> onnx.ModelProto:
        graph = Graph(opset)
        return graph.model(spelling(graph, "x"), **options)

    return make


@pytest.fixture
def compare() -> Callable[..., None]:
    """compare(imported): plain TVM and ONNX Runtime agree on a random input."""

    def agree(imported: ImportedModel, original: onnx.ModelProto | None = None) -> None:
        rng = np.random.default_rng(1)
        inputs = {i.name: rng.normal(0, 2, i.shape).astype("float32") for i in imported.inputs}
        ours = _run_tvm(imported, inputs)
        session = onnxruntime.InferenceSession(
            (original or imported.onnx).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        theirs = session.run(None, dict(inputs))
        assert [o.shape for o in imported.outputs] == [y.shape for y in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5, atol=2e-5)

    return agree


def _run_tvm(imported: ImportedModel, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    machine = relax.VirtualMachine(tvm.compile(imported.mod, "llvm"), tvm.cpu())
    arguments = [tvm.runtime.tensor(inputs[i.name]) for i in imported.inputs]
    result = machine["main"](*arguments)
    single = len(imported.outputs) == 1
    return [tensor.numpy() for tensor in ([result] if single else result)]
