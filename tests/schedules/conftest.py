"""Running one operator's function on arrays, against PyTorch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm

from tvm_mobilenet.parity.cuda_emulate import run_function
from tvm_mobilenet.parity.cuda_launches import Buffer
from tvm_mobilenet.schedules import plain
from tvm_mobilenet.schedules.cuda.tensor_core import rounded_to_tf32
from tvm_mobilenet.schedules.spec import (
    Activation,
    ConvSpec,
    DenseSpec,
    DepthwiseSqueezeSpec,
    ElementwiseSpec,
    ExciteSpec,
    LayoutSpec,
    PoolSpec,
    ScaledSpec,
    ScaleSpec,
    SeparableSpec,
    Spec,
    SqueezeSpec,
    channel_blocks,
)
from tvm_mobilenet.targets import TargetSpec


def to_blocked(x: np.ndarray, lanes: int) -> np.ndarray:
    """NCHW -> the blocked layout, written from its definition."""
    n, c, h, w = x.shape
    parts, start = [], 0
    for width in channel_blocks(c, lanes):
        block = x[:, start : start + width].reshape(n, width, h * w)
        parts.append(block.transpose(0, 2, 1).reshape(n, -1))
        start += width
    return np.concatenate(parts, axis=1)


def from_blocked(x: np.ndarray, spec: ConvSpec) -> np.ndarray:
    """The blocked input of a convolution -> NCHW."""
    shape = (spec.batch, spec.in_channels, spec.in_height, spec.in_width)
    places = np.arange(x[0].size, dtype="int64").reshape(1, *shape[1:])
    y = np.empty_like(x)
    y[:, to_blocked(places, spec.lanes)[0]] = x
    return y.reshape(shape)


def activated(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    """The activation by PyTorch's own functions."""
    if activation.name == "clip":
        return torch.clamp(x, activation.lower, activation.upper)
    if activation.name == "hardsigmoid":
        return torch.clamp(x * activation.alpha + activation.beta, 0, 1)
    functions = {"none": lambda t: t, "hardswish": F.hardswish, "sigmoid": torch.sigmoid}
    return functions[activation.name](x)


