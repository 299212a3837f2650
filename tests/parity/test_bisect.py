"""From a failing build to the operator, the phase, and a directory that shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.cli import main
from tvm_mobilenet.compiler_pass import pipeline
from tvm_mobilenet.parity import samples
from tvm_mobilenet.parity.bisect import ELSEWHERE, bisect
from tvm_mobilenet.parity.faults import FAULTS, Planted
from tvm_mobilenet.parity.reference import evaluate
from tvm_mobilenet.parity.repro import replay
from tvm_mobilenet.parity.self_test import judged_build
from tvm_mobilenet.targets import TargetSpec

PHASES = {"off-by-one pad": "fuse_separable", "stale tuning record": "tuning record"}


def no_records(spec: object, rule: str) -> None:
    """Nothing is tuned, but it could be."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PHASES)
def test_phase_of_a_planted_fault(name: str, small_network: onnx.ModelProto) -> None:
    fault = next(fault for fault in FAULTS if fault.name == name)
    imported, target = frontend.import_onnx(small_network), targets.load("native")
    references = evaluate(imported, samples(imported))
    _, layers = judged_build(imported, target, references, Planted(fault, target))
    arguments: dict[str, Any] = {"records": no_records, "progress": lambda text: None}
    finding = bisect(imported, target, layers, change=Planted(fault, target), **arguments)
    assert finding.phase == PHASES[name]
    assert [step.broken for step in finding.steps] == [False] * (len(finding.steps) - 1) + [True]
    # a compiler without the fault does not show it: then the fault was in that one build
    if name == "off-by-one pad":
        assert bisect(imported, target, layers, **arguments).phase == ELSEWHERE


def drop_biases(monkeypatch: pytest.MonkeyPatch, target: TargetSpec) -> None:
    """From now on the compiler loses the bias of a pointwise convolution."""
    compile_model: Callable[..., pipeline.Compiled] = pipeline.compile_model

    def with_fault(*arguments: Any, **options: Any) -> pipeline.Compiled:
        given = options.pop("experiment", None) or pipeline.Experiment()
        change = Planted(FAULTS[2], target)
        changed = pipeline.Experiment(given.last_phase, change, given.cautious_code)
        return compile_model(*arguments, experiment=changed, **options)

    monkeypatch.setattr(pipeline, "compile_model", with_fault)


@pytest.mark.slow
def test_command_ends_with_a_repro(
    small_network: onnx.ModelProto,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, repro = tmp_path / "small.onnx", tmp_path / "repro"
    onnx.save(small_network, model)
    target = targets.load("native")
    drop_biases(monkeypatch, target)
    assert main(["validate", str(model), "--bisect", str(repro)]) == 5
    line = capsys.readouterr().err.splitlines()[-1]
    assert "operator 4 pointwise_1 (Conv_8, Relu_9) breaks parity in phase 'fuse_separable'" in line
    assert str(repro) in line
    nodes = onnx.load(repro / "model.onnx").graph.node
    assert [node.op_type for node in nodes] == ["Conv", "Relu"]
    with np.load(repro / "inputs.npz") as inputs, np.load(repro / "expected.npz") as expected:
        assert set(inputs.files) == {"0.deep2_active", "1.deep2_active"}
        assert expected["0.wide2_active"].dtype == np.float64
    for options, code in (([], 5), (["--rebuild"], 0)):  # the installed compiler has no fault
        command = [sys.executable, "repro.py", *options]
        done = subprocess.run(command, cwd=repro, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
    assert main(["validate", str(model), "--bisect", str(repro)]) == 3  # nothing is overwritten


@pytest.mark.slow
@pytest.mark.arm
@pytest.mark.needs_tool("qemu-arm", "qemu-user")
@pytest.mark.needs_tool("arm-linux-gnueabihf-g++", "g++-arm-linux-gnueabihf")
def test_armv7_is_taken_apart_under_qemu(
    small_network: onnx.ModelProto,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, repro = tmp_path / "small.onnx", tmp_path / "repro"
    onnx.save(small_network, model)
    asked = ["validate", str(model), "--target", "rpi2", "--samples", "1"]
    drop_biases(monkeypatch, targets.load("rpi2"))
    assert main([*asked, "--bisect", str(repro), "--json"]) == 5
    captured = capsys.readouterr()
    operators = json.loads(captured.out)["parity"]["layers"]["operators"]
    assert [row["isolated"]["passed"] for row in operators] == [True] * 4 + [False] + [True] * 2
    assert [row["propagated"]["passed"] for row in operators] == [True] * 4 + [False] * 3
    line = captured.err.splitlines()[-1]
    assert "under qemu-arm -cpu cortex-a7" in line
    assert "pointwise_1 (Conv_8, Relu_9) breaks parity in phase 'fuse_separable'" in line
    report = replay(repro)
    assert not report.passed
    assert report.machine == "qemu-arm -cpu cortex-a7"
