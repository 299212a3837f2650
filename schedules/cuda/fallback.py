"""TVM's DLight rules for functions without a template on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tvm
from tvm import tirx
from tvm.s_tir import dlight

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec


def schedule(function: tirx.PrimFunc, target: TargetSpec) -> tirx.PrimFunc:
    """``function`` with threads bound by the first of DLight's rules that applies.

    Without GEMV: its kernel of 1000 outputs writes beyond them.
    """
    rules = dlight.gpu
    with target.tvm_target():
        mod = dlight.ApplyDefaultSchedule(
            rules.Matmul(),
            rules.Reduction(),
            rules.GeneralReduction(),
            rules.Fallback(),
        )(tvm.IRModule({"main": function}))
    return mod["main"]
