"""A third entry to the network, ``main_traced``, that shows what every operator computes.

It calls the same kernels in the same order on the same memory plan as ``main``, which stays as it
is: what it shows is what runs, faults of the memory plan included. It takes two arguments more:
``trace``, float32, a place for every element of every operator's result (`Result.offset`), and
``feed``, int64, one number an operator. After operator i its result is copied into the trace. With
``feed[i]`` set, what was in that place before goes where the result was: a trace that was filled
with a reference's tensors feeds every operator the reference's inputs, and comes back with what
each made of them. No operator's error then reaches the next one.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tvm_mobilenet.runtime.library import TRACED_ENTRY

from .extra_entry import ExtraEntry

_EXCHANGE = "exchange_result"


def add_traced_entry(mod: tvm.IRModule) -> tvm.IRModule:
    """``mod`` with the third entry; runs after memory planning, before shapes are lowered."""
    entry = ExtraEntry(mod)
    places = max(sum(map(traced_elements, entry.calls)), 1)
    operators = max(len(entry.calls), 1)
    trace = relax.Var("trace", relax.TensorType([places], "float32"))
    feed = relax.Var("feed", relax.TensorType([operators], "int64"))
    exchanges: dict[int, Any] = {}  # by the rank of the result
    offset = 0

    def after(operator: int, call: Any) -> None:
        nonlocal offset
        if elements := traced_elements(call):
            result = call.args[-1]
            rank = len(result.ty.shape)
            if rank not in exchanges:
                function = _exchange(rank, places, operators)
                exchanges[rank] = entry.function(function, f"{_EXCHANGE}_{rank}")
            entry.call(exchanges[rank], [result, trace, feed], offset, operator)
            offset += elements

    entry.copy_main(after)
    return entry.module(TRACED_ENTRY, [trace, feed])


def traced_elements(call: Any) -> int:
    """Elements of a kernel call's result, its last argument; 0 where it cannot be traced."""
    result = call.args[-1]
    traced = isinstance(result, relax.Var) and result.ty.dtype == "float32"
    return math.prod(int(extent) for extent in result.ty.shape) if traced else 0


def _exchange(rank: int, places: int, operators: int) -> tirx.PrimFunc:
    """``result`` into the trace, and what was there back, if the operator's ``feed`` says so."""
    with IRBuilder() as ib:
        with T.prim_func(s_tir=True):
            shape = [tirx.Var(f"extent_{axis}", "int64") for axis in range(rank)]
            result = T.arg("result", T.buffer(tuple(shape), "float32"))
            trace = T.arg("trace", T.buffer((places,), "float32"))
            feed = T.arg("feed", T.buffer((operators,), "int64"))
            offset, operator = T.arg("offset", T.int64()), T.arg("operator", T.int64())
            with T.sblock("root"):
                T.reads()
                T.writes()
                size = math.prod(shape, start=tirx.const(1, "int64"))
                flat = T.decl_buffer((size,), "float32", data=result.data)
                # a variable of its own: the exchange must have read before it writes
                before = T.alloc_buffer((1,), "float32", scope="local")
                with T.serial(tirx.const(0, "int64"), size) as i:
                    T.buffer_store(before, trace[offset + i], [0])
                    T.buffer_store(trace, flat[i], [offset + i])
                    with T.If(feed[operator] != tirx.const(0, "int64")), T.Then():
                        T.buffer_store(flat, before[0], [i])
        return ib.get()
