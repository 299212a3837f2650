"""Replace each plain own function by its scheduled form, and pack its weights for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax

from tvm_mobilenet.schedules.base import Records, Scheduled, schedule
from tvm_mobilenet.schedules.emit import SPEC_ATTR
from tvm_mobilenet.schedules.spec import SeparableSpec, Spec, from_json, to_json
from tvm_mobilenet.targets import TargetSpec

from .cuda_kernels import PROGRAMMATIC


def spec_of(function: Any) -> Spec | None:
    """The specification that a function carries, or None if it is not one of ours."""
    attrs = getattr(function, "attrs", None)
    return from_json(str(attrs[SPEC_ATTR])) if attrs and SPEC_ATTR in attrs else None


def packing_of(scheduled: Mapping[str, tuple[Spec, Scheduled]]) -> dict[Spec, int]:
    """Which ``vectors`` the packed weights depend on, by the operator at batch 1."""
    return {
        _at_batch_1(spec): result.knobs["vectors"]
        for spec, result in scheduled.values()
        if "vectors" in result.knobs
    }


def _at_batch_1(spec: Any) -> Spec:
    """The operator that owns the packed weights: of a joint one the pointwise half."""
    owner = spec.pointwise if isinstance(spec, SeparableSpec) else spec
    return dataclasses.replace(owner, batch=1) if hasattr(owner, "batch") else owner


def schedule_operators(
    mod: tvm.IRModule,
    target: TargetSpec,
    records: Records | None = None,
    packing: Mapping[Spec, int] | None = None,
) -> tuple[tvm.IRModule, dict[str, tuple[Spec, Scheduled]]]:
    """Schedule every own function of ``mod``; with ``packing`` for weights that lie as that says.

    Returns the module and, by function name, the specification and how it was scheduled.
    """
    scheduled: dict[str, tuple[Spec, Scheduled]] = {}
    others = {}
    for var, function in mod.functions.items():
        spec = spec_of(function)
        if spec is None:
            others[var] = function
        else:
            vectors = packing.get(_at_batch_1(spec)) if packing else None
            result = schedule(spec, target, records, vectors)
            if target.gpu is not None and target.gpu.programmatic_launch:
                function = result.function.with_attr(PROGRAMMATIC, True)
                result = dataclasses.replace(result, function=function)
            scheduled[var.name_hint] = (spec, result)
    # packed weights change signatures, hence types: the functions get new global variables
    return _CallScheduled(tvm.IRModule(others, attrs=mod.attrs), scheduled).run(), scheduled


@relax.expr_functor.mutator
class _CallScheduled(relax.PyExprMutator):
    """Makes ``main`` call the scheduled functions, with weights packed as each one reads them."""

    def __init__(self, mod: tvm.IRModule, scheduled: dict[str, tuple[Spec, Scheduled]]) -> None:
        super().__init__(mod)
        self._main = mod["main"]
        self._scheduled = scheduled
        self._functions = {
            name: self.builder_.add_func(result.function.with_attr(SPEC_ATTR, to_json(spec)), name)
            for name, (spec, result) in scheduled.items()
        }

    def run(self) -> tvm.IRModule:
        main = self.builder_.get().get_global_var("main")
        self.builder_.update_func(main, self.visit_expr(self._main))
        return self.builder_.get()

    def visit_call_(self, call: Any) -> Any:
        call = super().visit_call_(call)
        if getattr(call.op, "name", "") != "relax.call_tir":
            return call
        name = call.args[0].name_hint
        if name not in self._scheduled:
            return call
        spec, result = self._scheduled[name]
        arguments = list(call.args[1].fields)
        if result.pack_weight is not None:
            for i in spec.weight_arguments:
                arguments[i] = relax.const(result.pack_weight(arguments[i].value.numpy(), i))
        (out,) = call.ty_args
        types = list(out.fields) if isinstance(out, relax.TupleType) else [out]
        return relax.call_tir(self._functions[name], relax.Tuple(arguments), types)
