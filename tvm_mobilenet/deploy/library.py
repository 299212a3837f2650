"""The compiled module as a shared library, and what CPU it needs."""

from __future__ import annotations

import re
import resource
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.deploy.toolchain import Toolchain, find, is_cross, own
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.runtime import host

if TYPE_CHECKING:
    import onnx

    from tvm_mobilenet.compiler_pass.pipeline import Compiled
    from tvm_mobilenet.targets import TargetSpec


def export_library(
    compiled: Compiled,
    path: Path,
    *,
    toolchain: Toolchain | None = None,
    objects: Path | None = None,
) -> Path:
    """Link the compiled module into a shared library at `path`.

    toolchain: what links; None: this machine's own compiler, or for another kind of machine the
    one that `toolchain.find` finds. objects: a directory that gets a copy of the object files.

    Raises MissingToolError when the linking compiler is not installed, InputError when it fails or
    the disk is full.
    """
    from tvm.support import cc

    _check_space(compiled.imported.onnx.ByteSize(), Path(tempfile.gettempdir()), path.parent)
    if toolchain is None and is_cross(compiled.target):
        toolchain = find(compiled.target)
    if toolchain is None:
        own()  # that there is one, before any work
    link = cc.create_shared if toolchain is None else toolchain.link_library

    def keep_and_link(output: str, files: Sequence[str], **options: object) -> None:
        if objects is not None:
            for file in files:
                shutil.copy(file, objects)
        link(output, files, **options)

    try:
        # TVM's own temporary directory complains in a traceback where none can be made
        with tempfile.TemporaryDirectory(
            prefix="tvm-mobilenet-", ignore_cleanup_errors=True
        ) as folder:
            compiled.executable.export_library(
                str(path), fcompile=keep_and_link, workspace_dir=folder
            )
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
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if most != resource.RLIM_INFINITY and most < needed:
        raise InputError(
            f"no file may be larger than {most / 1e6:.1f} MB here, linking needs "
            f"{needed / 1e6:.1f} MB; raise the limit (ulimit -f)"
        )
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

    present = {str(name) for name in codegen.llvm_get_cpu_features(target.host_target())}
    names = host.feature_names(host.architecture(target.mtriple))
    return tuple(sorted(linux for llvm, linux in names.items() if llvm in present))


def output_values(model: onnx.ModelProto, output: str) -> str:
    """What an output's values are: "probabilities" behind a softmax, else "scores"."""
    maker = {name: node.op_type for node in model.graph.node for name in node.output}
    return "probabilities" if maker.get(output) == "Softmax" else "scores"
