"""Join two operators, the second of which alone reads the first's result, where a rule wants it.

Depthwise and pointwise convolution; channel scaling (squeeze-excite) and pointwise convolution.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import tvm
from tvm import relax

from tvm_mobilenet.schedules import plain
from tvm_mobilenet.schedules.base import joins
from tvm_mobilenet.schedules.spec import ScaledSpec, ScaleSpec, SeparableSpec, to_json
from tvm_mobilenet.targets import TargetSpec

from .lower_operators import CallSites
from .relax_graph import RelaxGraph, Step
from .schedule_operators import spec_of

Joint: TypeAlias = SeparableSpec | ScaledSpec


def join_operators(
    mod: tvm.IRModule, call_sites: CallSites, target: TargetSpec
) -> tuple[tvm.IRModule, CallSites]:
    """Rewrite ``main``; the call sites of a pair become one, at the second one's place."""
    joining = _Joining(mod, call_sites, target)
    return joining.run(), joining.call_sites


@relax.expr_functor.mutator
class _Joining(relax.PyExprMutator):
    def __init__(self, mod: tvm.IRModule, call_sites: CallSites, target: TargetSpec) -> None:
        super().__init__(mod)
        self._main = mod["main"]
        graph = RelaxGraph(self._main)
        own = [step for step in graph.steps if _spec(mod, step) is not None]
        bindings = {step.var: names for step, (_, names) in zip(own, call_sites, strict=True)}
        self._pairs: dict[Any, tuple[Step, Joint]] = {}  # the second one's variable -> its pair
        self._absorbed: set[Any] = set()
        for step in own:
            user = graph.sole_user(step.var)
            joint = _joint(mod, step, user) if user else None
            if user and joint and joins(joint, target):
                self._pairs[user.var] = (step, joint)
                self._absorbed.add(step.var)
                bindings[user.var] = bindings[step.var] + bindings[user.var]
        self._functions: dict[str, Any] = {}
        names = {
            step.var: self._function(self._pairs[step.var][1]).name_hint
            if step.var in self._pairs
            else step.value.args[0].name_hint
            for step in own
        }
        self.call_sites: CallSites = [
            (names[step.var], bindings[step.var]) for step in own if step.var not in self._absorbed
        ]

    def run(self) -> tvm.IRModule:
        main = self.builder_.get().get_global_var("main")
        self.builder_.update_func(main, self.visit_expr(self._main))
        return relax.transform.DeadCodeElimination()(self.builder_.get())

    def _function(self, spec: Joint) -> Any:
        key = to_json(spec)
        if key not in self._functions:
            name = f"{spec.kind}_{len(self._functions)}"
            self._functions[key] = self.builder_.add_func(plain.build(spec), name)
        return self._functions[key]

    def visit_var_binding_(self, binding: Any) -> None:
        if binding.var in self._pairs:
            first, spec = self._pairs[binding.var]
            arguments = [*first.value.args[1].fields, *binding.value.args[1].fields[1:]]
            call = relax.call_tir(
                self._function(spec), relax.Tuple(arguments), binding.value.ty_args[0]
            )
            binding = relax.VarBinding(binding.var, call)
        super().visit_var_binding_(binding)


def _spec(mod: tvm.IRModule, step: Step) -> Any:
    """The specification behind a call of an own function, or None."""
    return spec_of(mod[step.value.args[0]]) if step.is_call("relax.call_tir") else None


def _joint(mod: tvm.IRModule, first: Step, second: Step) -> Joint | None:
    """The two calls as one, where there is an operator for both."""
    one, two = (_spec(mod, step) for step in (first, second))
    if getattr(two, "kind", "") != "pointwise":
        return None
    x, *others = second.value.args[1].fields
    if not x.same_as(first.var) or any(other.same_as(x) for other in others):
        return None
    if one.kind == "depthwise" and not one.residual:
        return SeparableSpec(one, two)
    return ScaledSpec(one, two) if isinstance(one, ScaleSpec) else None
