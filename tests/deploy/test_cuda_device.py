"""On a real GPU: the bundle's outputs are PyTorch's, and so are those under a CUDA graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tvm_mobilenet import deploy, targets
from tvm_mobilenet.runtime import Bundle, cuda

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.slow,
    pytest.mark.skipif(cuda.why_not_here() is not None, reason="hardware: no usable NVIDIA GPU"),
]


@pytest.mark.parametrize("model", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large"])
@pytest.mark.parametrize("batch", [1, 8])
def test_networks_are_proven_on_the_gpu(model: str, batch: int, tmp_path: Path) -> None:
    target = f"cuda-sm{cuda.compute_capability()}"
    if target not in targets.names():
        pytest.skip(f"hardware: no target describes {target}")
    built = deploy.build(
        model, target=target, resolution=128, batch=batch, output=tmp_path / "bundle"
    )
    assert built.parity.passed and not built.parity.machine
    with Bundle.load(built.path) as bundle:
        x = np.random.default_rng(0).standard_normal(bundle.inputs[0].shape).astype("float32")
        first = bundle.run(x)  # single launches; the graph is recorded here
        for _ in range(3):
            np.testing.assert_array_equal(bundle.run(x), first)
