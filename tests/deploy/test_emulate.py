"""Cross builds from end to end: the runner's verdict, refusals, counts, and no silent pass."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tvm_mobilenet import deploy
from tvm_mobilenet.deploy import emulate
from tvm_mobilenet.errors import InputError, ParityError
from tvm_mobilenet.parity.samples import Sample, load_samples, save_samples
from tvm_mobilenet.runtime import manifest

NEEDED = [
    pytest.mark.arm,
    pytest.mark.needs_tool("qemu-aarch64", "qemu-user"),
    pytest.mark.needs_tool("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu"),
]
pytestmark = [pytest.mark.slow, *NEEDED]


@pytest.fixture(scope="module")
def bundle(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deploy.build(
        model_path, target="rpi4", output=tmp_path_factory.mktemp("arm") / "small"
    ).path


def runner(bundle: Path, *options: object, cpu: str = "cortex-a72"):
    command = ["qemu-aarch64", "-cpu", cpu, bundle / "bin/runner", *options]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def test_the_bundle_is_proven_and_says_where(bundle: Path) -> None:
    document = json.loads((bundle / manifest.NAME).read_text())
    assert document["parity"]["state"] == "passed"
    assert document["parity"]["machine"] == "qemu-aarch64 -cpu cortex-a72"
    assert "bin/runner" in document["files"] and "aarch64" in document["tools"]["cross-compiler"]
    text = (bundle / "README.md").read_text()
    assert "scp bin/runner" in text and "--threads 4 --repeat 100" in text
    assert "parity passed under" in text


def test_two_files_are_all_that_the_board_needs(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    shutil.copy(bundle / "bin/runner", tmp_path / "bin")
    shutil.copy(bundle / manifest.SAMPLES, tmp_path)
    done = runner(tmp_path, "--repeat", 3, "--threads", 2)
    assert done.returncode == 0, done.stderr
    assert "parity passed on 2 samples" in done.stdout and "over 3 runs" in done.stdout


def test_wrong_samples_fail_and_bad_use_is_refused(bundle: Path, tmp_path: Path) -> None:
    (first, *others) = load_samples(bundle / manifest.SAMPLES, ["picture"], ["result"])
    picture = {"picture": first.inputs["picture"] + np.float32(1)}
    save_samples(tmp_path / "wrong.npz", [Sample(picture, first.float32, first.float64), *others])
    done = runner(bundle, "--samples", tmp_path / "wrong.npz")
    assert (done.returncode, "FAIL result" in done.stdout) == (5, True)
    assert runner(bundle, "--samples", tmp_path / "gone.npz").returncode == 3
    for options in (("--only",), ("--repeat", "0"), ("--nothing", "1")):
        assert runner(bundle, *options).returncode == 2


def test_a_core_that_lacks_a_feature_is_named(model_path: Path, tmp_path: Path) -> None:
    path = deploy.build(model_path, target="rpi5", output=tmp_path / "b").path
    done = runner(path, cpu="cortex-a72")
    assert done.returncode == 3
    assert "needs a CPU with" in done.stderr and "which this one lacks" in done.stderr


def test_instructions_are_counted_to_the_last_digit(bundle: Path) -> None:
    first, second = (emulate.count_instructions(bundle) for _ in range(2))
    assert first == second
    operators = json.loads((bundle / manifest.NAME).read_text())["operators"]
    assert len(first.operators) == len(operators)
    assert sum(first.operators) == pytest.approx(first.total, rel=0.02)
    for operator, count in zip(operators, first.operators, strict=True):
        assert count >= operator["mult_adds"] / 4  # no instruction does more


def test_a_native_bundle_has_no_instructions_to_count(built: Path) -> None:
    with pytest.raises(InputError, match="instructions are counted of cross builds"):
        emulate.count_instructions(built)


def test_without_qemu_nothing_passes_silently(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(emulate._QEMU, "aarch64", "qemu-gone")
    built = deploy.build(model_path, target="rpi4", output=tmp_path / "b")
    assert not built.parity.checked and not built.parity.passed
    document = json.loads((tmp_path / "b" / manifest.NAME).read_text())
    assert document["parity"]["state"] == "not checked"
    assert "on the board, bin/runner proves it" in document["parity"]["summary"]
    assert "**It is unproven**" in (tmp_path / "b/README.md").read_text()


def test_a_program_that_traps_writes_no_bundle(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trap.cc"
    trap.write_text("int main() { __builtin_trap(); }\n")
    program = tmp_path / "trap"
    subprocess.run(["aarch64-linux-gnu-g++", "-static", trap, "-o", program], check=True)
    real = emulate.prove
    monkeypatch.setattr(
        emulate, "prove", lambda runner, target, samples: real(program, target, samples)
    )
    with pytest.raises(ParityError, match=r"SIG(TRAP|ILL) under qemu-aarch64 -cpu cortex-a72"):
        deploy.build(model_path, target="rpi4", output=tmp_path / "b")
    assert not (tmp_path / "b").exists()
