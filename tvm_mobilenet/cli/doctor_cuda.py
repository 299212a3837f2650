"""What `doctor --target` looks for where the target is a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError, MissingToolError

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

Row = tuple[str, str, bool, str, str, str]  # name, needed for, required, found, problem, fix


def gpu_rows(target: TargetSpec) -> Iterator[Row]:
    """NVRTC and the target's architecture, headers, and the GPU of this machine."""
    from tvm_mobilenet.runtime import cuda, nvrtc

    assert target.gpu is not None
    use, arch = f"build --target {target.name}", target.gpu.arch

    def compiles() -> str:
        if arch not in nvrtc.architectures():
            raise InputError(f"does not compile for {arch}; give a newer one")
        nvrtc.compile_source('extern "C" __global__ void k() {}', arch)
        return f"{nvrtc.version()}, compiles for {arch}"

    yield _row("NVRTC", use, True, compiles)
    yield _row("CUDA headers", f"{use} --precision float16", False, nvrtc.include_directories)
    yield _row(
        "NVIDIA GPU",
        "running here; without one, parity is proven by emulation",
        False,
        lambda: f"sm_{cuda.compute_capability()}",
    )


def _row(name: str, use: str, required: bool, look: Callable[[], Any]) -> Row:
    try:
        found = look()
    except (MissingToolError, InputError) as error:
        problem, _, fix = re.sub(r"; run: ", "; ", str(error)).partition("; ")
        return name, use, required, "", problem, fix or "run it on a machine with one"
    text = found if isinstance(found, str) else ", ".join(map(str, found))
    return name, use, required, text, "", ""
