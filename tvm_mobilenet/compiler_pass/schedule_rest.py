"""What is not ours: TVM's own lowering makes functions of it, which get a found or simple schedule.

A function without a template is scheduled by the trace of a tuning record (``tune --space sketch``)
where there is one, else by the fallback.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm import relax, s_tir, tirx

from tvm_mobilenet.schedules import fallback
from tvm_mobilenet.schedules.base import Recorded, fingerprint
from tvm_mobilenet.targets import TargetSpec

from .schedule_operators import spec_of

Traces = Callable[[str], Recorded | None]  # by `operator_of`; the knobs are {"trace": JSON}


@dataclass(frozen=True)
class Rest:
    """How one function was scheduled: ``tuned`` or ``fallback``; why not by a record there is."""

    source: str
    note: str = ""


def lower_rest(mod: tvm.IRModule) -> tvm.IRModule:
    """TVM's own lowering for what `lower_operators` left."""
    return tvm.transform.Sequential(
        [
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            # before scheduling, which would hide that a function only reshapes
            relax.transform.RewriteDataflowReshape(),
            relax.transform.DeadCodeElimination(),
        ]
    )(mod)


def rest_of(mod: tvm.IRModule) -> dict[str, tirx.PrimFunc]:
    """The functions of a lowered module that are not ours, by name."""
    return {
        var.name_hint: function
        for var, function in mod.functions.items()
        if isinstance(function, tirx.PrimFunc) and spec_of(function) is None
    }


def operator_of(function: tirx.PrimFunc) -> str:
    """The name of an unscheduled function in tuning records: its fingerprint and shapes."""
    shapes = [[int(n) for n in p.ty.shape] for p in function.params if hasattr(p.ty, "shape")]
    bare = tirx.PrimFunc(function.params, function.body)  # without names that differ by network
    return json.dumps({"spec": "PrimFunc", "fingerprint": fingerprint(bare), "shapes": shapes})


def schedule_rest(
    mod: tvm.IRModule, target: TargetSpec, traces: Traces | None = None
) -> tuple[tvm.IRModule, dict[str, Rest]]:
    """Schedule every remaining PrimFunc; returns the module and how, by function name."""
    done = {}
    for name, function in rest_of(mod).items():
        recorded = traces(operator_of(function)) if traces else None
        found, note = (None, "") if recorded is None else _traced(function, recorded)
        if found is None:
            done[name] = Rest("fallback", note)
            found = fallback.schedule(function, target)
        else:
            done[name] = Rest("tuned")
        mod.update_func(mod.get_global_var(name), found)
    return mod, done


def apply_trace(function: tirx.PrimFunc, trace: str) -> tirx.PrimFunc:
    """``function`` scheduled by a trace in MetaSchedule's JSON; raises what the schedule raises."""
    sch = s_tir.Schedule(tvm.IRModule({"main": function}))
    s_tir.schedule.Trace.apply_json_to_schedule(tvm.ir.load_json(trace), sch)
    return sch.mod["main"].with_attrs(dict(function.attrs or {}))


def _traced(function: tirx.PrimFunc, recorded: Recorded) -> tuple[tirx.PrimFunc | None, str]:
    try:
        found = apply_trace(function, recorded.knobs["trace"])
    except (s_tir.schedule.ScheduleError, RuntimeError, ValueError, TypeError, KeyError) as error:
        lines = str(error).strip().splitlines() or [repr(error)]
        return None, f"record not applied: {lines[-1][:120]}"
    if fingerprint(tirx.PrimFunc(found.params, found.body)) != recorded.fingerprint:
        return None, "record not applied: the kernel has changed since it was measured"
    return found, ""
