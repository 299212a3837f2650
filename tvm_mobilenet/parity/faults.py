"""Known faults to plant into a build: a parity tool that misses one is worthless.

Each is a change of the module after one phase of the compiler (`pipeline.Experiment`), in one call
of an operator that it suits, so that it is known where it must be found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import relax, tirx

from tvm_mobilenet.compiler_pass.schedule_operators import spec_of
from tvm_mobilenet.schedules import plain
from tvm_mobilenet.schedules.base import Rule, rules_for
from tvm_mobilenet.schedules.spec import ConvSpec, Spec

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec


@dataclass(frozen=True)
class Site:
    """The call that gets the fault: its function, specification, and constants by position."""

    function: tirx.PrimFunc
    spec: Any
    constants: dict[int, np.ndarray]
    target: TargetSpec


@dataclass(frozen=True)
class Changed:
    """What is put in the place of a call's function (None: it stays) and of some constants."""

    constants: dict[int, np.ndarray] = field(default_factory=dict)
    function: tirx.PrimFunc | None = None


@dataclass(frozen=True)
class Fault:
    """A fault: its name, after which phase it comes in, which operators it suits, the change."""

    name: str
    phase: str
    suits: Callable[[Spec], bool]
    plant: Callable[[Site], Changed]


class Planted:
    """A fault as an experiment's `change`; plants into the middle one of the calls that it suits.

    Of functions that are called once only: others would get it in several places.

    index: the call's place in the order of execution, None as long as nothing was planted.
    """

    def __init__(self, fault: Fault, target: TargetSpec) -> None:
        self.fault, self._target = fault, target
        self.index: int | None = None

    def __call__(self, phase: str, mod: tvm.IRModule) -> tvm.IRModule:
        """The module with the fault in it after the fault's phase, else as it is."""
        if phase != self.fault.phase:
            return mod
        calls = _calls(mod)
        suited = [
            number
            for number, call in enumerate(calls)
            if (spec := spec_of(mod[call.args[0]])) is not None
            and self.fault.suits(spec)
            and sum(other.args[0].same_as(call.args[0]) for other in calls) == 1
        ]
        if not suited:
            return mod
        self.index = suited[len(suited) // 2]
        call = calls[self.index]
        function = mod[call.args[0]]
        constants = {
            position: argument.value.numpy()
            for position, argument in enumerate(call.args[1].fields)
            if isinstance(argument, tvm.ir.GenericConst)
        }
        site = Site(function, spec_of(function), constants, self._target)
        changed = self.fault.plant(site)
        if changed.function is not None:
            mod = tvm.IRModule(dict(mod.functions), attrs=mod.attrs)
            mod.update_func(call.args[0], changed.function)
        return _Replacing(mod, call, changed.constants).run()


def _calls(mod: tvm.IRModule) -> list[Any]:
    return [
        binding.value
        for block in mod["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call)
        and getattr(binding.value.op, "name", "") == "relax.call_tir"
    ]


@relax.expr_functor.mutator
class _Replacing(relax.PyExprMutator):
    """Gives one call other constants."""

    def __init__(self, mod: tvm.IRModule, call: Any, constants: Mapping[int, np.ndarray]) -> None:
        super().__init__(mod)
        self._main, self._call, self._constants = mod["main"], call, constants

    def run(self) -> tvm.IRModule:
        main = self.builder_.get().get_global_var("main")
        self.builder_.update_func(main, self.visit_expr(self._main))
        return self.builder_.get()

    def visit_call_(self, call: Any) -> Any:
        if not call.same_as(self._call):
            return super().visit_call_(call)
        call = super().visit_call_(call)
        arguments = list(call.args[1].fields)
        for position, values in self._constants.items():
            arguments[position] = relax.const(values)
        return relax.call_tir(call.args[0], relax.Tuple(arguments), call.ty_args[0])


# ---------------------------------------------------------------- the faults


def _pointwise(spec: Spec) -> bool:
    return spec.kind == "pointwise"


def _depthwise(spec: Spec) -> bool:
    return isinstance(spec, ConvSpec) and spec.kind == "depthwise" and any(spec.padding)


def _swap_channels(site: Site) -> Changed:
    weight = site.constants[1].copy()
    weight[[0, 1]] = weight[[1, 0]]
    return Changed({1: weight})


def _shift_padding(site: Site) -> Changed:
    top, left, bottom, right = site.spec.padding
    moved = (top - 1, left, bottom + 1, right) if top else (top + 1, left, bottom - 1, right)
    return Changed(function=plain.build(dataclasses.replace(site.spec, padding=moved)))


def _drop_bias(site: Site) -> Changed:
    return Changed({2: np.zeros_like(site.constants[2])})


def _round_to_half(site: Site) -> Changed:
    return Changed({1: site.constants[1].astype(np.float16).astype(np.float32)})


def _flip_bit(site: Site) -> Changed:
    """The lowest bit of the exponent of the largest weight: it doubles, or is halved."""
    weight = np.ascontiguousarray(site.constants[1]).copy()
    bits = weight.reshape(-1).view(np.uint32)
    bits[abs(weight).argmax()] ^= np.uint32(1 << 23)
    return Changed({1: weight})


def _break_tail(site: Site) -> Changed:
    """The last pixel of every channel is written with its neighbour's value."""
    spec, function = site.spec, site.function
    channels, pixels = spec.out_channels, spec.out_pixels
    y = function.params[-1]
    n, c = (tirx.Var(name, "int32") for name in ("n", "c"))
    last, before = (
        plain.blocked_index(c, pixels - back, channels, pixels, spec.lanes) for back in (1, 2)
    )
    store: Any = tirx.BufferStore(y, tirx.BufferLoad(y, [n, before]), [n, last])
    for variable, extent in ((c, channels), (n, spec.batch)):
        store = tirx.For(variable, 0, extent, tirx.ForKind.SERIAL, store)
    realize = function.body
    old = realize.block
    block = type(old)(
        *(old.iter_vars, old.reads, old.writes, old.name_hint, tirx.SeqStmt([old.body, store])),
        *(old.init, old.alloc_buffers, old.match_buffers, old.annotations),
    )
    return Changed(
        function=function.with_body(type(realize)(realize.iter_values, realize.predicate, block))
    )


def _mispack(site: Site) -> Changed:
    """The kernel stays, and its weights lie as other knobs of its template would read them."""
    rule = next(r for r in rules_for(site.target) if r.takes(site.spec, site.target))
    shape = (site.spec.out_channels, site.spec.in_channels // site.spec.groups, *site.spec.kernel)
    numbered = np.arange(1, 1 + int(np.prod(shape)), dtype=np.float32).reshape(shape)
    right = rule.pack_weight(site.spec, rule.analytic(site.spec, site.target), numbered)
    packed = site.constants[1]
    if right.shape != packed.shape:
        raise ValueError("the kernel was not built with the analytic knobs")
    stale = _other_packing(rule, site, numbered, right)
    values = np.zeros(numbered.size + 1, np.float32)  # by number; 0 is what fills panels up
    values[right.astype(np.int64).reshape(-1)] = packed.reshape(-1)
    values[0] = 0
    return Changed({1: values[stale.astype(np.int64)]})


def _other_packing(rule: Rule, site: Site, numbered: np.ndarray, right: np.ndarray) -> np.ndarray:
    for knobs in rule.space(site.spec, site.target):
        stale = rule.pack_weight(site.spec, knobs, numbered)
        if stale.shape == right.shape and not np.array_equal(stale, right):
            return stale
    raise ValueError(f"{rule.name} packs {site.spec} in one way only")


def _mispackable(spec: Spec) -> bool:
    return spec.kind == "pointwise" and getattr(spec, "out_channels", 0) >= 4 * spec.lanes


FAULTS: Sequence[Fault] = (
    Fault("swapped channel", "joined", _pointwise, _swap_channels),
    Fault("off-by-one pad", "joined", _depthwise, _shift_padding),
    Fault("missing bias", "joined", _pointwise, _drop_bias),
    Fault("wrong stride tail", "scheduled", _depthwise, _break_tail),
    Fault("stale tuning record", "tuned", _mispackable, _mispack),
    Fault("bit-flipped weight", "scheduled", _pointwise, _flip_bit),
    Fault("f16 sneaked in", "joined", _pointwise, _round_to_half),
)
