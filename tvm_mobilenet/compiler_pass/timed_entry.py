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
from tvm.relax.utils import copy_with_new_vars
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tvm_mobilenet.runtime.library import TIMED_ENTRY
from tvm_mobilenet.targets import TargetSpec

from .relax_graph import bindings_of, is_kernel_call

_CLOCK = "read_clock"
_CLOCK_MONOTONIC = 1  # Linux's number of it


def add_timed_entry(mod: tvm.IRModule, target: TargetSpec) -> tvm.IRModule:
    """``mod`` with the second entry; runs after memory planning, before shapes are lowered."""
    main = copy_with_new_vars(mod["main"])
    count = sum(is_kernel_call(binding.value) for binding in bindings_of(main))
    builder = relax.BlockBuilder(mod)
    clock = builder.add_func(_clock(count + 1, target), _CLOCK)
    stamps = relax.Var("stamps", relax.TensorType([count + 1], "int64"))

    def reading(place: int) -> Any:
        call = relax.Call(clock, [stamps, relax.prim_value(place)])
        return relax.VarBinding(relax.Var("read", relax.TupleType([])), call)

    bindings: list[Any] = []
    done = 0
    for binding in bindings_of(main):
        if is_kernel_call(binding.value):
            bindings += [*([reading(0)] if done == 0 else []), binding, reading(done := done + 1)]
        else:
            bindings.append(binding)
    timed = relax.Function(
        [*main.params, stamps],
        relax.SeqExpr([relax.BindingBlock(bindings)], main.body.body),
        main.ret_ty,
        is_pure=False,
        attrs=main.attrs,
    ).with_attr({"global_symbol": TIMED_ENTRY, "num_input": len(main.params) + 1})
    builder.add_func(timed, TIMED_ENTRY)
    return builder.get()


def _clock(places: int, target: TargetSpec) -> tirx.PrimFunc:
    """``stamps[place] = nanoseconds of the monotonic clock``; about 20 ns by way of the vDSO."""
    # struct timespec: two longs
    word = "int64" if "64" in target.mtriple.split("-")[0] else "int32"
    with IRBuilder() as ib:
        with T.prim_func(s_tir=True):
            stamps = T.arg("stamps", T.buffer((places,), "int64"))
            place = T.arg("place", T.int64())
            with T.sblock("root"):
                T.reads()
                T.writes()
                now = T.sblock_alloc_buffer((2,), word, scope="local")
                T.evaluate(
                    tirx.call_extern(
                        "int32", "clock_gettime", _CLOCK_MONOTONIC, now.access_ptr("w")
                    )
                )
                seconds, nanoseconds = (now[i].astype("int64") for i in range(2))
                T.buffer_store(stamps, seconds * tirx.const(10**9, "int64") + nanoseconds, [place])
        return ib.get()
