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
from tvm_mobilenet.deploy.inspect import diff
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
    assert "scp bin/runner" in text and "--threads 4 --bench 100" in text
    assert "parity passed under" in text


def test_two_files_are_all_that_the_board_needs(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    shutil.copy(bundle / "bin/runner", tmp_path / "bin")
    shutil.copy(bundle / manifest.SAMPLES, tmp_path)
    done = runner(tmp_path, "--check", "--bench", 3, "--threads", 2)
    assert done.returncode == 0, done.stderr
    assert "parity passed on 2 samples" in done.stdout and "over 3 runs" in done.stdout


def test_two_builds_are_the_same_bytes(bundle: Path, model_path: Path, tmp_path: Path) -> None:
    again = deploy.build(model_path, target="rpi4", output=tmp_path / bundle.name).path
    assert diff(bundle, again) == []


def test_the_program_checks_itself_and_its_samples(bundle: Path, tmp_path: Path) -> None:
    for name in ("bin/runner", manifest.SAMPLES):
        copy = Path(shutil.copytree(bundle, tmp_path / name.replace("/", "_")))
        with (copy / name).open("r+b") as file:
            file.seek((copy / name).stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))
        done = runner(copy)
        assert done.returncode == 3, done.stdout
        assert f"{Path(name).name} differs from what was built" in done.stderr
    program = tmp_path / "bin/runner"
    program.parent.mkdir()
    program.write_bytes((bundle / "bin/runner").read_bytes()[:-1])
    program.chmod(0o755)
    assert "carries no SHA-256" in runner(tmp_path).stderr


@pytest.mark.parametrize("target", ["rpi4", "rpi2"])
@pytest.mark.needs_tool("qemu-arm", "qemu-user")
@pytest.mark.needs_tool("arm-linux-gnueabihf-g++", "g++-arm-linux-gnueabihf")
def test_it_classifies_and_reports_json(
    target: str, bundle: Path, model_path: Path, tmp_path: Path
) -> None:
    program, cpu = "qemu-aarch64", "cortex-a72"
    if target == "rpi2":
        bundle = deploy.build(model_path, target=target, output=tmp_path / "b").path
        program, cpu = "qemu-arm", "cortex-a7"
    (sample, *_) = load_samples(bundle / manifest.SAMPLES, ["picture"], ["result"])
    sample.inputs["picture"].tofile(tmp_path / "picture.raw")
    command = [program, "-cpu", cpu, bundle / "bin/runner", "--json", "--check", "--bench", "2"]
    command += ["--input", tmp_path / "picture.raw", "--top-k", "3"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["target"], said["verified"]) == (target, True)
    assert said["parity"]["state"] == "passed" and said["latency_ms"]["runs"] == 2
    best = np.argsort(-sample.float64["result"][0])[:3]
    assert [each["class"] for each in said["classes"]] == best.tolist()


def test_wrong_samples_fail_and_bad_use_is_refused(bundle: Path, tmp_path: Path) -> None:
    (first, *others) = load_samples(bundle / manifest.SAMPLES, ["picture"], ["result"])
    picture = {"picture": first.inputs["picture"] + np.float32(1)}
    save_samples(tmp_path / "wrong.npz", [Sample(picture, first.float32, first.float64), *others])
    done = runner(bundle, "--samples", tmp_path / "wrong.npz")
    assert (done.returncode, "FAIL result" in done.stdout) == (5, True)
    assert runner(bundle, "--samples", tmp_path / "gone.npz").returncode == 3
    for options in (("--only",), ("--bench", "0"), ("--bundle", "x")):
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
