"""The export command: the file, what it prints, and one line with the right code when it fails."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tvm_mobilenet.cli import main

SMALL = ("mobilenet_v1", "--alpha", "0.25", "--resolution", "32", "--classes", "10")


def test_writes_the_model_and_says_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "m.onnx"
    assert main(["export", *SMALL, "--exporter", "torchscript", "-o", str(path)]) == 0
    onnx.checker.check_model(onnx.load(path), full_check=True)
    line = capsys.readouterr().out
    assert line.startswith(f"{path}: mobilenet_v1, input 1x3x32x32, opset ")
    assert line.count("\n") == 1


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "m.onnx"
    arguments = ["--exporter", "torchscript", "--opset", "13", "--json", "-o", str(path)]
    assert main(["export", *SMALL, "--batch", "2", *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert document["kind"] == "export"
    assert document["opset"] == 13
    assert document["input_shape"] == [2, 3, 32, 32]
    assert document["bytes"] == path.stat().st_size


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["mobilenet_v7", "-o", "m.onnx"], 3, "'mobilenet_v7' is no built-in model"),
        (["mobilenet_v1", "--resolution", "31", "-o", "m.onnx"], 3, "resolution 31"),
        (["mobilenet_v1", "--alpha", "1.5", "-o", "m.onnx"], 3, "alpha 1.5"),
        ([*SMALL, "-o", "no/m.onnx"], 3, "no/m.onnx: the directory no does not exist"),
        ([*SMALL, "--opset", "0", "-o", "m.onnx"], 2, "--opset"),
        ([*SMALL, "--exporter", "caffe", "-o", "m.onnx"], 2, "--exporter"),
        (list(SMALL), 2, "-o/--output"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    error = captured.err.splitlines()[-1]
    assert error.startswith("tvm-mobilenet: error: ")
    assert said in error
    assert list(tmp_path.iterdir()) == []
