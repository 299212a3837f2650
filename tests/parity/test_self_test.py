"""The tool catches planted faults, in their operators; and says so when it does not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import onnx
import pytest

from tvm_mobilenet.cli import main
from tvm_mobilenet.parity import self_test as module
from tvm_mobilenet.parity.faults import FAULTS, Changed, Fault
from tvm_mobilenet.parity.self_test import SelfTest, Trial


@pytest.mark.slow
def test_every_planted_fault_is_caught_and_located(
    small_network: onnx.ModelProto,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harmless = Fault("nothing at all", "joined", FAULTS[0].suits, lambda site: Changed())
    monkeypatch.setattr(module.self_test, "__kwdefaults__", {"faults": (*FAULTS, harmless)})
    path = tmp_path / "small.onnx"
    path.write_bytes(small_network.SerializeToString())
    assert main(["validate", "--self-test", str(path), "--json"]) == 5
    captured = capsys.readouterr()
    line = captured.err.splitlines()[-1]
    assert line.startswith("tvm-mobilenet: error: self-test failed: missed 'nothing at all'")
    sound, *faults, missed = json.loads(captured.out)["self_test"]["trials"]
    assert sound["passed"] and not sound["caught"]
    assert len(faults) == 7
    assert all(trial["passed"] and trial["planted"] == trial["found"] for trial in faults)
    assert not missed["passed"]


SOUND = Trial("", "", "", False, True, "", 0.9)
FOUND = Trial("missing bias", "joined", "operator 3 a", True, True, "operator 3 a", 1e5)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (dataclasses.replace(SOUND, located=False, found="operator 1 b"), "a sound build"),
        (
            dataclasses.replace(FOUND, caught=False, located=False, found=""),
            "missed 'missing bias'",
        ),
        (
            dataclasses.replace(FOUND, located=False, found="operator 4 b"),
            "looked for in operator 4",
        ),
    ],
)
def test_one_wrong_trial_fails_the_tool(wrong: Trial, says: str) -> None:
    assert SelfTest((SOUND, FOUND)).passed
    report = SelfTest((SOUND, FOUND, wrong))
    assert not report.passed
    assert says in report.summary()


def test_needs_a_subject(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate"]) == 2
    assert "say what to validate" in capsys.readouterr().err
    for other in (["--per-layer"], ["--rpc", "somewhere:1"]):
        assert main(["validate", "--self-test", *other]) == 2
        assert f"{other[0]} has no place in --self-test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "why"), [("cuda-sm80", "it is a GPU"), ("rpi4", "it is aarch64 code")]
)
def test_needs_code_for_this_cpu(target: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--self-test", "--target", target]) == 3
    assert f"not for {target}: {why}" in capsys.readouterr().err