class Case:
    """Random arguments of a spec and the result that PyTorch gives in float64."""

    activated = staticmethod(activated)

    def __init__(self, spec: Spec, seed: int = 0) -> None:
        self.spec = spec
        self._rng = np.random.default_rng(seed)
        self.weight: np.ndarray | None = None
        self.beside: np.ndarray | None = None  # a result before the one that is expected
        kinds = {
            ConvSpec: self._conv,
            SeparableSpec: self._separable,
            DenseSpec: self._dense,
            PoolSpec: self._pool,
            ScaleSpec: self._scale,
            ScaledSpec: self._scaled,
            SqueezeSpec: self._squeeze,
            DepthwiseSqueezeSpec: self._depthwise_squeeze,
            ExciteSpec: self._excite,
            ElementwiseSpec: self._elementwise,
            LayoutSpec: self._layout,
        }
        self.inputs, self.expected = kinds[type(spec)](spec)

    def _random(self, *shape: int) -> np.ndarray:
        return self._rng.standard_normal(shape).astype("float32")

    def _conv(self, spec: ConvSpec, x: np.ndarray | None = None):
        if x is None:
            x = self._random(spec.batch, spec.in_channels, spec.in_height, spec.in_width)
        per_group = spec.in_channels // spec.groups
        self.weight = self._random(spec.out_channels, per_group, *spec.kernel)
        bias = self._random(spec.out_channels)
        top, left, bottom, right = spec.padding
        y = F.conv2d(
            F.pad(torch.tensor(x).double(), (left, right, top, bottom)),
            torch.tensor(self.weight).double(),
            torch.tensor(bias).double(),
            stride=spec.stride,
            dilation=spec.dilation,
            groups=spec.groups,
        )
        inputs = [x if spec.input_layout == "nchw" else to_blocked(x, spec.lanes)]
        inputs += [self.weight, bias]
        if spec.residual:
            residual = self._random(*y.shape)
            inputs.append(to_blocked(residual, spec.lanes))
            y = y + torch.tensor(residual)
        return inputs, to_blocked(activated(y, spec.activation).numpy(), spec.lanes)

    def _separable(self, spec: SeparableSpec):
        first, between = self._conv(spec.depthwise)
        (_, *rest), y = self._conv(spec.pointwise, from_blocked(between, spec.pointwise))
        return [*first, *rest], y

    def _dense(self, spec: DenseSpec, x: np.ndarray | None = None):
        x = self._random(spec.batch, spec.in_features) if x is None else x
        bias = self._random(spec.out_features)
        self.weight = self._random(spec.out_features, spec.in_features)
        y = F.linear(*(torch.tensor(a).double() for a in (x, self.weight, bias)))
        return [x, self.weight, bias], activated(y, spec.activation).numpy()

    def _pool(self, spec: PoolSpec):
        x = self._random(spec.batch, spec.channels, spec.height, spec.width)
        return [to_blocked(x, spec.lanes)], x.astype("float64").mean(axis=(2, 3))

    def _scale(self, spec: ScaleSpec):
        x = self._random(spec.batch, spec.channels, spec.height, spec.width)
        factor = self._random(spec.batch, spec.channels)
        y = torch.tensor(x).double() * torch.tensor(factor).double()[:, :, None, None]
        expected = to_blocked(activated(y, spec.activation).numpy(), spec.lanes)
        return [to_blocked(x, spec.lanes), factor], expected

    def _scaled(self, spec: ScaledSpec):
        first, between = self._scale(spec.scale)
        (_, *rest), y = self._conv(spec.pointwise, from_blocked(between, spec.pointwise))
        return [*first, *rest], y

    def _squeeze(self, spec: SqueezeSpec, x: np.ndarray | None = None):
        pool, dense = spec.pool, spec.dense
        if x is None:
            x = self._random(pool.batch, pool.channels, pool.height, pool.width)
        self.weight = self._random(dense.out_features, dense.in_features)
        pixels = x.reshape(pool.batch, pool.channels, -1).astype("float64")
        shares = []
        for first in range(0, pool.channels, spec.group):
            own = slice(first, first + spec.group)
            for start in range(0, spec.chunks * spec.chunk_pixels, spec.chunk_pixels):
                chunk = pixels[:, own, start : start + spec.chunk_pixels]
                shares.append(chunk.sum(2) / pixels.shape[2] @ self.weight[:, own].T)
        return [to_blocked(x, spec.lanes), self.weight], np.concatenate(shares, 1)

    def _depthwise_squeeze(self, spec: DepthwiseSqueezeSpec):
        first, y = self._conv(spec.depthwise)
        shape = (spec.batch, spec.depthwise.out_channels, 1, spec.depthwise.out_pixels)
        places = np.arange(y[0].size).reshape(1, *shape[1:])
        x = np.empty_like(y)
        x[:, to_blocked(places, spec.lanes)[0].astype("int64")] = y
        (_, weight), self.beside = self._squeeze(spec.squeeze, x.reshape(shape))
        return [*first, weight], y

    def _excite(self, spec: ExciteSpec):
        shares = self._random(spec.batch, spec.parts * spec.first.out_features)
        bias = self._random(spec.first.out_features)
        hidden = shares.astype("float64").reshape(spec.batch, spec.parts, -1).sum(1) + bias
        hidden = activated(torch.tensor(hidden), spec.first.activation).numpy()
        (_, *rest), y = self._dense(spec.second, hidden)
        return [shares, bias, *rest], y

    def _elementwise(self, spec: ElementwiseSpec):
        operands = [self._random(*spec.shape) for _ in range(spec.operands)]
        a, *b = (torch.tensor(o).double() for o in operands)
        y = {"identity": lambda: a, "add": lambda: a + b[0], "multiply": lambda: a * b[0]}
        return operands, activated(y[spec.op](), spec.activation).numpy()

    def _layout(self, spec: LayoutSpec):
        x = self._random(spec.batch, spec.channels, spec.height, spec.width)
        blocked = to_blocked(x, spec.lanes)
        return ([x], blocked) if spec.direction == "pack" else ([blocked], x)

    def error(self, function, target: TargetSpec, pack_weight=None) -> float:
        """Largest error of ``function`` relative to the largest expected value.

        The output starts as NaN: an element that the function leaves unwritten is an error.
        """
        inputs = list(self.inputs)
        if pack_weight is not None:
            for i in self.spec.weight_arguments:
                inputs[i] = pack_weight(inputs[i], i)
        named = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        compiled = tvm.compile(named, target=target.tvm_target()).mod["main"]
        arguments = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in inputs]
        output = tvm.runtime.tensor(np.full(self.expected.shape, np.nan, "float32"))
        compiled(*arguments, output)
        difference = np.abs(output.numpy() - self.expected).max()
        return float(difference / np.abs(self.expected).max())


