"""Fallback for functions without a template: parallel outside, vectors inside, for any loop nest.

Slow next to a template (its reductions run from memory), but no function is left as the plain
scalar loops that TVM's generic CPU pipeline compiles.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tvm import s_tir, tirx
from tvm.s_tir import dlight
from tvm.s_tir.schedule import ScheduleError

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

log = logging.getLogger(__name__)


def schedule(function: tirx.PrimFunc, target: TargetSpec) -> tirx.PrimFunc:
    """``function`` with inlined element-wise blocks, parallel outer and vector inner loops.

    A block that resists (data-dependent loops, say) keeps its plain loops, and this is logged.
    On a GPU DLight's rules schedule it.
    """
    if target.gpu is not None:
        from .cuda import fallback

        return fallback.schedule(function, target)
    sch = s_tir.Schedule(function)
    blocks = dlight.normalize_prim_func(sch)
    if blocks is None:
        log.info("fallback: loop nest not analysable, left as it is: %s", function.attrs)
        return function
    for info in dlight.try_inline(sch, blocks):
        try:
            _schedule_block(sch, info, target)
        except ScheduleError as error:
            log.info("fallback: block left as it is: %s", error)
    return sch.mod["main"]


def _schedule_block(sch: s_tir.Schedule, info: Any, target: TargetSpec) -> None:
    block = info.block_rv
    loops = sch.get_loops(block)
    kinds = info.dom_kind()
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == "S"]
    reduce = [loop for loop, kind in zip(loops, kinds, strict=True) if kind != "S"]
    if not spatial:
        return
    sch.reorder(*spatial, *reduce)
    fused = sch.fuse(*spatial) if len(spatial) > 1 else spatial[0]
    # Step 1. vectors over the innermost outputs; Step 2. threads over the rest
    outer, inner = sch.split(fused, [None, target.lanes])
    if reduce:
        sch.reorder(outer, *reduce, inner)
        sch.decompose_reduction(block, reduce[0])
    sch.vectorize(inner)
    if target.cores > 1:
        sch.parallel(outer)
