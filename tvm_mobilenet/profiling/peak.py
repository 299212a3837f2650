"""The machine's float32 limit: a loop of independent fused multiply-adds that stays in registers.

Measured as one more contestant, interleaved with the others, so that the clock frequency of the
run is in both sides of "share of peak".
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import MissingToolError

if TYPE_CHECKING:
    import numpy as np
    import tvm

    from tvm_mobilenet.targets import TargetSpec

KERNEL = "fma_peak"
STEPS = 1 << 17  # a call of about a millisecond: long against the call, short against a block


def chains(target: TargetSpec) -> int:
    """Independent accumulators: enough to cover the FMA's latency, few enough never to spill.

    At least latency (4 to 5 cycles) x units (2) are needed; two registers hold the factors.
    """
    return min(16, target.vector_registers - 4)


def flops(target: TargetSpec, threads: int) -> int:
    """Floating-point operations of one call of the kernel, a multiply-add counted as two."""
    return 2 * STEPS * chains(target) * target.lanes * threads


def kernel(target: TargetSpec, threads: int) -> tvm.IRModule:
    """`fma_peak(factors, out)`: every lane of `out` is x = x * factors[0] + factors[1], iterated.

    `factors`: float32 (2,); `out`: float32 (threads * chains * lanes,). The start value is 1.
    """
    import tvm
    from tvm import tirx
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script import builder as T

    lanes, count = target.lanes, chains(target)
    with IRBuilder() as ib:
        with T.prim_func(s_tir=True):
            T.func_attr({"global_symbol": KERNEL, "tirx.noalias": True})
            factors = T.arg("factors", T.buffer((2,), "float32"))
            out = T.arg("out", T.buffer((threads * count * lanes,), "float32"))
            with T.sblock("root"), ExitStack() as scopes:
                T.reads()
                T.writes()
                task = scopes.enter_context(T.parallel(0, threads)) if threads > 1 else 0
                # one buffer an accumulator: LLVM promotes each to a register
                x = [T.sblock_alloc_buffer((lanes,), "float32") for _ in range(count)]
                scale = T.sblock_alloc_buffer((lanes,), "float32")
                offset = T.sblock_alloc_buffer((lanes,), "float32")
                all_lanes = tirx.Ramp(0, 1, lanes)
                T.buffer_store(scale, tirx.Broadcast(factors[0], lanes), [all_lanes])
                T.buffer_store(offset, tirx.Broadcast(factors[1], lanes), [all_lanes])
                one = tirx.Broadcast(tirx.const(1.0, "float32"), lanes)
                for chain in x:
                    T.buffer_store(chain, one, [all_lanes])
                with T.serial(0, STEPS):
                    for chain in x:
                        step = chain[all_lanes] * scale[all_lanes] + offset[all_lanes]
                        T.buffer_store(chain, step, [all_lanes])
                for i, chain in enumerate(x):
                    place = tirx.Ramp((task * count + i) * lanes, 1, lanes)
                    T.buffer_store(out, chain[all_lanes], [place])
        function = ib.get()
    return tvm.IRModule({KERNEL: function})


def arguments(target: TargetSpec, threads: int) -> list[np.ndarray]:
    """Arguments with which every value stays 1: neither overflow nor denormals slow it down."""
    import numpy as np

    out = np.zeros(threads * chains(target) * target.lanes, np.float32)
    return [np.full(2, 0.5, np.float32), out]


def build(target: TargetSpec, threads: int, output: Path) -> Path:
    """Compile the kernel for `target` to a shared library; MissingToolError without a compiler."""
    return link(kernel(target, threads), target, output)


def link(kernels: tvm.IRModule, target: TargetSpec, output: Path) -> Path:
    """Compile kernels to one shared library; MissingToolError without a C++ compiler."""
    import tvm
    from tvm.support import cc

    if cc.get_cc() is None:
        raise MissingToolError("no C++ compiler to link with; run: apt-get install g++")
    tvm.compile(kernels, target=target.tvm_target()).export_library(str(output))
    return output
