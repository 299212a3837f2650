"""A fault in what runs on a device is found there: operator, phase, and a repro that goes back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.cli import main
from tvm_mobilenet.compiler_pass import pipeline
from tvm_mobilenet.deploy.bundle import write_bundle
from tvm_mobilenet.errors import NothingMeasuredError
from tvm_mobilenet.parity import ParityReport, samples
from tvm_mobilenet.parity.faults import FAULTS, Planted
from tvm_mobilenet.parity.reference import evaluate
from tvm_mobilenet.parity.repro import replay_asked

pytestmark = [pytest.mark.slow, pytest.mark.rpc]

NETWORK = """<ir_version: 10, opset_import: ["" : 18]>
network (float[1,3,10,10] picture) => (float[1,5] scores) {
    stem = Conv<strides=[2,2], pads=[1,1,1,1]>(picture, w0, b0)
    stem_active = Relu(stem)
    wide = Conv(stem_active, w1, b1)
    wide_active = Relu(wide)
    mean = GlobalAveragePool(wide_active)
    flat = Flatten(mean)
    scores = Gemm(flat, w2)
}"""
SHAPES = {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (32, 16, 1, 1), "b1": (32,), "w2": (32, 5)}


def test_fault_on_a_device_is_found_there(
    start: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(0)
    model = parser.parse_model(NETWORK)
    for name, shape in SHAPES.items():
        values = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    path, bundle, repro = (tmp_path / name for name in ("network.onnx", "bundle", "repro"))
    onnx.save(model, path)
    imported, target = frontend.import_onnx(model), targets.load("native")

    right: Callable[..., pipeline.Compiled] = pipeline.compile_model

    def losing_a_bias(*arguments: Any, **options: Any) -> pipeline.Compiled:
        """The compiler, which now loses the bias of the pointwise convolution."""
        given = options.pop("experiment", None) or pipeline.Experiment()
        planted = replace(given, change=Planted(FAULTS[2], target))
        return right(*arguments, experiment=planted, **options)

    monkeypatch.setattr(pipeline, "compile_model", losing_a_bias)
    references = evaluate(imported, samples(imported))
    faulty = pipeline.compile_model(imported, target)
    write_bundle(faulty, ParityReport((), 0, not_checked="it is wrong"), references, bundle)
    server = start("server", "--rpc-key", "bisected")
    where = ["--rpc", server.address, "--rpc-key", "bisected"]
    asked = ["validate", str(bundle), "--model", str(path), "--samples", "1", *where]
    assert main([*asked, "--bisect", str(repro)]) == 5
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"parity failed under RPC at {server.address}: operator 1 pointwise_0" in line
    assert "(Conv_2, Relu_3) breaks parity in phase 'join_operators': 'wide_active'" in line
    assert f"needs the device that it was seen on ({server.address})" in (
        (repro / "README.md").read_text("utf-8")
    )
    monkeypatch.undo()
    command = [sys.executable, "repro.py"]
    done = subprocess.run(command, cwd=repro, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (5, "")
    assert f"parity failed under RPC at {server.address}" in done.stdout
    rebuilt = replay_asked(repro, ["--rebuild"])
    assert rebuilt.passed and server.address in rebuilt.machine  # the compiler is right again
    here = replay_asked(repro, ["--here"])
    assert not here.passed and not here.machine
    server.stop()
    with pytest.raises(NothingMeasuredError):
        replay_asked(repro, [])
