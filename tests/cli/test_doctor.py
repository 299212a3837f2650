"""doctor: what is there, what is missing, and the fix."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from tvm_mobilenet.cli import doctor, main

_REAL_VERSION = importlib.metadata.version


@pytest.fixture
def no_trial_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds; `test_everything_is_there` makes them."""
    monkeypatch.setattr(doctor, "_import_problem", lambda module: "")


def checks(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    document = json.loads(capsys.readouterr().out)
    return {check["name"]: check for check in document["checks"]}


@pytest.mark.slow
def test_everything_is_there(cli) -> None:
    result = cli("doctor", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["ok"]
    found = {check["name"]: check["found"] for check in document["checks"]}
    assert found["apache-tvm"] == _REAL_VERSION("apache-tvm")
    assert "LLVM" in found["native target"]


def test_table_has_a_line_for_every_declared_package(capsys, no_trial_imports) -> None:
    assert main(["doctor"]) == 0
    words = {word for line in capsys.readouterr().out.splitlines() for word in line.split()[:2]}
    assert {"Python", "apache-tvm-ffi", "torch", "psutil", "cloudpickle", "xgboost"} <= words
    assert {"onnxruntime", "openvino", "ncnn", "MNN", "C++", "cmake"} <= words


def test_version_outside_its_pin(capsys, monkeypatch, no_trial_imports) -> None:
    monkeypatch.setattr(
        importlib.metadata,
        "version",
        lambda name: "0.1.15.post1" if name == "apache-tvm-ffi" else _REAL_VERSION(name),
    )
    assert main(["doctor", "--json"]) == 4
    ffi = checks(capsys)["apache-tvm-ffi"]
    assert (ffi["required"], ffi["found"]) == (True, "0.1.15.post1")
    assert ffi["fix"] == "pip install 'apache-tvm-ffi<0.1.15,>=0.1.14.post0'"


@pytest.mark.parametrize(("package", "code"), [("psutil", 4), ("ncnn", 0)])
def test_package_that_is_not_installed(capsys, monkeypatch, no_trial_imports, package, code):
    def version(name: str) -> str:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return _REAL_VERSION(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert main(["doctor"]) == code
    captured = capsys.readouterr()
    line = next(line for line in captured.out.splitlines() if f" {package} " in line)
    assert line.startswith("MISSING" if code else "absent") and f"pip install '{package}" in line
    last = captured.err.splitlines()[-1]
    assert last.startswith("tvm-mobilenet: error: psutil: not installed") == bool(code)


@pytest.mark.parametrize("cxx", [None, "no-such-compiler"])
def test_no_compiler(capsys, monkeypatch, no_trial_imports, tmp_path: Path, cxx) -> None:
    if cxx:
        monkeypatch.setenv("CXX", cxx)
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["doctor", "--json"]) == 4
    found = checks(capsys)
    compiler, cmake = found["C++ compiler"], found["cmake"]
    assert compiler["fix"] == "apt-get install g++" and compiler["required"]
    assert compiler["problem"] == f"{cxx or 'g++'} not found"
    assert (cmake["problem"] == "") == bool(cxx) and not cmake["required"]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("x = 1", ""),
        ("import gone_for_good", "No module named 'gone_for_good'"),
        ("import os; os.abort()", "exit code -6"),
    ],
)
def test_trial_import(monkeypatch, tmp_path: Path, body: str, problem: str) -> None:
    (tmp_path / "tried.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = doctor._import_problem("tried")
    assert problem in found and bool(found) == bool(problem)


def test_target_without_a_compiler_names_the_installing_command(
    capsys, monkeypatch, no_trial_imports
) -> None:
    from tvm_mobilenet.deploy import toolchain

    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchain, "_has_zig", lambda: False)
    assert list(doctor._device("native", None)) == []
    compiler, emulator = doctor._device("rpi4", None)
    assert (compiler.required, compiler.fix.split(" (")[0]) == (
        True,
        "apt-get install g++-aarch64-linux-gnu",
    )
    assert (emulator.required, emulator.fix) == (False, "apt-get install qemu-user")
    (android, _) = doctor._device("pixel4", None)
    assert "ANDROID_NDK_HOME is not set" in android.problem


@pytest.mark.parametrize(("target", "required"), [("rpi4", False), ("x86-64-v3", True)])
def test_a_cross_compiler_links_alone(
    capsys, monkeypatch, no_trial_imports, target: str, required: bool
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    main(["doctor", "--target", target, "--json"])
    compiler = checks(capsys)["C++ compiler"]
    assert compiler["problem"] and compiler["required"] == required


def test_target_with_a_bad_compiler_or_name(capsys, no_trial_imports) -> None:
    (compiler, _) = doctor._device("rpi4", "g++-that-is-not-there")
    assert compiler.problem == "--cc g++-that-is-not-there: not found"
    assert main(["doctor", "--target", "rpi9"]) == 3
    assert main(["doctor", "--cc", "g++"]) == 2
    assert "--cc goes with --target" in capsys.readouterr().err


@pytest.mark.arm
@pytest.mark.needs_tool("qemu-aarch64", "qemu-user")
@pytest.mark.needs_tool("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
def test_target_with_everything_links_a_trial_program() -> None:
    compiler, emulator = doctor._device("rpi4", None)
    assert not compiler.problem and "Debian's cross compiler" in compiler.found
    assert emulator.found == "qemu-aarch64 -cpu cortex-a72"
