"""Which compiler a target gets, in which order, and what is said when there is none."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tvm_mobilenet import targets
from tvm_mobilenet.cli import main
from tvm_mobilenet.deploy import toolchain
from tvm_mobilenet.errors import InputError, MissingToolError

RPI4, RPI2, PIXEL = (targets.load(name) for name in ("rpi4", "rpi2", "pixel4"))


def program(directory: Path, name: str, text: str = "exit 0") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH with nothing on it, which tests fill, no ziglang and no NDK."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT", "ANDROID_NDK"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(toolchain, "_has_zig", lambda: False)
    return tmp_path


@pytest.mark.parametrize(
    ("target", "package"), [(RPI4, "g++-aarch64-linux-gnu"), (RPI2, "g++-arm-linux-gnueabihf")]
)
def test_without_any_the_installing_command_is_named(nothing: Path, target, package: str) -> None:
    with pytest.raises(MissingToolError, match=r"run: apt-get install (\S+) \(or: pip") as caught:
        toolchain.find(target)
    assert package in str(caught.value)


def test_debian_comes_before_zig_and_cc_before_both(nothing: Path, monkeypatch) -> None:
    monkeypatch.setattr(toolchain, "_has_zig", lambda: True)
    assert toolchain.find(RPI4).origin == "the ziglang package"
    zig = toolchain.find(RPI4)
    assert zig.flags[:3] == ("-target", "aarch64-linux-gnu.2.28", "-mcpu=cortex_a72")
    assert zig.static_flags[1] == "aarch64-linux-musl"  # glibc cannot be linked statically by zig
    debian = program(nothing, "aarch64-linux-gnu-g++")
    assert toolchain.find(RPI4).command == (str(debian),)
    program(nothing, "mine", "echo aarch64-suse-linux")
    assert toolchain.find(RPI4, "mine --fast").command == ("mine", "--fast")


def test_a_compiler_for_another_machine_is_refused(nothing: Path) -> None:
    program(nothing, "mine", "echo x86_64-linux-gnu")
    with pytest.raises(InputError, match="makes code for x86_64-linux-gnu, rpi4 needs aarch64"):
        toolchain.find(RPI4, "mine")
    with pytest.raises(InputError, match="--cc gone: not found"):
        toolchain.find(RPI4, "gone")
    program(nothing, "broken").write_text("no program")
    with pytest.raises(InputError, match="broken: does not run"):
        toolchain.find(RPI4, "broken")
    program(nothing, "silent", "exit 1")
    with pytest.raises(InputError, match="--cc silent: silent failed: exit code 1"):
        toolchain.find(RPI4, "silent")


def test_android_takes_the_ndk(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingToolError, match="ANDROID_NDK_HOME is not set"):
        toolchain.find(PIXEL)
    monkeypatch.setenv("ANDROID_NDK_HOME", str(nothing / "ndk"))
    with pytest.raises(MissingToolError, match="ndk has no aarch64-linux-android24-clang"):
        toolchain.find(PIXEL)
    directory = nothing / "ndk/toolchains/llvm/prebuilt/linux-x86_64/bin"
    clang = program(directory, "aarch64-linux-android24-clang++")
    assert toolchain.find(PIXEL).command == (str(clang),)


def test_a_failing_compiler_says_why(nothing: Path) -> None:
    program(nothing, "aarch64-linux-gnu-g++", "echo 'x.cc:1: fatal error: no luck' >&2; exit 1")
    found = toolchain.find(RPI4)
    with pytest.raises(InputError, match=r"failed: x\.cc:1: fatal error: no luck"):
        found.run("x.cc")
    assert "no luck" in found.problem()


def test_build_stops_before_any_work_without_a_compiler(nothing: Path, capsys) -> None:
    output = nothing / "out"
    assert main(["build", "mobilenet_v1", "--target", "rpi4", "-o", str(output)]) == 4
    err = capsys.readouterr().err
    assert "apt-get install g++-aarch64-linux-gnu" in err and "importing" not in err
    assert not output.exists()