@pytest.fixture
def case():
    return Case


def rounded(values: np.ndarray, precision: str) -> np.ndarray:
    """The nearest values of a precision, as float32."""
    values = np.asarray(values, "float32")
    if precision == "float32":
        return values
    return rounded_to_tf32(values) if precision == "tf32" else values.astype("f2").astype("f4")


class RoundedCase(Case):
    """Random arguments and the result, in float64, of factors rounded to the precision.

    The kernel gets factors that must be rounded to these where that is its task.
    """

    def _random(self, *shape: int) -> np.ndarray:
        return rounded(super()._random(*shape), self.spec.precision)

    def _conv(self, spec: ConvSpec, x: np.ndarray | None = None):
        return super()._conv(spec, None if x is None else rounded(x, self.spec.precision))

    @property
    def unrounded(self) -> tuple[int, ...]:
        """Arguments that the kernel, or the packing of its weights, rounds."""
        if isinstance(self.spec, SqueezeSpec | DepthwiseSqueezeSpec | ExciteSpec):
            return ()  # never on tensor cores
        if self.spec.precision == "tf32":
            joint = isinstance(self.spec, SeparableSpec | ScaledSpec)
            return self.spec.weight_arguments[-1:] if joint else (0, 1)
        return (0,) if self.spec.kind == "stem" else ()

    def argument(self, i: int, values: np.ndarray, dtype: str) -> np.ndarray:
        """An argument as it lies in memory; by less than half a unit of the last of 10 bits off."""
        if i in self.unrounded:
            values = values * (1 + self._rng.uniform(-0.9, 0.9, values.shape) * 2**-12)
        return values.astype(dtype)

    def kernel_error(self, emulator, code, pack_weight) -> float:
        """Largest distance beyond the result's own rounding, relative to the largest value."""
        dtypes = [str(p.ty.dtype) for p in plain.build(self.spec).params]
        given = enumerate(zip(self.inputs, dtypes, strict=False))
        arguments = [self.argument(i, values, dtype) for i, (values, dtype) in given]
        for i in self.spec.weight_arguments:
            arguments[i] = pack_weight(arguments[i], i)
        expected = [*([] if self.beside is None else [self.beside]), self.expected]
        types = dtypes[len(arguments) :]
        buffers = [Buffer(e.shape, dtype) for e, dtype in zip(expected, types, strict=True)]
        found = run_function(emulator, code, arguments, buffers)
        return max(distance(*pair) for pair in zip(found, expected, strict=True))


def distance(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest distance beyond the result's own rounding, relative to the largest value."""
    difference = np.abs(got.astype("float64") - expected)
    if got.dtype == np.float16:
        difference = difference - np.maximum(np.abs(expected) * 2**-11, 2**-25)
    return float(difference.max() / np.abs(expected).max())


@pytest.fixture
def rounded_case():
    return RoundedCase
