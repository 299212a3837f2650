"""Lower operator chains to calls of own functions on blocked activations.

Convolution + bias + residual + activation become one call; activations between such calls stay in
the blocked layout (see `tvm_mobilenet.schedules.spec`), so layouts change only where an operator
that is not ours stands between. The functions are the *plain* ones, with unpacked weights:
scheduling comes later and changes no meaning. The module's interface stays NCHW.

At float16 what is blocked is float16, weights too; what is NCHW stays float32, and with it the
network's interface and every operator that is not ours. Relax's ToMixedPrecision is of no use here:
it casts what an operator reads and writes, a kernel each, and knows operators of Relax only, while
our functions read the network's float32 input and write its float32 result themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.schedules import plain
from tvm_mobilenet.schedules.spec import (
    NONE,
    Activation,
    ConvSpec,
    DenseSpec,
    ElementwiseSpec,
    Joint,
    LayoutSpec,
    PoolSpec,
    Precision,
    ScaleSpec,
    Spec,
    storage,
    to_json,
)

from .activations import match_activation
from .relax_graph import RelaxGraph, Step, constant_of, shape_of

# Up to this many input channels a convolution reads NCHW as it is: packing would cost more.
FEW_CHANNELS = 4

# What each emitted call stands for: the Relax bindings that it replaces, in order.
CallSites = list[tuple[str, tuple[str, ...]]]


def lower_operators(
    mod: tvm.IRModule, lanes: int, precision: Precision = "float32"
) -> tuple[tvm.IRModule, CallSites]:
    """Rewrite ``main``; ``lanes`` is the target's vector width in float32.

    Returns the module and, for each call of an own function in order, the function's name and the
    names of the original bindings behind it. Raises InputError for a weight beyond float16.
    """
    lowering = _Lowering(mod, lanes, precision)
    return lowering.run(), lowering.call_sites


@dataclass
class _Value:
    """A tensor of the original function: in NCHW, blocked, or both."""

    shape: tuple[int, ...]
    nchw: Any = None
    blocked: Any = None


@dataclass
class _Lowering:
    mod: tvm.IRModule
    lanes: int
    precision: Precision = "float32"
    call_sites: CallSites = field(default_factory=list)

    @property
    def storage(self) -> str:
        """Type of what is blocked, and of weights."""
        return storage(self.precision)

    def run(self) -> tvm.IRModule:
        self.graph = RelaxGraph(self.mod["main"])
        self.builder = relax.BlockBuilder(self.mod)
        self.values: dict[Any, _Value] = {}
        self.functions: dict[str, Any] = {}
        self.kinds: dict[str, int] = {}
        self.claimed: set[Any] = set()  # variables computed inside a chain
        self.emit_at: dict[Any, Callable[[], None]] = {}  # last variable of a chain -> its call

        old = self.mod["main"]
        params = list(old.params)
        for param in params:
            self.values[param] = _Value(shape_of(param), nchw=param)
        for step in self.graph.steps:
            if step.var not in self.claimed:
                self._plan(step)
        main_var = self.mod.get_global_var("main")
        with self.builder.function("lowered", params, attrs=dict(old.attrs)):
            with self.builder.dataflow():
                for step in self.graph.steps:
                    if step.var in self.emit_at:
                        self.emit_at[step.var]()
                    elif step.var not in self.claimed:
                        self._keep(step)
                outputs = [self._nchw(var) for var in self.graph.returned]
                is_tuple = isinstance(old.body.body, relax.Tuple)
                result: Any = relax.Tuple(outputs) if is_tuple else outputs[0]
                result = self.builder.emit_output(result)
            self.builder.emit_func_output(result)
        lowered = self.builder.finalize()
        functions = {
            var: function
            for var, function in lowered.functions.items()
            if var.name_hint not in ("main", "lowered")
        }
        main = lowered["lowered"].with_attr("global_symbol", "main")
        return tvm.IRModule({main_var: main, **functions}, attrs=self.mod.attrs)

    # -- planning: which steps belong to one call -------------------------------------------

    def _plan(self, step: Step) -> None:
        for op, plan in (
            ("relax.nn.conv2d", self._plan_conv),
            ("relax.matmul", self._plan_dense),
            ("relax.mean", self._plan_pool),
            ("relax.multiply", self._plan_multiply),
            ("relax.add", self._plan_add),
            ("relax.reshape", self._plan_reshape),
        ):
            if step.is_call(op) and plan(step):
                return
        for operand in dict.fromkeys(_tensor_args(step)):
            if isinstance(operand, relax.Var) and self._plan_activation(step, operand):
                return

    def _claim(self, steps: Sequence[Step], emit: Callable[[], None]) -> bool:
        self.claimed.update(step.var for step in steps)
        self.emit_at[steps[-1].var] = emit
        return True

    def _epilogue(
        self, steps: list[Step], channels: int, *, residual: bool
    ) -> tuple[np.ndarray, Any, Activation]:
        """Extend ``steps`` by bias, residual and activation, as far as they follow."""
        bias, other, activation = np.zeros(channels, "float32"), None, NONE
        user = self.graph.sole_user(steps[-1].var)
        if user and user.is_call("relax.add"):
            constant = constant_of(user.value.args[1])
            if constant is not None and constant.size == channels and _per_channel(user):
                bias = constant.reshape(channels)
                steps.append(user)
                user = self.graph.sole_user(steps[-1].var)
        if residual and user and user.is_call("relax.add") and user.var not in self.claimed:
            a, b = user.value.args
            if isinstance(a, relax.Var) and isinstance(b, relax.Var) and shape_of(a) == shape_of(b):
                other = b if a.same_as(steps[-1].var) else a
                if other.same_as(steps[-1].var):
                    other = None
                else:
                    steps.append(user)
        if match := match_activation(self.graph, steps[-1].var):
            activation, more = match
            steps.extend(more)
        return bias, other, activation

    def _plan_conv(self, step: Step) -> bool:
        call, attrs = step.value, step.value.attrs
        weight = constant_of(call.args[1])
        n, c, h, w = shape_of(call.args[0])
        o = shape_of(step.var)[1]
        groups = int(attrs.groups)
        plain_conv = groups == 1
        depthwise = groups == c == o
        layouts = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout)
        if weight is None or not (plain_conv or depthwise) or layouts != ("NCHW", "OIHW", "NCHW"):
            return False
        steps = [step]
        kernel = tuple(weight.shape[2:])
        stride, dilation = _pair(attrs.strides), _pair(attrs.dilation)
        top, left, bottom, right = (int(p) for p in attrs.padding)
        if plain_conv and (h, w) == (1, 1) and kernel == (1, 1) and not top + left + bottom + right:
            bias, _, activation = self._epilogue(steps, o, residual=False)
            spec: Spec = DenseSpec(n, c, o, self.lanes, activation)
            return self._claim(
                steps,
                lambda: self._emit(
                    spec, steps, [self._flat(call.args[0])], [weight.reshape(o, c), bias]
                ),
            )
        nchw = plain_conv and c <= FEW_CHANNELS
        bias, other, activation = self._epilogue(steps, o, residual=True)
        spec = ConvSpec(
            batch=n,
            in_channels=c,
            in_height=h,
            in_width=w,
            out_channels=o,
            kernel=kernel,
            stride=stride,
            padding=(top, left, bottom, right),
            dilation=dilation,
            groups=groups,
            lanes=self.lanes,
            input_layout="nchw" if nchw else "blocked",
            activation=activation,
            residual=other is not None,
        )

        def emit() -> None:
            x = self._nchw(call.args[0]) if nchw else self._blocked(call.args[0])
            late = [self._blocked(other)] if other is not None else []
            self._emit(spec, steps, [x], [weight, bias], late)

        return self._claim(steps, emit)

    def _plan_dense(self, step: Step) -> bool:
        x, w = step.value.args
        weight = constant_of(w)
        if weight is None or weight.ndim != 2 or len(shape_of(x)) != 2:
            return False
        steps = [step]
        features, outputs = weight.shape
        bias, _, activation = self._epilogue(steps, outputs, residual=False)
        spec = DenseSpec(shape_of(x)[0], features, outputs, self.lanes, activation)
        packed = np.ascontiguousarray(weight.T)
        return self._claim(steps, lambda: self._emit(spec, steps, [self._flat(x)], [packed, bias]))

    def _plan_pool(self, step: Step) -> bool:
        attrs, shape = step.value.attrs, shape_of(step.value.args[0])
        axes = sorted(int(a) % len(shape) for a in attrs.axis) if attrs.axis else []
        if len(shape) != 4 or axes != [2, 3]:
            return False
        spec = PoolSpec(*shape, lanes=self.lanes)
        return self._claim(
            [step], lambda: self._emit(spec, [step], [self._blocked(step.value.args[0])])
        )

    def _plan_multiply(self, step: Step) -> bool:
        a, b = step.value.args
        shape = shape_of(step.var)
        if len(shape) != 4:
            return False
        if constant_of(b) is not None:
            return self._plan_batch_norm(step)
        if constant_of(a) is not None:
            return False
        steps = [step]
        for x, factor in ((a, b), (b, a)):
            if shape_of(x) == shape and shape_of(factor) == (*shape[:2], 1, 1) != shape:
                spec = ScaleSpec(*shape, lanes=self.lanes, activation=self._activation(steps))
                return self._claim(steps, partial(self._emit_scale, spec, steps, x, factor))
        return self._plan_binary(step, "multiply")

    def _plan_add(self, step: Step) -> bool:
        a, b = step.value.args
        if len(shape_of(step.var)) != 4:
            return False
        if constant_of(b) is not None:
            return self._plan_batch_norm(step)
        return constant_of(a) is None and self._plan_binary(step, "add")

    def _emit_scale(self, spec: ScaleSpec, steps: Sequence[Step], x: Any, factor: Any) -> None:
        self._emit(spec, steps, [self._blocked(x), self._flat(factor)])

    def _plan_binary(self, step: Step, op: str) -> bool:
        a, b = step.value.args
        if not (shape_of(a) == shape_of(b) == shape_of(step.var)):
            return False
        steps = [step]
        n, *rest = shape_of(step.var)
        spec = ElementwiseSpec((n, int(np.prod(rest))), op, self.lanes, self._activation(steps))
        return self._claim(
            steps,
            lambda: self._emit(spec, steps, [self._blocked(a), self._blocked(b)]),
        )

    def _plan_batch_norm(self, step: Step) -> bool:
        """A per-channel factor or offset that nothing could absorb: a 1x1 depthwise convolution."""
        n, c, h, w = shape_of(step.var)
        if shape_of(step.value.args[0]) != (n, c, h, w) or not _per_channel(step):
            return False
        factor = np.ones(c, "float32")
        offset = np.zeros(c, "float32")
        constant = constant_of(step.value.args[1])
        assert constant is not None  # the caller looked
        steps = [step]
        if step.is_call("relax.multiply"):
            factor = factor * constant.reshape(-1)
            offset, _, activation = self._epilogue(steps, c, residual=False)
        else:
            offset = offset + constant.reshape(-1)
            activation = self._activation(steps)
        spec = ConvSpec(n, c, h, w, c, groups=c, lanes=self.lanes, activation=activation)
        weight = factor.reshape(c, 1, 1, 1)
        return self._claim(
            steps,
            lambda: self._emit(spec, steps, [self._blocked(step.value.args[0])], [weight, offset]),
        )

    def _plan_reshape(self, step: Step) -> bool:
        """Between (N, C, 1, 1) and (N, C) nothing moves: both names stand for one array."""
        x, old, new = step.value.args[0], shape_of(step.value.args[0]), shape_of(step.var)
        same = old[:2] == new[:2] and all(e == 1 for e in (*old[2:], *new[2:]))
        if not isinstance(x, relax.Var) or not same or len(old) < 2:
            return False

        def emit() -> None:
            self.values[step.var] = _Value(new, blocked=self._flat(x))

        return self._claim([step], emit)

    def _plan_activation(self, step: Step, operand: relax.Var) -> bool:
        """An activation that no operator absorbed."""
        if not isinstance(operand.ty, relax.TensorType) or operand.ty.dtype != "float32":
            return False
        match, shape = match_activation(self.graph, operand, step), shape_of(operand)
        if match is None or not shape:
            return False
        activation, steps = match
        n, *rest = shape
        spec = ElementwiseSpec((n, int(np.prod(rest))), "identity", self.lanes, activation)
        return self._claim(steps, lambda: self._emit(spec, steps, [self._blocked(operand)]))

    def _activation(self, steps: list[Step]) -> Activation:
        match = match_activation(self.graph, steps[-1].var)
        if match is None:
            return NONE
        steps.extend(match[1])
        return match[0]

    # -- emitting: calls, and layouts where they must change ----------------------------------

    def _emit(
        self,
        spec: Spec,
        steps: Sequence[Step],
        inputs: Sequence[Any],
        constants: Sequence[np.ndarray] = (),
        late: Sequence[Any] = (),
    ) -> None:
        packed = [
            self._constant(value, len(inputs) + i in spec.weight_arguments)
            for i, value in enumerate(constants)
        ]
        if isinstance(spec, DenseSpec) and steps[-1].var in self.graph.returned:
            spec = dataclasses.replace(spec, float32_output=self.storage != "float32")
        arguments = [*inputs, *packed, *late]
        blocked = self._call(spec, arguments, tuple(step.var.name for step in steps))
        var = steps[-1].var
        self.values[var] = _Value(shape_of(var), blocked=blocked)

    def _constant(self, value: np.ndarray, is_weight: bool) -> Any:
        """A constant argument: weights as activations are stored, biases as sums are."""
        dtype = self.storage if is_weight else "float32"
        with np.errstate(over="ignore"):
            stored = value.astype(dtype)
        if (np.isinf(stored) & np.isfinite(value)).any():
            raise InputError(
                f"a weight of {abs(value).max():.3g} does not fit {dtype}, which ends at "
                f"{np.finfo(dtype).max:g}; use --precision float32 or tf32"
            )
        return relax.const(stored)

    def _call(self, spec: Spec, arguments: Sequence[Any], bindings: tuple[str, ...]) -> Any:
        spec = self._at_precision(spec)
        key = to_json(spec)
        if key not in self.functions:
            kind = spec.kind.replace("-", "_")
            number = self.kinds[kind] = self.kinds.get(kind, -1) + 1
            name = f"{kind}_{number}"
            self.functions[key] = self.builder.add_func(plain.build(spec), name)
        function = self.functions[key]
        out = self.builder.get()[function].params[-1].ty
        shape = [int(extent) for extent in out.shape]
        call = relax.call_tir(function, relax.Tuple(arguments), relax.TensorType(shape, out.dtype))
        self.call_sites.append((function.name_hint, bindings))
        return self.builder.emit(call)

    def _at_precision(self, spec: Spec) -> Spec:
        """The specification at the network's precision; tf32 is one of matrix products only."""
        product = isinstance(spec, ConvSpec | DenseSpec) and spec.kind != "depthwise"
        if self.precision == "float32" or (self.precision == "tf32" and not product):
            return spec
        assert not isinstance(spec, Joint)  # those are made later, of these
        return dataclasses.replace(spec, precision=self.precision)

    def _keep(self, step: Step) -> None:
        """A step that is not ours: read NCHW, give NCHW."""
        replaced = {
            operand: self._nchw(operand)
            for operand in _tensor_args(step)
            if isinstance(operand, relax.Var)
        }
        new = _substitute(step.value, replaced)
        kept = self.builder.emit(new, step.var.name)  # by its name `results` knows it again
        self.values[step.var] = _Value(_shape_or_empty(step.var), nchw=kept)

    def _nchw(self, var: Any) -> Any:
        value = self.values.get(var)
        if value is None:
            return var  # a constant
        if value.nchw is None:
            shape = value.shape
            if len(shape) == 4 and shape[2:] != (1, 1):
                spec = LayoutSpec(*shape, direction="unpack", lanes=self.lanes)
                value.nchw = self._call(spec, [value.blocked], (var.name,))
            else:
                flat = self._cast(value.blocked, "float32")
                same = shape_of(flat) == shape
                value.nchw = flat if same else self.builder.emit(relax.op.reshape(flat, shape))
        return value.nchw

    def _blocked(self, var: Any) -> Any:
        if var not in self.values:  # a constant of full shape
            self.values[var] = _Value(shape_of(var), nchw=var)
        value = self.values[var]
        if value.blocked is None:
            shape = value.shape
            if len(shape) == 4 and shape[2:] != (1, 1):
                spec = LayoutSpec(*shape, direction="pack", lanes=self.lanes)
                name = getattr(var, "name", "constant")
                value.blocked = self._call(spec, [value.nchw], (name,))
            else:
                value.blocked = self._cast(self._reshaped(value.nchw, shape), self.storage)
        return self._cast(value.blocked, self.storage)

    def _flat(self, var: Any) -> Any:
        """``var`` as (batch, rest), in whichever layout it is: for operators that do not mind."""
        value = self.values.get(var)
        if value is not None and value.blocked is not None:
            return self._cast(value.blocked, self.storage)
        return self._cast(self._reshaped(self._nchw(var), shape_of(var)), self.storage)

    def _cast(self, expr: Any, dtype: str) -> Any:
        return expr if expr.ty.dtype == dtype else self.builder.emit(relax.op.astype(expr, dtype))

    def _reshaped(self, expr: Any, shape: tuple[int, ...]) -> Any:
        flat = (shape[0], int(np.prod(shape[1:])))
        return expr if flat == shape else self.builder.emit(relax.op.reshape(expr, flat))


