"""What ptxas gave each kernel, and more registers for those that it would have spill."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    does not; one that has the multiprocessor to itself and spills keeps what it was promised.
    Raises as `nvrtc.compile_source`.
    """
    promised = {kernel: int(blocks) for _, blocks, kernel in _BOUNDS.findall(source)}
    tried = dict(promised)
    given_up: set[str] = set()
    while True:
        compiled = _with_blocks(source, tried)
        image = nvrtc.compile_source(compiled, arch)
        spilling = {kernel for kernel, used in parse_log(image.log).items() if used.spills}
        before = dict(tried)
        for kernel in (spilling & promised.keys()) - given_up:
            if tried[kernel] > 1:
                tried[kernel] -= 1
            else:
                tried[kernel] = promised[kernel]
                given_up.add(kernel)
        if tried == before:
            return compiled, image


def _with_blocks(source: str, blocks: Mapping[str, int]) -> str:
    """The source with other numbers of blocks in its kernels' launch bounds."""
    return _BOUNDS.sub(
        lambda found: f"__launch_bounds__({found[1]}, {blocks[found[3]]}) {found[3]}", source
    )
