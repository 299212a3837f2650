"""Compilers for other devices than this machine: which there is, and how to get one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import InputError, MissingToolError
from tvm_mobilenet.runtime import host

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

_NDK_VARIABLES = ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT", "ANDROID_NDK")
# Debian's cross compilers, by architecture
_GNU = {
    "aarch64": "aarch64-linux-gnu",
    "armv7": "arm-linux-gnueabihf",
    "x86_64": "x86_64-linux-gnu",
}
# zig's names: of a library for boards with glibc 2.28 or newer, and of a static program
_ZIG = {
    "aarch64": ("aarch64-linux-gnu.2.28", "aarch64-linux-musl"),
    "armv7": ("arm-linux-gnueabihf.2.28", "arm-linux-musleabihf"),
}


@dataclass(frozen=True)
class Toolchain:
    """A C++ compiler that makes code for the device.

    `flags` make it mean the device; `static_flags`, in their place, for a static program.
    """

    command: tuple[str, ...]
    origin: str  # "--cc", "Debian's cross compiler", ...
    flags: tuple[str, ...] = ()
    static_flags: tuple[str, ...] = ()

    def run(self, *arguments: object, static: bool = False, cwd: Path | None = None) -> None:
        """Compile or link. InputError with the compiler's first complaint when it fails."""
        flags = self.static_flags if static else self.flags
        command = [*self.command, *flags, *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            telling = [line for line in lines if "error" in line or "No space left" in line]
            said = (telling or lines or [f"exit code {done.returncode}"])[0]
            raise InputError(f"{' '.join(self.command)} failed: {said}")

    def link_library(self, output: str, objects: Sequence[str], **_: object) -> None:
        """TVM's `fcompile`: a shared library of object files."""
        self.run("-shared", "-fPIC", "-o", output, *objects)

    @property
    def version(self) -> str:
        """The first line of what it says of itself; InputError when it does not run."""
        done = self.ask("--version")
        if done.returncode != 0:
            raise InputError(f"{' '.join(self.command)}: does not run ({done.stderr.strip()})")
        return (done.stdout.splitlines() or ["?"])[0]

    def ask(self, option: str) -> subprocess.CompletedProcess[str]:
        """What it says to an option alone; InputError when it cannot be started."""
        command = [*self.command, option]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise InputError(f"{self.command[0]}: does not run ({error.strerror})") from error

    def problem(self) -> str:
        """Why it cannot link a C++ program, found by trying; "" when it can."""
        with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
            source = Path(folder) / "trial.cc"
            source.write_text("#include <vector>\nint main() { return std::vector<int>(1)[0]; }\n")
            try:
                self.run("-std=c++17", source, "-o", source.with_suffix(""))
            except InputError as error:
                return str(error)
        return ""


def is_cross(target: TargetSpec) -> bool:
    """Whether code for the target is code for another kind of machine than this one."""
    return host.architecture(target.mtriple) != host.architecture() or "android" in target.mtriple


def find(target: TargetSpec, cc: str | None = None) -> Toolchain:
    """The compiler for a target of another kind of machine: `cc`, else the first one installed.

    Raises MissingToolError with the command that installs one, InputError for a `cc` that makes
    code for another machine.
    """
    if cc is not None:
        return _given(target, cc)
    if "android" in target.mtriple:
        return _android(target)
    architecture = host.architecture(target.mtriple)
    gnu = _GNU.get(architecture)
    if gnu and (path := shutil.which(f"{gnu}-g++")):
        return Toolchain((path,), "Debian's cross compiler")
    if architecture in _ZIG and _has_zig():
        return Toolchain(
            (sys.executable, "-m", "ziglang", "c++"),
            "the ziglang package",
            *(_zig_flags(target, triple) for triple in _ZIG[architecture]),
        )
    if gnu is None:
        raise MissingToolError(f"no compiler is known for {target.mtriple}; give one with --cc")
    package = f"g++-{gnu.replace('_', '-')}"
    raise MissingToolError(
        f"no C++ compiler for {target.name} ({target.mtriple}); run: apt-get install {package}"
        + (" (or: pip install ziglang)" if architecture in _ZIG else "")
    )


def own() -> Toolchain:
    """This machine's own compiler, as TVM chooses it; MissingToolError when there is none."""
    from tvm_mobilenet.runtime.library import tvm_ffi

    tvm_ffi()  # first, since it keeps PyTorch out
    from tvm.support import cc

    if (command := cc.get_cc()) is None:
        raise MissingToolError("no C++ compiler to link with; run: apt-get install g++")
    return Toolchain((command,), "this machine's")


def own_c() -> Toolchain:
    """This machine's own C compiler, $CC or the first one installed; MissingToolError."""
    command = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "cc", "clang")), None)
    if command is None or shutil.which(command) is None:
        missing = f"CC={command} was not found" if command else "no C compiler"
        raise MissingToolError(f"{missing}; run: apt-get install gcc")
    return Toolchain((command,), "this machine's")


def installed(file: str) -> Path:
    """A file or directory of an installed package, "package/path", without importing that."""
    package, _, rest = file.partition("/")
    found = importlib.util.find_spec(package)
    for directory in found.submodule_search_locations or () if found else ():
        if (path := Path(directory) / rest).exists():
            return path
    raise MissingToolError(f"{file} is missing; 'tvm-mobilenet doctor' says how to get it")


def _has_zig() -> bool:
    return importlib.util.find_spec("ziglang") is not None


def _zig_flags(target: TargetSpec, triple: str) -> tuple[str, ...]:
    # zig's own default adds checks that end the program
    return "-target", triple, f"-mcpu={target.mcpu.replace('-', '_')}", "-fno-sanitize=undefined"


def _given(target: TargetSpec, cc: str) -> Toolchain:
    command = tuple(cc.split())
    if not command or shutil.which(command[0]) is None:
        raise InputError(f"--cc {cc}: not found")
    toolchain = Toolchain(command, "--cc")
    done = toolchain.ask("-dumpmachine")
    machine = done.stdout.strip()
    made = "armv7" if machine.startswith("arm-") else host.architecture(machine or "?")
    wanted = host.architecture(target.mtriple)
    if done.returncode != 0 and (problem := toolchain.problem()):
        raise InputError(f"--cc {cc}: {problem}")
    if done.returncode == 0 and made != wanted:
        raise InputError(f"--cc {cc}: makes code for {machine}, {target.name} needs {wanted}")
    return toolchain


def _android(target: TargetSpec) -> Toolchain:
    name = f"{target.mtriple}-clang++"
    homes = [Path(os.environ[v]) for v in _NDK_VARIABLES if os.environ.get(v)]
    for home in homes:
        for path in sorted(home.glob(f"toolchains/llvm/prebuilt/*/bin/{name}")):
            return Toolchain((str(path),), "the Android NDK")
    if path_ := shutil.which(name):
        return Toolchain((path_,), "the Android NDK")
    where = f"{homes[0]} has no {name}" if homes else "ANDROID_NDK_HOME is not set"
    raise MissingToolError(
        f"no Android NDK for {target.name} ({where}); install it (sdkmanager 'ndk;27.2.12479018') "
        "and set ANDROID_NDK_HOME, or give its compiler with --cc"
    )
