"""Tuning on a device over RPC: tracker, server and `tune` on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import numpy_helper, parser

from tvm_mobilenet.tuning.records import RECORDS, read_records

TEXT = """<ir_version: 10, opset_import: ["" : 18]>
one (float[1,{0},{1},{1}] picture) => (float[1,{2},{3},{3}] features) {{
    stem = Conv<strides=[{4},{4}], pads=[1,1,1,1]>(picture, w0, b0)
    features = Relu(stem)
}}"""


def one_convolution(path: Path, channels: int, size: int, outputs: int, stride: int) -> Path:
    random = np.random.default_rng(0)
    one = parser.parse_model(TEXT.format(channels, size, outputs, size // stride, stride))
    for name, shape in {"w0": (outputs, channels, 3, 3), "b0": (outputs,)}.items():
        values = random.standard_normal(shape).astype(np.float32)
        one.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(one, path)
    return path


Start = Callable[..., tuple[str, subprocess.Popen[str]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `tvm-mobilenet rpc ...`; returns its address and process."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> tuple[str, subprocess.Popen[str]]:
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
        return f"{found['host']}:{found['port']}", process

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.rpc
def test_candidates_checks_and_races_run_on_the_device(start: Start, tmp_path: Path, cli) -> None:
    model = one_convolution(tmp_path / "one.onnx", 3, 16, 16, 2)
    tracker, _ = start("tracker")
    start("server", "--rpc-tracker", tracker, "--rpc-key", "box")
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


@pytest.mark.slow
@pytest.mark.rpc
def test_a_device_killed_in_the_middle_costs_no_candidate_and_is_reported(
    start: Start, tmp_path: Path
) -> None:
    """What it was measuring is measured by the other device of its key."""
    model = one_convolution(tmp_path / "one.onnx", 64, 56, 64, 1)  # half a second a candidate
    tracker, _ = start("tracker")
    place = ("--rpc-tracker", tracker, "--rpc-key", "pair")
    (victim, process), _ = (start("server", *place) for _ in range(2))
    command = [sys.executable, "-m", "tvm_mobilenet", "tune", str(model), *place]
    command += ["--threads", "1", "--logs", str(tmp_path / "logs"), "--trials", "6", "--json"]
    tuning = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    server = psutil.Process(process.pid)
    while not server.children():  # it serves each session in a process of its own
        assert tuning.poll() is None
        time.sleep(0.01)
    process.kill()
    output, errors = tuning.communicate()
    assert tuning.returncode == 0, errors
    found = json.loads(output)
    assert found["trials"] == 6
    assert {task["first_failure"] for task in found["tasks"]} == {None}
    assert f"{victim}: connection lost (" in errors