def _pair(values: Any) -> tuple[int, int]:
    first, second = (int(v) for v in values)
    return first, second


def _per_channel(step: Step) -> bool:
    """Whether the second operand is a constant with one value per channel of the result."""
    shape, constant = shape_of(step.var), constant_of(step.value.args[1])
    if constant is None or len(shape) < 2:
        return False
    trailing = (1,) * (len(shape) - 2)
    return constant.shape in ((shape[1], *trailing), (1, shape[1], *trailing))


def _tensor_args(step: Step) -> list[Any]:
    """Operands of a step, those inside tuples too."""
    found: list[Any] = []

    def collect(expr: Any) -> None:
        if isinstance(expr, relax.Tuple):
            for item in expr.fields:
                collect(item)
        elif isinstance(expr, relax.TupleGetItem):
            collect(expr.tuple_value)
        else:
            found.append(expr)

    for argument in step.value.args if isinstance(step.value, relax.Call) else [step.value]:
        collect(argument)
    return found


def _substitute(expr: Any, replaced: dict[Any, Any]) -> Any:
    """``expr`` with variables replaced."""
    if isinstance(expr, relax.Var):
        return replaced.get(expr, expr)
    if isinstance(expr, relax.Tuple):
        return relax.Tuple([_substitute(item, replaced) for item in expr.fields])
    if isinstance(expr, relax.TupleGetItem):
        return relax.TupleGetItem(_substitute(expr.tuple_value, replaced), expr.index)
    if isinstance(expr, relax.Call):
        arguments = [_substitute(argument, replaced) for argument in expr.args]
        return relax.Call(expr.op, arguments, expr.attrs, expr.ty_args)
    return expr


def _shape_or_empty(var: relax.Var) -> tuple[int, ...]:
    """Static shape of a tensor variable; () for tuples, whose items are looked up on use."""
    return shape_of(var) if isinstance(var.ty, relax.TensorType) else ()
