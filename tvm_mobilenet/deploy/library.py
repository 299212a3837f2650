"""The compiled module as a shared library, and what CPU it needs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import InputError, MissingToolError
from tvm_mobilenet.runtime import host

if TYPE_CHECKING:
    from tvm_mobilenet.compiler_pass.pipeline import Compiled
    from tvm_mobilenet.targets import TargetSpec


def export_library(compiled: Compiled, path: Path) -> Path:
    """Link the compiled module into a shared library at `path`.

    Raises MissingToolError when the linking compiler is not installed, InputError when it fails.
    """
    from tvm.support import cc

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


def cpu_features(target: TargetSpec) -> tuple[str, ...]:
    """Linux's names of the CPU features that code for this target may use, as LLVM knows it."""
    from tvm.target import codegen

    present = {str(name) for name in codegen.llvm_get_cpu_features(target.tvm_target())}
    names = host.feature_names(host.architecture(target.mtriple))
    return tuple(sorted(linux for llvm, linux in names.items() if llvm in present))
