from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

GRAPH = """<ir_version: 10, opset_import: ["" : 18]>
small (float[1,3,16,16] picture) => (float[1,{classes}] result) {{
    stem = Conv<strides=[2,2], pads=[1,1,1,1]>(picture, w0, b0)
    active = Relu(stem)
    mean = GlobalAveragePool(active)
    flat = Flatten(mean)
    {head}
}}"""
SCORES = "result = Gemm(flat, w1, b1)"


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a small classifier as ONNX: make_model(classes=7, head=SCORES, name="small")."""

    def make(classes: int = 7, head: str = SCORES, name: str = "small") -> Path:
        random = np.random.default_rng(0)
        shapes = {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (16, classes), "b1": (classes,)}
        model = parser.parse_model(GRAPH.format(classes=classes, head=head))
        for weight, shape in shapes.items():
            values = random.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(values, weight))
        path = tmp_path_factory.mktemp("model") / f"{name}.onnx"
        onnx.save(model, path)
        return path

    return make


@pytest.fixture(scope="session")
def model_path(make_model: Callable[..., Path]) -> Path:
    return make_model()


@pytest.fixture(scope="session")
def built(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for this machine. Tests that change it take a copy: `bundle_path`."""
    from tvm_mobilenet import deploy

    return deploy.build(model_path, output=tmp_path_factory.mktemp("bundles") / "small").path


@pytest.fixture
def bundle_path(built: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))
