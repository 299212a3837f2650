"""A small network with an operator for every fault, quick to build."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

_TEXT = """<ir_version: 10, opset_import: ["" : 18]>
small (float[1,3,18,18] picture) => (float[1,20] scores) {
    stem = Conv<strides=[2,2], pads=[1,1,1,1]>(picture, w0, b0)
    stem_active = Relu(stem)
    deep1 = Conv<group=24, pads=[1,1,1,1]>(stem_active, w1, b1)
    deep1_active = Relu(deep1)
    wide1 = Conv(deep1_active, w2, b2)
    wide1_active = Relu(wide1)
    deep2 = Conv<group=72, pads=[1,1,1,1], strides=[2,2]>(wide1_active, w3, b3)
    deep2_active = Relu(deep2)
    wide2 = Conv(deep2_active, w4, b4)
    wide2_active = Relu(wide2)
    mean = GlobalAveragePool(wide2_active)
    flat = Flatten(mean)
    scores = Gemm(flat, w5, b5)
}"""
_SHAPES = [(24, 3, 3, 3), (24, 1, 3, 3), (72, 24, 1, 1), (72, 1, 3, 3), (96, 72, 1, 1), (96, 20)]


@pytest.fixture
def small_network() -> onnx.ModelProto:
    """Stem, two depthwise and pointwise pairs, pooling and a dense layer; seeded weights."""
    random = np.random.default_rng(0)
    model = parser.parse_model(_TEXT)
    for number, shape in enumerate(_SHAPES):
        inputs = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        outputs = shape[0] if len(shape) == 4 else shape[1]
        weight = random.standard_normal(shape) * (2 / inputs) ** 0.5
        for name, values in ((f"w{number}", weight), (f"b{number}", random.random(outputs))):
            model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return model
