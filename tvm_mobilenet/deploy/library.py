"""The compiled module as a shared library, and what CPU it needs."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import InputError, MissingToolError
from tvm_mobilenet.runtime import host

if TYPE_CHECKING:
    from tvm_mobilenet.compiler_pass.pipeline import Compiled
    from tvm_mobilenet.targets import TargetSpec


def export_library(compiled: Compiled, path: Path) -> Path:
    """Link the compiled module into a shared library at `path`.

    Raises MissingToolError when the linking compiler is not installed, InputError when it fails or
    the disk is full.
    """
    from tvm.support import cc

    _check_space(compiled.imported.onnx.ByteSize(), Path(tempfile.gettempdir()), path.parent)
    architecture = host.architecture(compiled.target.mtriple)
    if architecture == host.architecture():
        if cc.get_cc() is None:
            raise MissingToolError("no C++ compiler to link with; run: apt-get install g++")
        compiler = None
    else:
        name = f"{architecture}-linux-gnu-g++"
        if shutil.which(name) is None:
            package = f"g++-{architecture.replace('_', '-')}-linux-gnu"
            raise MissingToolError(f"{name} is missing; run: apt-get install {package}")
        compiler = cc.cross_compiler(name)
    try:
        compiled.executable.export_library(str(path), fcompile=compiler)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        telling = (line for line in lines if re.search(r"error:\s*\S|No space left", line))
        raise InputError(f"linking failed: {next(telling, lines[-1])}") from error
    return path


def _check_space(weights: int, *directories: Path) -> None:
    """LLVM ends the whole process when the disk is full, so it must not come to that.

    weights: the model's size in bytes; they are held once as object code and once linked.
    """
    needed = 3 * weights + 4 * 2**20
    for directory in directories:
        free = shutil.disk_usage(directory).free
        if free < needed:
            raise InputError(
                f"{directory}: no space left on the device to link in: {free / 1e6:.1f} MB free, "
                f"{needed / 1e6:.1f} MB needed; free some or set TMPDIR"
            )


def cpu_features(target: TargetSpec) -> tuple[str, ...]:
    """Linux's names of the CPU features that code for this target may use, as LLVM knows it."""
    from tvm.target import codegen

    present = {str(name) for name in codegen.llvm_get_cpu_features(target.tvm_target())}
    names = host.feature_names(host.architecture(target.mtriple))
    return tuple(sorted(linux for llvm, linux in names.items() if llvm in present))
