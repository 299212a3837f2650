"""Join operators that read each other's results, where a rule of the target wants it.

Depthwise and pointwise convolution; channel scaling (squeeze-excite) and pointwise convolution;
pooling and two dense layers (its gate), three operators that become two, the first of which may
compute the depthwise convolution before as well. What is joined away has no other reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

from tvm_mobilenet.schedules import plain
from tvm_mobilenet.schedules.base import gate, joins
from tvm_mobilenet.schedules.spec import (
    ConvSpec,
    DenseSpec,
    DepthwiseSqueezeSpec,
    Joint,
    PoolSpec,
    ScaledSpec,
    ScaleSpec,
    SeparableSpec,
    to_json,
)
from tvm_mobilenet.targets import TargetSpec

from .lower_operators import CallSites
from .relax_graph import RelaxGraph, Step
from .schedule_operators import spec_of


def join_operators(
    mod: tvm.IRModule, call_sites: CallSites, target: TargetSpec
) -> tuple[tvm.IRModule, CallSites]:
    """Rewrite ``main``; the call sites of a pair become one, at the second one's place."""
    joining = _Joining(mod, call_sites, target)
    return joining.run(), joining.call_sites


@dataclass(frozen=True)
class _Call:
    """What stands in the place of a call: another operator on arguments of the old function."""

    spec: Joint
    arguments: Sequence[Any]
    sums: Any = None  # the variable in whose place a squeeze's sums are read


@relax.expr_functor.mutator
class _Joining(relax.PyExprMutator):
    def __init__(self, mod: tvm.IRModule, call_sites: CallSites, target: TargetSpec) -> None:
        super().__init__(mod)
        self._mod, self._main, self._target = mod, mod["main"], target
        self._graph = RelaxGraph(self._main)
        own = [step for step in self._graph.steps if _spec(mod, step) is not None]
        self._sites = {step.var: names for step, (_, names) in zip(own, call_sites, strict=True)}
        self._calls: dict[Any, _Call] = {}  # by the variable of the call that it replaces
        self._absorbed: set[Any] = set()
        self._depthwise = {step.var: step for step in own if self._is_depthwise(step)}
        for step in own:
            if step.var not in self._calls and not self._plan_gate(step):
                self._plan_pair(step)
        self._functions: dict[str, Any] = {}
        names = {
            step.var: self._function(self._calls[step.var].spec).name_hint
            if step.var in self._calls
            else step.value.args[0].name_hint
            for step in own
        }
        self.call_sites: CallSites = [
            (names[step.var], self._sites[step.var])
            for step in own
            if step.var not in self._absorbed
        ]

    def _is_depthwise(self, step: Step) -> bool:
        """Whether it can be computed on the way, and its result is not the network's."""
        spec = _spec(self._mod, step)
        kind = isinstance(spec, ConvSpec) and spec.kind == "depthwise"
        return kind and not spec.residual and step.var not in self._graph.returned

    def _plan_pair(self, step: Step) -> None:
        user = self._graph.sole_user(step.var)
        joint = _joint(self._mod, step, user) if user else None
        if user and joint and joins(joint, self._target):
            arguments = [*_arguments(step), *_arguments(user)[1:]]
            self._calls[user.var] = _Call(joint, arguments)
            self._absorbed.add(step.var)
            self._sites[user.var] = self._sites[step.var] + self._sites[user.var]

    def _plan_gate(self, pool: Step) -> bool:
        """Pooling, dense, dense -> the first and its share in the second, the rest."""
        first = self._graph.sole_user(pool.var)
        second = self._graph.sole_user(first.var) if first else None
        if not first or not second:
            return False
        specs = [_spec(self._mod, step) for step in (pool, first, second)]
        if [type(spec) for spec in specs] != [PoolSpec, DenseSpec, DenseSpec]:
            return False
        (x,) = _arguments(pool)
        before = self._depthwise.pop(x, None)  # of several gates the first one computes it
        depthwise = _spec(self._mod, before) if before else None
        found = gate(depthwise, specs[0], specs[1], specs[2], self._target)
        if found is None:
            return False
        squeeze, excite = found
        weight, bias = _arguments(first)[1:]
        self._calls[second.var] = _Call(excite, [first.var, bias, *_arguments(second)[1:]])
        self._absorbed.add(pool.var)
        product, *after = self._sites[first.var]
        squeezed = (*self._sites[pool.var], product)
        self._sites[second.var] = (*after, *self._sites[second.var])
        if before is not None and isinstance(squeeze, DepthwiseSqueezeSpec):
            self._calls[x] = _Call(squeeze, [*_arguments(before), weight], sums=first.var)
            self._absorbed.add(first.var)
            *own, result = self._sites[x]
            self._sites[x] = (*own, *squeezed, result)  # the last names what is computed
        else:
            self._calls[first.var] = _Call(squeeze, [x, weight], sums=first.var)
            self._sites[first.var] = squeezed
        return True

    def run(self) -> tvm.IRModule:
        main = self.builder_.get().get_global_var("main")
        self.builder_.update_func(main, self.visit_expr(self._main))
        return relax.transform.DeadCodeElimination()(self.builder_.get())

    def _function(self, spec: Joint) -> Any:
        key = to_json(spec)
        if key not in self._functions:
            name = f"{spec.kind.replace('-', '_')}_{len(self._functions)}"
            self._functions[key] = self.builder_.add_func(plain.build(spec), name)
        return self._functions[key]

    def visit_var_binding_(self, binding: Any) -> None:
        call = self._calls.get(binding.var)
        if call is None:
            if binding.var not in self._absorbed:
                super().visit_var_binding_(binding)
            return
        function = self._function(call.spec)
        outputs = getattr(call.spec, "outputs", 1)
        types = [
            relax.TensorType([int(extent) for extent in param.ty.shape], param.ty.dtype)
            for param in self.builder_.get()[function].params[-outputs:]
        ]
        value = relax.call_tir(function, relax.Tuple(call.arguments), types)
        if call.sums is None:
            super().visit_var_binding_(relax.VarBinding(binding.var, value))
            return
        made = self.builder_.emit(self.visit_expr(value))
        if outputs == 1:
            self.set_var_remap(call.sums, made)
        else:  # the sums and the map
            self.set_var_remap(call.sums, self.builder_.emit(relax.TupleGetItem(made, 0)))
            self.set_var_remap(binding.var, self.builder_.emit(relax.TupleGetItem(made, 1)))


def _spec(mod: tvm.IRModule, step: Step) -> Any:
    """The specification behind a call of an own function, or None."""
    return spec_of(mod[step.value.args[0]]) if step.is_call("relax.call_tir") else None


def _arguments(step: Step) -> list[Any]:
    return list(step.value.args[1].fields)


def _joint(mod: tvm.IRModule, first: Step, second: Step) -> Joint | None:
    """The two calls as one, where there is an operator for both."""
    one, two = (_spec(mod, step) for step in (first, second))
    if getattr(two, "kind", "") != "pointwise":
        return None
    x, *others = _arguments(second)
    if not x.same_as(first.var) or any(other.same_as(x) for other in others):
        return None
    if one.kind == "depthwise" and not one.residual:
        return SeparableSpec(one, two)
    return ScaledSpec(one, two) if isinstance(one, ScaleSpec) else None
