"""A fourth entry to the network, ``main_counted``, that reads the processor's counters.

It takes three arguments more. ``descriptors``, int64, (threads,): a group of Linux's performance
events for each thread (perf_event_open(2)). ``readings``, int64, (places, threads, words): what
read(2) gives for each group, in one call, at each place. ``stamps``, int64, (places,): the clock
there. The places: as the call has entered compiled code; before the first operator; after each
one; at once again, which shows what a reading itself costs; before compiled code is left. A
negative descriptor is passed over: the clock alone is read then.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tvm_mobilenet.runtime.library import COUNTED_ENTRY
from tvm_mobilenet.targets import TargetSpec

from .extra_entry import ExtraEntry
from .timed_entry import read_clock, word

_COUNTERS = "read_counters"


def add_counted_entry(mod: tvm.IRModule, target: TargetSpec) -> tvm.IRModule:
    """``mod`` with the fourth entry; runs after memory planning, before shapes are lowered."""
    entry = ExtraEntry(mod)
    operators = len(entry.calls)
    places = operators + 4
    counters = entry.function(_counters(places, target), _COUNTERS)
    tensors = [
        relax.Var("descriptors", relax.TensorType(None, "int64", ndim=1)),
        relax.Var("readings", relax.TensorType(None, "int64", ndim=3)),
        relax.Var("stamps", relax.TensorType([places], "int64")),
    ]

    def read(place: int) -> None:
        entry.call(counters, tensors, place)

    def after(operator: int, _: Any) -> None:
        read(operator + 2)
        if operator == operators - 1:
            read(operators + 2)

    read(0)
    entry.copy_main(before=lambda: read(1), after=after)
    read(operators + 3)
    return entry.module(COUNTED_ENTRY, tensors)


def _counters(places: int, target: TargetSpec) -> tirx.PrimFunc:
    """The clock and every group's counters into ``place``."""
    size = word(target)
    with IRBuilder() as ib:
        with T.prim_func(s_tir=True):
            threads, words = (tirx.Var(name, "int64") for name in ("threads", "words"))
            descriptors = T.arg("descriptors", T.buffer((threads,), "int64"))
            readings = T.arg("readings", T.buffer((places, threads, words), "int64"))
            stamps = T.arg("stamps", T.buffer((places,), "int64"))
            place = T.arg("place", T.int64())
            with T.sblock("root"):
                T.reads()
                T.writes()
                read_clock(stamps, place, target)
                with T.serial(tirx.const(0, "int64"), threads) as thread:
                    group = descriptors[thread].astype("int32")
                    to = readings.access_ptr("w", offset=(place * threads + thread) * words)
                    with T.If(group >= 0), T.Then():
                        T.evaluate(
                            tirx.call_extern(size, "read", group, to, (words * 8).astype(size))
                        )
        return ib.get()
