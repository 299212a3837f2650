"""Operators that are not ours know their ONNX nodes, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.compiler_pass.pipeline import compile_model

# a convolution, then functions of TVM's own: two nodes that it joins, and a soft maximum
GRAPH = """<ir_version: 10, opset_import: ["" : 18]>
mixed (float[1,8,6,6] x) => (float[1,8,6,6] y) {
    c = Conv<pads=[1,1,1,1]>(x, w)
    e = Exp(c)
    s = Sqrt(e)
    y = Softmax<axis=1>(s)
}"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    proto = parser.parse_model(GRAPH)
    for node in proto.graph.node:
        node.name = f"{node.op_type} node"
    weight = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight / 9, "w"))
    path = tmp_path_factory.mktemp("mixed") / "mixed.onnx"
    onnx.save(proto, path)
    return path


def test_every_node_belongs_to_one_operator(model: Path) -> None:
    compiled = compile_model(frontend.load_model(model), targets.detect())
    rest = [operator for operator in compiled.operators if operator.source == "fallback"]
    assert rest, "there is no template for these"
    named = [node for operator in rest for node in operator.onnx_nodes]
    assert sorted(named) == ["Exp node", "Softmax node", "Sqrt node"]
