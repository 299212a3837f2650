"""`tvm-mobilenet doctor`: what is installed, what is missing, the fix for each."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm_mobilenet.cli.common import add_json, emit_json, print_table
from tvm_mobilenet.errors import InputError, MissingToolError, UsageError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from tvm_mobilenet.targets import TargetSpec

HELP = (
    "Check Python, packages and tools, and say how to get what is missing. "
    "Exit code 4 when something required is missing."
)

_EVERYTHING = "everything"
_OLDEST_PYTHON = (3, 11)

# Required packages whose module has another name than the package with '-' as '_'.
_MODULES = {"apache-tvm": "tvm", "apache-tvm-ffi": "tvm_ffi", "pillow": "PIL"}


@dataclass(frozen=True)
class Check:
    """One thing looked for. `problem` is empty when it is there and good."""

    name: str
    needed_for: str
    required: bool
    found: str
    problem: str
    fix: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """doctor [--target T [--cc COMMAND]] [--json]"""
    parser.add_argument(
        "--target", metavar="T", help="check what a build for this device needs, too"
    )
    parser.add_argument("--cc", metavar="COMMAND", help="the C++ compiler that build would get")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print every check on stdout; MissingToolError when a required one failed."""
    args.console.info("checking packages and tools, with a trial import of each required package")
    if args.cc and not args.target:
        raise UsageError("--cc goes with --target")
    device: list[Check] = []
    linked_here = True
    if args.target:
        from tvm_mobilenet import targets

        target = targets.load(args.target)  # a bad name: at once
        device = list(_device(args.target, args.cc))
        # a GPU's parity gate takes this machine's compiler in any case
        linked_here = target.gpu is not None or not _is_cross(target, args.cc)
    checks = [_python(), *_packages(), *_tools(linker=linked_here), _llvm(), *device]
    if args.json:
        emit_json("doctor", {"ok": not _missing(checks), "checks": checks})
    else:
        rows = [
            (_status(c), c.name, c.found or "-", c.needed_for, f"{c.problem}: {c.fix}")
            if c.problem
            else (_status(c), c.name, c.found, c.needed_for, "")
            for c in checks
        ]
        print_table(("", "WHAT", "FOUND", "FOR", "FIX"), rows)
    if missing := _missing(checks):
        first = f"{missing[0].name}: {missing[0].problem}; {missing[0].fix}"
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise MissingToolError(f"{first}{more}")
    return 0


def _missing(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.required and check.problem]


def _status(check: Check) -> str:
    if not check.problem:
        return "ok"
    return "MISSING" if check.required else "absent"


def _python() -> Check:
    oldest = ".".join(map(str, _OLDEST_PYTHON))
    good = sys.version_info >= _OLDEST_PYTHON
    return Check(
        name="Python",
        needed_for=_EVERYTHING,
        required=True,
        found=platform.python_version(),
        problem="" if good else f"{oldest} or newer is needed",
        fix="" if good else f"install Python {oldest} or newer",
    )


def _packages() -> Iterator[Check]:
    """The dependencies of the installed distribution, and of its extras, against their pins."""
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError as error:
        raise MissingToolError("packaging: not installed; pip install packaging") from error
    try:
        declared = importlib.metadata.requires("tvm-mobilenet") or []
    except importlib.metadata.PackageNotFoundError:
        fix = "pip install --editable ."
        yield Check("tvm-mobilenet", _EVERYTHING, True, "", "not installed", fix)
        return
    extras = importlib.metadata.metadata("tvm-mobilenet").get_all("Provides-Extra") or []
    checked = set()
    for requirement in map(Requirement, declared):
        needed_for = _needed_for(requirement, extras)
        if needed_for and requirement.name not in checked:
            checked.add(requirement.name)
            yield _package(requirement.name, str(requirement.specifier), needed_for=needed_for)


def _needed_for(requirement: Requirement, extras: Sequence[str]) -> str | None:
    """What asks for a package; None when nothing does on this machine."""
    marker = requirement.marker
    if marker is None or marker.evaluate({"extra": ""}):
        return _EVERYTHING
    return next((f"extra '{e}'" for e in extras if marker.evaluate({"extra": e})), None)


