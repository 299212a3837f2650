"""A small kernel and its assembly, to see which registers and instructions a target gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import tvm


@pytest.fixture(scope="session")
def matmul() -> Callable[[int], tvm.IRModule]:
    """matmul(lanes): (7, 64) x (64, lanes) with 7 accumulators, vectors of `lanes` float32."""
    import tvm
    from tvm import te

    def build(lanes: int) -> tvm.IRModule:
        a = te.placeholder((7, 64), name="a")
        b = te.placeholder((64, lanes), name="b")
        k = te.reduce_axis((0, 64), "k")
        c = te.compute((7, lanes), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c")
        schedule = tvm.s_tir.Schedule(te.create_prim_func([a, b, c]))
        block = schedule.get_sblock("c")
        row, column, reduction = schedule.get_loops(block)
        schedule.reorder(reduction, row, column)
        schedule.vectorize(column)
        schedule.unroll(row)
        schedule.decompose_reduction(block, reduction)
        return schedule.mod

    return build


@pytest.fixture(scope="session")
def assembly() -> Callable[..., str]:
    """assembly(module, mcpu=..., mattr=[...]): what LLVM makes of it."""
    import tvm

    def compile_(module: tvm.IRModule, *, mcpu: str, mattr: Sequence[str] = ()) -> str:
        target = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": mcpu, "mattr": list(mattr)}
        executable = tvm.compile(module, target=tvm.target.Target(target))
        return str(executable.mod.inspect_source("asm"))

    return compile_
