"""From a failing build to the operator, the phase, and a directory that shows it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.cli import main
from tvm_mobilenet.compiler_pass import pipeline
from tvm_mobilenet.deploy.cuda import source_only
from tvm_mobilenet.deploy.validate import operators_of
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.parity import samples
from tvm_mobilenet.parity.bisect import ELSEWHERE, bisect
from tvm_mobilenet.parity.cuda_network import MACHINE, NetworkEmulator
from tvm_mobilenet.parity.cut import target_of
from tvm_mobilenet.parity.faults import FAULTS, Planted
from tvm_mobilenet.parity.per_layer import per_layer
from tvm_mobilenet.parity.reference import evaluate
from tvm_mobilenet.parity.repro import replay, replay_asked
from tvm_mobilenet.parity.self_test import judged_build
from tvm_mobilenet.targets import TargetSpec

PHASES = {"off-by-one pad": "join_operators", "stale tuning record": "tuning record"}


@pytest.mark.parametrize("name", ["rpi2", "cuda-sm80"])
def test_target_of_a_bundle_is_the_one_that_it_was_built_for(name: str) -> None:
    target = dataclasses.replace(targets.load(name), cores=3)
    described = dataclasses.asdict(target)
    del described["source"]  # a path of the machine that built it
    written = json.loads(json.dumps({**described, "architecture": "any", "cpu_features": []}))
    assert dataclasses.replace(target_of(written), source=target.source) == target
    with pytest.raises(InputError, match="mtriple"):
        target_of({key: value for key, value in written.items() if key != "mtriple"})


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ([], 3, "nosuch.onnx: no such file"),
        (["--rpc-key", "k"], 2, "--rpc-key is a device's at a tracker or server"),
        (["--rpc-tracker", "a:1"], 2, "say which device of the tracker's"),
        (["--rpc", "a:1", "--rpc-tracker", "a:2"], 2, "give either --rpc"),
        (["--rpc", "a:1"], 2, "a device runs a bundle"),
        (["--rpc", "a:1", "--target", "cuda-sm80"], 3, "cuda-sm80 is a GPU"),
        (["--precision", "tf32"], 2, "--precision goes with a GPU"),
        (["--bisect", __file__], 3, "exists and is not an empty directory"),
        (["--bisect", f"{__file__}/repro"], 3, "nothing can be written"),
    ],
)
def test_what_cannot_be_bisected_is_said_in_a_line(
    options: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["validate", "nosuch.onnx", "--bisect", str(tmp_path / "repro"), *options]
    assert main(asked) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "repro").exists()


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


# Ends in a convolution: the operator that gives y its layout computes the same tensor again.
POINTWISE = """<ir_version: 10, opset_import: ["" : 18]>
network (float[1,3,10,10] picture) => (float[1,64,5,5] y) {
    stem = Conv<strides=[2,2], pads=[1,1,1,1]>(picture, w0, b0)
    x = Relu(stem)
    y = Conv(x, w1, b1)
}"""
GPU_PHASES = {
    "missing bias": "join_operators",
    "bit-flipped weight": "schedule or code generation",
    "stale tuning record": "tuning record",
}


def pointwise_network() -> onnx.ModelProto:
    """A stem and a pointwise convolution, which no GPU's rule joins; seeded weights."""
    random = np.random.default_rng(0)
    model = parser.parse_model(POINTWISE)
    shapes = {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (64, 16, 1, 1), "b1": (64,)}
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", GPU_PHASES)
def test_phase_of_a_fault_in_a_gpu_s_kernels(name: str) -> None:
    fault = next(fault for fault in FAULTS if fault.name == name)
    imported, target = frontend.import_onnx(pointwise_network()), targets.load("cuda-sm80")
    experiment = pipeline.Experiment(change=Planted(fault, target))
    with source_only(target):
        compiled = pipeline.compile_model(
            imported, target, records=no_records, experiment=experiment
        )
    with NetworkEmulator(compiled) as network:
        inputs = samples(imported, count=1)
        layers = per_layer(network.trace, operators_of(compiled), imported, inputs)
    assert [(row.kind, row.tensor, row.verdict) for row in layers.operators] == [
        ("stem", "x", "passed"),
        ("pointwise", "y", "AT FAULT"),
        ("layout", "y", "FAILED"),
    ]
    arguments: dict[str, Any] = {"records": no_records, "progress": lambda text: None}
    finding = bisect(imported, target, layers, change=Planted(fault, target), **arguments)
    assert (finding.operator.index, finding.phase) == (1, GPU_PHASES[name])
    assert [step.broken for step in finding.steps] == [False] * (len(finding.steps) - 1) + [True]


@pytest.mark.slow
def test_command_for_a_gpu_ends_with_a_repro(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, repro = tmp_path / "network.onnx", tmp_path / "repro"
    onnx.save(pointwise_network(), model)
    asked = ["validate", str(model), "--target", "cuda-sm80", "--samples", "1"]
    assert main([*asked, "--bisect", str(repro), "--rpc", "nowhere:1"]) == 3
    assert "cuda-sm80 is a GPU" in capsys.readouterr().err
    drop_biases(monkeypatch, targets.load("cuda-sm80"))
    assert main([*asked, "--bisect", str(repro)]) == 5
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"parity failed under {MACHINE}: operator 1 pointwise_0 (Conv_2) is at fault" in line
    assert "breaks parity in phase 'join_operators': 'y'" in line
    assert "It needs no GPU" in (repro / "README.md").read_text("utf-8")
    monkeypatch.undo()
    for options, passed in (([], False), (["--rebuild"], True)):
        report = replay_asked(repro, options)
        assert (report.machine, report.passed) == (MACHINE, passed)


def drop_biases(monkeypatch: pytest.MonkeyPatch, target: TargetSpec) -> None:
    """From now on the compiler loses the bias of a pointwise convolution."""
    compile_model: Callable[..., pipeline.Compiled] = pipeline.compile_model

    def with_fault(*arguments: Any, **options: Any) -> pipeline.Compiled:
        given = options.pop("experiment", None) or pipeline.Experiment()
        change = Planted(FAULTS[2], target)
        changed = dataclasses.replace(given, change=change)
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
    assert "operator 4 pointwise_1 (Conv_8, Relu_9) breaks parity in phase 'join_operators'" in line
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
    assert "pointwise_1 (Conv_8, Relu_9) breaks parity in phase 'join_operators'" in line
    report = replay(repro)
    assert not report.passed
    assert report.machine == "qemu-arm -cpu cortex-a7"
