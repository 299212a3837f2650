"""What ptxas gave each kernel, and more registers for those that it would have spill."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from tvm_mobilenet.runtime import nvrtc

_COMPILING = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_BOUNDS = re.compile(r"__launch_bounds__\((\d+), (\d+)\)\s+(\w+)")


@dataclass(frozen=True)
class Resources:
    """What ptxas gave one kernel: per thread (bytes of stack and spills), and shared per block."""

    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int

    @property
    def spills(self) -> bool:
        """Whether values that registers had no room for go through memory."""
        return self.spill_store_bytes + self.spill_load_bytes > 0


def parse_log(log: str) -> dict[str, Resources]:
    """Per kernel, what `ptxas -v` said of it."""
    found: dict[str, Resources] = {}
    kernel, stack, stores, loads = "", 0, 0, 0
    for line in log.splitlines():
        if named := _COMPILING.search(line):
            kernel = named[1]
        elif frame := _STACK.search(line):
            stack, stores, loads = (int(count) for count in frame.groups())
        elif used := _USED.search(line):
            shared = _SHARED.search(line)
            found[kernel] = Resources(
                int(used[1]), stack, stores, loads, int(shared[1]) if shared else 0
            )
    return found


def compile_without_spills(source: str, arch: str) -> tuple[str, nvrtc.Image]:
    """Compile CUDA C for `sm_90`; the source that was compiled in the end, and its machine code.

    ``__launch_bounds__(threads, blocks)`` promises a kernel as many blocks on a multiprocessor,
    who share its registers. One that spills is promised a block less and compiled again, until it
    does not or has the multiprocessor to itself. Raises as `nvrtc.compile_source`.
    """
    while True:
        image = nvrtc.compile_source(source, arch)
        spilling = {kernel for kernel, used in parse_log(image.log).items() if used.spills}
        relaxed = fewer_blocks(source, spilling)
        if relaxed == source:
            return source, image
        source = relaxed


def fewer_blocks(source: str, kernels: Collection[str]) -> str:
    """The source with one block less, and at least one, in the launch bounds of these kernels."""

    def bounds(found: re.Match[str]) -> str:
        threads, blocks, kernel = found.groups()
        if kernel not in kernels or blocks == "1":
            return found[0]
        return found[0].replace(f"({threads}, {blocks})", f"({threads}, {int(blocks) - 1})")

    return _BOUNDS.sub(bounds, source)