def _package(name: str, pin: str, *, needed_for: str) -> Check:
    from packaging.specifiers import SpecifierSet

    required = needed_for == _EVERYTHING
    found, problem = "", ""
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        problem = "not installed"
    else:
        if not SpecifierSet(pin).contains(found, prereleases=True):
            problem = f"this version does not work, {pin} does"
        elif required:
            problem = _import_problem(_MODULES.get(name, name.replace("-", "_")))
    fix = f"pip install '{name}{pin}'" if problem else ""
    return Check(name, needed_for, required, found, problem, fix)


def _import_problem(module: str) -> str:
    """Why a module does not import, in a separate process: a bad library can end the process."""
    result = subprocess.run(
        [sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False
    )
    if result.returncode == 0:
        return ""
    last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
    return f"does not import ({last})"


def _tools(*, linker: bool = True) -> Iterator[Check]:
    """linker: this machine's own compiler is what links."""
    chosen = os.environ.get("CXX") or os.environ.get("CC")  # what TVM links with, in its order
    compilers = (chosen,) if chosen else ("g++", "gcc", "clang++", "clang", "c++", "cc")
    yield _tool("C++ compiler", compilers, "g++", "build: links model.so", required=linker)
    yield _tool("cmake", ("cmake",), "cmake", "the bundle's C++ runner", required=False)
    yield _tool("objdump", ("objdump",), "binutils", "tests that disassemble", required=False)


def _tool(
    name: str, programs: tuple[str, ...], package: str, needed_for: str, *, required: bool
) -> Check:
    """The first of these programs that is there, with the first line of its --version."""
    path = next(filter(None, map(shutil.which, programs)), None)
    if path is None:
        problem, fix = f"{programs[0]} not found", f"apt-get install {package}"
        return Check(name, needed_for, required, "", problem, fix)
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    found = (version.stdout.splitlines() or [path])[0]
    return Check(name, needed_for, required, found, "", "")


def _llvm() -> Check:
    """What TVM's own LLVM makes of this machine."""
    try:
        from tvm.target import codegen

        from tvm_mobilenet.targets import detect

        native = detect()
        found = f"LLVM {codegen.llvm_version_major()}, {native.mcpu}, {native.vector_bits}-bit"
    except ImportError as error:
        return Check("native target", _EVERYTHING, True, "", str(error), "see apache-tvm above")
    return Check("native target", _EVERYTHING, True, found, "", "")


def _is_cross(target: TargetSpec, cc: str | None) -> bool:
    """Whether another compiler than this machine's own links for a target."""
    from tvm_mobilenet.deploy import toolchain

    return cc is not None or toolchain.is_cross(target)


def _device(name: str, cc: str | None) -> Iterator[Check]:
    """What `build --target` needs for a GPU, or another kind of machine: a compiler, and QEMU."""
    from tvm_mobilenet import targets
    from tvm_mobilenet.deploy import emulate, toolchain

    target = targets.load(name)
    target.tvm_target()  # InputError for a core or feature that is not there
    if target.gpu is not None:
        from tvm_mobilenet.cli.doctor_cuda import gpu_rows

        for row in gpu_rows(target):
            yield Check(*row)
    if not _is_cross(target, cc):
        return
    what, use = f"compiler for {name}", f"build --target {name}"
    try:
        compiler = toolchain.find(target, cc)
        found = f"{compiler.version} ({compiler.origin})"
        problem = compiler.problem()
        yield Check(what, use, True, found, problem, "reinstall it" if problem else "")
    except MissingToolError as error:
        problem, _, fix = str(error).partition("; ")
        yield Check(what, use, True, "", problem, fix.removeprefix("run: "))
    except InputError as error:
        yield Check(what, use, True, "", str(error), "give another")
    what, use = f"emulator for {name}", f"build --target {name}: proves parity before the board"
    try:
        command = emulate.emulator(target.mtriple, target.qemu_cpu)
        yield Check(what, use, False, " ".join(command), "", "")
    except MissingToolError as error:
        problem, _, rest = str(error).partition(" (")
        yield Check(what, use, False, "", problem, rest.rstrip(")") or "prove it on the board")
