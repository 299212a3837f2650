"""The fallback: schedule the functions that TVM's own lowering made of what is not ours."""

from __future__ import annotations

import tvm
from tvm import tirx

from tvm_mobilenet.schedules import fallback
from tvm_mobilenet.targets import TargetSpec

from .schedule_operators import spec_of


def schedule_rest(mod: tvm.IRModule, target: TargetSpec) -> tuple[tvm.IRModule, list[str]]:
    """Give every remaining PrimFunc the fallback schedule; returns the module and their names."""
    names = []
    for var, function in mod.functions.items():
        if isinstance(function, tirx.PrimFunc) and spec_of(function) is None:
            mod.update_func(var, fallback.schedule(function, target))
            names.append(var.name_hint)
    return mod, names
