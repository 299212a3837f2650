"""A second entry to the network, ``main_timed``, that notes the time around every operator.

It calls the same kernels in the same order on the same memory plan as ``main``, which stays as it
is, and takes one argument more: an int64 tensor of one place more than there are operators. A
clock reading goes into the first place when the first operator starts and into place i + 1 when
operator i has ended, so that the difference of neighbours is an operator with the virtual
machine's work for it. TVM's own ``VirtualMachine.set_instrument`` is of no use here: compiled
code (``exec_mode="compiled"``) never asks it.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tvm_mobilenet.runtime.library import TIMED_ENTRY
from tvm_mobilenet.targets import TargetSpec

from .extra_entry import ExtraEntry

_CLOCK = "read_clock"
_CLOCK_MONOTONIC = 1  # Linux's number of it


def add_timed_entry(mod: tvm.IRModule, target: TargetSpec) -> tvm.IRModule:
    """``mod`` with the second entry; runs after memory planning, before shapes are lowered."""
    entry = ExtraEntry(mod)
    places = len(entry.calls) + 1
    clock = entry.function(_clock(places, target), _CLOCK)
    stamps = relax.Var("stamps", relax.TensorType([places], "int64"))
    entry.copy_main(
        before=lambda: entry.call(clock, [stamps], 0),
        after=lambda operator, _: entry.call(clock, [stamps], operator + 1),
    )
    return entry.module(TIMED_ENTRY, [stamps])


def _clock(places: int, target: TargetSpec) -> tirx.PrimFunc:
    """``stamps[place] = nanoseconds of the monotonic clock``."""
    with IRBuilder() as ib:
        with T.prim_func(s_tir=True):
            stamps = T.arg("stamps", T.buffer((places,), "int64"))
            place = T.arg("place", T.int64())
            with T.sblock("root"):
                T.reads()
                T.writes()
                read_clock(stamps, place, target)
        return ib.get()


def read_clock(stamps: Any, place: Any, target: TargetSpec) -> None:
    """In the function being built: ``stamps[place] = now``; about 20 ns by way of the vDSO."""
    # struct timespec: two longs
    now = T.sblock_alloc_buffer((2,), word(target), scope="local")
    T.evaluate(tirx.call_extern("int32", "clock_gettime", _CLOCK_MONOTONIC, now.access_ptr("w")))
    seconds, nanoseconds = (now[i].astype("int64") for i in range(2))
    T.buffer_store(stamps, seconds * tirx.const(10**9, "int64") + nanoseconds, [place])


def word(target: TargetSpec) -> str:
    """The type of C's long and size_t."""
    return "int64" if "64" in target.mtriple.split("-")[0] else "int32"
