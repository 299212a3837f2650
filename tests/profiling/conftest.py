from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tvm_mobilenet.profiling.subject import Prepared, Subject, prepare

# The layers of a MobileNet, small enough that exporting and converting it takes no time.
GRAPH = """<ir_version: 10, opset_import: ["" : 18]>
small (float[N,3,32,32] picture) => (float[N,10] scores) {
    stem = Conv<strides=[2,2], pads=[1,1,1,1]>(picture, stem_w, stem_b)
    stem_relu = Relu(stem)
    depthwise = Conv<group=16, pads=[1,1,1,1]>(stem_relu, depthwise_w, depthwise_b)
    depthwise_relu = Relu(depthwise)
    pointwise = Conv(depthwise_relu, pointwise_w, pointwise_b)
    pointwise_relu = Relu(pointwise)
    mean = GlobalAveragePool(pointwise_relu)
    flat = Flatten(mean)
    scores = Gemm<transB=1>(flat, head_w, head_b)
}"""
SHAPES = {
    "stem": (16, 3, 3, 3),
    "depthwise": (16, 1, 3, 3),
    "pointwise": (32, 16, 1, 1),
    "head": (10, 32),
}
BATCH = 3


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of MobileNet's layers as ONNX, with a symbolic batch."""
    random = np.random.default_rng(0)
    model = parser.parse_model(GRAPH)
    for layer, shape in SHAPES.items():
        weight = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        for name, values in ((f"{layer}_w", weight), (f"{layer}_b", random.random(shape[0]))):
            model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def tiny(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """That network ready to be timed, at batch 3: who mixes up images would show."""
    subject = Subject(model_path, batch=BATCH)
    return prepare(subject, tmp_path_factory.mktemp("tiny"), bundle=None, program=True)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "worker.log"


@pytest.fixture(scope="session")
def small_bundle(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of that network for this machine, batch 1."""
    from tvm_mobilenet import deploy

    return deploy.build(model_path, output=tmp_path_factory.mktemp("bundles") / "small").path
