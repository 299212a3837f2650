"""How fast a core's registers can be filled from each level of the memory.

The kernel adds up a buffer in whole vectors, with enough independent sums that the additions hide
behind the loads. A buffer of half a level's size, read over and over, comes from that level.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tvm

    from tvm_mobilenet.targets import TargetSpec

SUMS = 16  # independent: latency of an addition (4 cycles) x additions a cycle (2), twice over
PASS_BYTES = 64 * 2**20  # that one call reads, at least: a millisecond or more
MEMORY_LIMIT = 2**30  # bytes; of the buffer that is to overflow every cache


@dataclass(frozen=True)
class Level:
    """One level of the memory: ``L1``, ``L2``, ``L3`` or ``memory``.

    ``kib`` is what a core can keep there (0: no limit), ``buffer_bytes`` what each thread reads to
    measure it.
    """

    name: str
    kib: int
    buffer_bytes: int

    @property
    def kernel(self) -> str:
        """The name of its function in the library."""
        return f"read_{self.name.lower()}"

    @property
    def passes(self) -> int:
        """How often one call reads the buffer."""
        return max(1, PASS_BYTES // self.buffer_bytes)


def levels(target: TargetSpec) -> tuple[Level, ...]:
    """The levels of a target's memory, the nearest first."""
    unit = SUMS * target.vector_bits // 8

    def whole(size: int) -> int:
        return max(unit, size // unit * unit)

    found = [
        Level("L1", target.l1d_kib, whole(target.l1d_kib * 512)),
        Level("L2", target.l2_kib, whole(target.l2_kib * 512)),
    ]
    if target.l3_kib:
        # half of a large L3 would measure its far slices, which a network of MiBs does not use
        half = min(target.l3_kib * 512, 16 * target.l2_kib * 1024)
        found.append(Level("L3", target.l3_kib, whole(half)))
    beyond = min(2 * 1024 * max(target.l2_kib, target.l3_kib), MEMORY_LIMIT)
    return (*found, Level("memory", 0, whole(beyond)))


def kernels(target: TargetSpec, threads: int, measured: Sequence[Level]) -> tvm.IRModule:
    """One function a level: `data`, float32 (threads x buffer,), is read, `out` gets the sums.

    `out`: float32 (threads * SUMS * lanes,). Every thread reads a part of its own.
    """
    import tvm

    return tvm.IRModule({level.kernel: _kernel(target, threads, level) for level in measured})


def _kernel(target: TargetSpec, threads: int, level: Level) -> tvm.tirx.PrimFunc:
    from tvm import tirx
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script import builder as T

    lanes, elements = target.lanes, level.buffer_bytes // 4
    with IRBuilder() as ib:
        with T.prim_func(s_tir=True):
            T.func_attr({"global_symbol": level.kernel, "tirx.noalias": True})
            data = T.arg("data", T.buffer((threads * elements,), "float32"))
            out = T.arg("out", T.buffer((threads * SUMS * lanes,), "float32"))
            with T.sblock("root"), ExitStack() as scopes:
                T.reads()
                T.writes()
                task = scopes.enter_context(T.parallel(0, threads)) if threads > 1 else 0
                # one buffer a sum: LLVM promotes each to a register
                sums = [T.sblock_alloc_buffer((lanes,), "float32") for _ in range(SUMS)]
                every = tirx.Ramp(0, 1, lanes)
                for one in sums:
                    T.buffer_store(one, tirx.Broadcast(tirx.const(0.0, "float32"), lanes), [every])
                with T.serial(0, level.passes), T.serial(0, elements // (SUMS * lanes)) as step:
                    for i, one in enumerate(sums):
                        place = tirx.Ramp(task * elements + (step * SUMS + i) * lanes, 1, lanes)
                        T.buffer_store(one, one[every] + data[place], [every])
                for i, one in enumerate(sums):
                    place = tirx.Ramp((task * SUMS + i) * lanes, 1, lanes)
                    T.buffer_store(out, one[every], [place])
        return ib.get()
