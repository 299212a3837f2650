"""Tuning on a device over RPC: tracker, server and `tune` on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tvm_mobilenet.tuning.records import RECORDS, read_records

TEXT = """<ir_version: 10, opset_import: ["" : 18]>
one (float[1,3,16,16] picture) => (float[1,16,8,8] features) {
    stem = Conv<strides=[2,2], pads=[1,1,1,1]>(picture, w0, b0)
    features = Relu(stem)
}"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A single convolution."""
    random = np.random.default_rng(0)
    one = parser.parse_model(TEXT)
    for name, shape in {"w0": (16, 3, 3, 3), "b0": (16,)}.items():
        values = random.standard_normal(shape).astype(np.float32)
        one.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(one, tmp_path / "one.onnx")
    return tmp_path / "one.onnx"


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[str]:
    """The address of a tracker with one device of the key "box"."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> str:
        command = [
            sys.executable,
            "-m",
            "tvm_mobilenet",
            "rpc",
            *arguments,
            "--port",
            "0",
            "--json",
        ]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        assert process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, f"rpc {arguments[0]} ended"
            text += line
        found = json.loads(text)
        return f"{found['host']}:{found['port']}"

    address = start("tracker")
    start("server", "--rpc-tracker", address, "--rpc-key", "box")
    yield address
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.rpc
def test_candidates_checks_and_races_run_on_the_device(
    model: Path, tracker: str, tmp_path: Path, cli
) -> None:
    logs = tmp_path / "logs"
    place = ("--rpc-tracker", tracker, "--rpc-key", "box", "--threads", 1, "--logs", logs)
    run = cli("tune", model, *place, "--trials", 6, "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["setting"]["device"] == "RPC key box"
    assert all(task["failed"] == 0 and task["baseline_seconds"] > 0 for task in found["tasks"])
    assert found["faults"] == []
    kept = [task for task in found["tasks"] if task["tuned"]]
    assert len(read_records(Path(found["directory"]) / RECORDS)) == len(kept)

    nobody = cli("tune", model, *place[:2], "--rpc-key", "none", "--logs", logs)
    assert nobody.returncode == 3
    assert "has no device of key 'none'" in nobody.stderr.splitlines()[-1]
