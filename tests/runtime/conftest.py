from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

SMALL = """<ir_version: 10, opset_import: ["" : 18]>
small (float[2,3,20,20] picture) => (float[2,7] scores) {
    stem = Conv<strides=[2,2], pads=[1,1,1,1]>(picture, w0, b0)
    active = Clip(stem, zero, six)
    mean = GlobalAveragePool(active)
    flat = Flatten(mean)
    scores = Gemm(flat, w1, b1)
}"""


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of 7 classes for two pictures of 20 by 20."""
    random = np.random.default_rng(0)
    shapes = {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (16, 7), "b1": (7,)}
    weights = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    weights |= {"zero": np.array(0), "six": np.array(6)}
    model = parser.parse_model(SMALL)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.float32), name)
        for name, value in weights.items()
    )
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def built(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of it for this machine. Tests that change it take a copy: `bundle_path`."""
    from tvm_mobilenet import deploy

    return deploy.build(model_path, output=tmp_path_factory.mktemp("bundles") / "small").path


@pytest.fixture
def bundle_path(built: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may change."""
    import shutil

    return Path(shutil.copytree(built, tmp_path / "bundle"))
