"""The left side of the matrix product: four values of the reduction for one output pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tvm.tirx.script import builder as T

from ..emit import Buffer, Expr, activate, constant
from ..spec import ConvSpec, DenseSpec, ScaledSpec, SeparableSpec, storage
from .ir import LANES, View, both, cast, copy4, load_bias, local, padded, reshaped
from .ir import zero as zeros

Buffers = list[tuple[str, tuple[int, ...], str]]  # name, shape, type


class Operand(Protocol):
    """How one kind of operator gives its side of the product."""

    @property
    def buffers(self) -> Buffers:
        """What it reads: names, shapes and types, the first arguments of the kernel."""

    def load(
        self,
        inputs: Sequence[Buffer],
        to: Buffer,
        at: Expr,
        image: Expr,
        step: Expr,
        pixel: Expr,
        inside: Expr | None,
    ) -> None:
        """``to[at:at+4]`` = values 4*step to 4*step+3 of the reduction for an output pixel.

        Zeros where not ``inside``.
        """

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """The weight as (reduction, channels), rows in the order of `load`."""


def operand_of(spec: ConvSpec | DenseSpec | SeparableSpec | ScaledSpec) -> Operand:
    if isinstance(spec, ScaledSpec):
        return Scaled(spec)
    if isinstance(spec, SeparableSpec):
        return Depthwise(spec.depthwise)
    if isinstance(spec, DenseSpec):
        return Rows(spec)
    return Nchw(spec) if spec.input_layout == "nchw" else Blocked(spec)


def matrix_of(spec: ConvSpec | DenseSpec | SeparableSpec | ScaledSpec) -> int:
    """Length of the reduction, blocks of channels filled up."""
    if isinstance(spec, SeparableSpec | ScaledSpec):
        return padded(spec.pointwise.in_channels)
    if isinstance(spec, DenseSpec):
        return padded(spec.in_features)
    taps = spec.kernel[0] * spec.kernel[1]
    if spec.input_layout == "nchw":
        return taps * spec.in_channels
    return taps * padded(spec.in_channels)


def pack_depthwise(weight: np.ndarray) -> np.ndarray:
    """Weight ``(C, 1, KH, KW)`` -> ``[block][tap][4]``, the last block filled up with zeros.

    In float32 at every precision: a conversion would cost as much as the product it is for.
    """
    channels = weight.shape[0]
    taps = weight.reshape(channels, -1)
    whole = np.zeros((padded(channels), taps.shape[1]), "float32")
    whole[:channels] = taps
    blocks = whole.reshape(-1, LANES, taps.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(blocks).reshape(-1)


def source_pixel(
    spec: ConvSpec, row: Expr, column: Expr, kh: Expr, kw: Expr
) -> tuple[Expr, Expr, Expr | None]:
    """Input row and column under a tap of an output, and whether they lie in the map (or None)."""
    (stride_h, stride_w), (dilation_h, dilation_w) = spec.stride, spec.dilation
    ih = row * stride_h - spec.padding[0] + kh * dilation_h
    iw = column * stride_w - spec.padding[1] + kw * dilation_w
    inside = both(
        ih >= 0 if spec.padding[0] else None,
        ih < spec.in_height if spec.padding[2] else None,
        iw >= 0 if spec.padding[1] else None,
        iw < spec.in_width if spec.padding[3] else None,
    )
    return ih, iw, inside


@dataclass(frozen=True)
class Rows:
    """A dense layer: the images are the pixels."""

    spec: DenseSpec

    @property
    def buffers(self) -> Buffers:
        spec = self.spec
        return [("x", (spec.batch, spec.in_features), storage(spec.precision))]

    def load(self, inputs, to, at, image, step, pixel, inside):  # type: ignore[no-untyped-def]
        view = View(inputs[0], self.spec.in_features, self.spec.batch, rows=True)
        view.load(to, at, image, step, pixel, inside)

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        return weight.T


@dataclass(frozen=True)
class Blocked:
    """A convolution on blocked activations: the reduction is ``[tap][channel]``."""

    spec: ConvSpec

    @property
    def buffers(self) -> Buffers:
        spec = self.spec
        elements = spec.in_channels * spec.in_height * spec.in_width
        return [("x", (spec.batch, elements), storage(spec.precision))]

    def load(self, inputs, to, at, image, step, pixel, inside):  # type: ignore[no-untyped-def]
        spec = self.spec
        view = View(inputs[0], spec.in_channels, spec.in_height * spec.in_width)
        if spec.kind == "pointwise":
            view.load(to, at, image, step, pixel, inside)
            return
        tap, block = step // view.blocks, step % view.blocks
        kh, kw = tap // spec.kernel[1], tap % spec.kernel[1]
        row, column = pixel // spec.out_width, pixel % spec.out_width
        ih, iw, within = source_pixel(spec, row, column, kh, kw)
        view.load(to, at, image, block, ih * spec.in_width + iw, both(inside, within))

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        outputs, channels = weight.shape[:2]
        taps = weight.reshape(outputs, channels, -1)
        whole = np.zeros((taps.shape[2], padded(channels), outputs), weight.dtype)
        whole[:, :channels] = taps.transpose(2, 1, 0)
        return whole.reshape(-1, outputs)


@dataclass(frozen=True)
class Scaled:
    """A pointwise convolution whose input's channels are scaled on the way."""

    spec: ScaledSpec

    @property
    def _map(self) -> Blocked:
        return Blocked(self.spec.pointwise)

    @property
    def buffers(self) -> Buffers:
        scale = self.spec.scale
        factors = (scale.batch, scale.channels)
        return [*self._map.buffers, ("factor", factors, storage(scale.precision))]

    def load(self, inputs, to, at, image, step, pixel, inside):  # type: ignore[no-untyped-def]
        scale = self.spec.scale
        x, factor = inputs
        value, factors = local(LANES, "value"), local(LANES, "factors")
        self._map.load([x], value, 0, image, step, pixel, inside)
        View(factor, scale.channels, 1).load(factors, 0, image, step, 0, inside)
        for lane in range(LANES):
            scaled = activate(value[lane] * factors[lane], scale.activation, 1)
            T.buffer_store(to, cast(scaled, to), [at + lane])

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        return self._map.matrix(weight)


