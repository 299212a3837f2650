from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

SMALL = """<ir_version: 10, opset_import: ["" : 18]>
small (float[N,3,16,16] picture) => (float[N,7] scores, float[N,16] mean) {
    stem = Conv<strides=[2,2], pads=[1,1,1,1]>(picture, w0, b0)
    active = Relu(stem)
    pooled = GlobalAveragePool(active)
    mean = Flatten(pooled)
    scores = Gemm(mean, w1, b1)
}"""


@dataclass
class Running:
    """A tracker or server in a process of its own."""

    process: subprocess.Popen[str]
    address: str
    log: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


Start = Callable[..., Running]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts `tvm-mobilenet rpc ...` on a free port of loopback and waits until it listens."""
    started: list[Running] = []

    def run(*arguments: str) -> Running:
        folder = tmp_path_factory.mktemp("rpc")
        log = folder / "log"
        command = [sys.executable, "-m", "tvm_mobilenet", "rpc", *arguments, "--port", "0"]
        with log.open("w") as errors:
            process = subprocess.Popen(
                [*command, "--json"],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # TVM puts each session's folder there
                env={**os.environ, "TMPDIR": str(folder)},
            )
        assert process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, log.read_text()
            text += line
        document = json.loads(text)
        running = Running(process, f"{document['host']}:{document['port']}", log)
        started.append(running)
        return running

    yield run
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait(timeout=60)
        assert running.process.stdout is not None
        running.process.stdout.close()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network's bundle for this machine, with two outputs and two batch sizes."""
    from tvm_mobilenet import deploy

    random = np.random.default_rng(0)
    shapes = {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (16, 7), "b1": (7,)}
    model = parser.parse_model(SMALL)
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    folder = tmp_path_factory.mktemp("bundles")
    onnx.save(model, folder / "small.onnx")
    return deploy.build(folder / "small.onnx", output=folder / "small", batches=[4]).path


@pytest.fixture
def resealed(bundle: Path, tmp_path: Path) -> Callable[[str, bytes], Path]:
    """A copy of the bundle with one file replaced and the manifest made to agree."""
    from tvm_mobilenet.runtime import manifest

    def replace(name: str, content: bytes) -> Path:
        copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
        (copy / name).write_bytes(content)
        document: dict[str, Any] = dict(manifest.read(copy).document)
        del document["manifest_sha256"]
        document["files"][name] = {
            "sha256": manifest.file_digest(copy / name),
            "size": len(content),
        }
        (copy / manifest.NAME).write_text(manifest.seal(document))
        return copy

    return replace