@dataclass(frozen=True)
class Nchw:
    """The first convolution, on the network's NCHW input: the reduction is ``[channel][tap]``."""

    spec: ConvSpec

    @property
    def buffers(self) -> Buffers:
        spec = self.spec
        return [("x", (spec.batch, spec.in_channels, spec.in_height, spec.in_width), "float32")]

    def load(self, inputs, to, at, image, step, pixel, inside):  # type: ignore[no-untyped-def]
        spec = self.spec
        taps = spec.kernel[0] * spec.kernel[1]
        length = matrix_of(spec)
        row, column = pixel // spec.out_width, pixel % spec.out_width
        plane = spec.in_height * spec.in_width
        flat = reshaped(inputs[0], (spec.batch, spec.in_channels * plane))
        places = local(LANES, "places", "int32")  # beforehand: else NVRTC branches around each load
        for lane in range(LANES):
            k = step * LANES + lane
            kh, kw = k % taps // spec.kernel[1], k % spec.kernel[1]
            ih, iw, within = source_pixel(spec, row, column, kh, kw)
            there = both(inside, within, k < length if length % LANES else None)
            T.buffer_store(places, k // taps * plane + ih * spec.in_width + iw, [lane])
            value = flat[image, places[lane]]
            if there is not None:
                value = T.if_then_else(there, value, constant(0.0))
            T.buffer_store(to, cast(value, to), [at + lane])

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        return weight.reshape(weight.shape[0], -1).T


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution computed on the way into a pointwise one."""

    spec: ConvSpec

    @property
    def buffers(self) -> Buffers:
        spec = self.spec
        taps = spec.kernel[0] * spec.kernel[1]
        dtype = storage(spec.precision)
        return [
            ("x", (spec.batch, spec.in_channels * spec.in_height * spec.in_width), dtype),
            ("depthwise_weight", (padded(spec.in_channels) * taps,), "float32"),
            ("depthwise_bias", (spec.in_channels,), "float32"),
        ]

    def load(self, inputs, to, at, image, step, pixel, inside):  # type: ignore[no-untyped-def]
        spec = self.spec
        x, weight, bias = inputs
        view = View(x, spec.in_channels, spec.in_height * spec.in_width)
        row, column = pixel // spec.out_width, pixel % spec.out_width
        sums, value, factor = (local(LANES, name) for name in ("taps", "value", "factor"))
        taps = spec.kernel[0] * spec.kernel[1]

        def compute() -> None:
            load_bias(sums, 0, bias, step, spec.in_channels)
            for tap in range(taps):
                kh, kw = divmod(tap, spec.kernel[1])
                ih, iw, within = source_pixel(spec, row, column, kh, kw)
                view.load(value, 0, image, step, ih * spec.in_width + iw, within)
                copy4(factor, 0, weight, (step * taps + tap) * LANES)
                for lane in range(LANES):
                    T.buffer_store(sums, sums[lane] + value[lane] * factor[lane], [lane])
            for lane in range(LANES):
                result = activate(sums[lane], spec.activation, 1)
                T.buffer_store(to, cast(result, to), [at + lane])

        def zero() -> None:
            for lane in range(LANES):
                T.buffer_store(to, zeros(to), [at + lane])

        if inside is None:
            compute()
            return
        with T.If(inside):
            with T.Then():
                compute()
            with T.Else():
                zero()

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        outputs, channels = weight.shape[:2]
        whole = np.zeros((padded(channels), outputs), weight.dtype)
        whole[:channels] = weight.reshape(outputs, channels).T
        return whole
