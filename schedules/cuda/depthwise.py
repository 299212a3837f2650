"""Depthwise convolution: a thread computes a column of outputs for four channels.

Idea
----
Neighbouring threads take neighbouring columns of a map, so that a warp's loads and stores are
whole float4 in a row. Down its column a thread keeps ``rows`` sums of four channels; each input
vector is loaded once and added to all sums that it reaches, so that at stride 1 the halo above and
below costs ``rows + kernel - 1`` instead of ``rows * kernel`` loads a tap column; the halo to the
sides comes from L1. No shared memory, no barrier.

Registers: ``4 * rows`` sums, ``4 * kernel rows`` weights, one input vector, some 20 for addresses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..emit import Expr, activate, prim_func, selected_bounds
from ..spec import ConvSpec, Spec, storage
from .ir import LANES, View, below, both, ceil_div, copy4, launch, load_bias, local, padded, when
from .operands import pack_depthwise

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec


@dataclass(frozen=True)
class DepthwiseKnobs:
    """``rows`` outputs down a column per thread, ``threads`` per block."""

    rows: int = 1
    threads: int = 128


def build(spec: ConvSpec, knobs: DepthwiseKnobs) -> tirx.PrimFunc:
    """The PrimFunc ``(input, packed weight, bias[, residual], output)``."""
    taps = spec.kernel[0] * spec.kernel[1]
    pixels = spec.in_height * spec.in_width
    out_shape = (spec.batch, spec.out_channels * spec.out_pixels)
    dtype = storage(spec.precision)
    buffers = [
        ("x", (spec.batch, spec.in_channels * pixels), dtype),
        ("weight", (padded(spec.in_channels) * taps,), "float32"),
        ("bias", (spec.out_channels,), "float32"),
        *([("residual", out_shape, dtype)] if spec.residual else []),
        ("y", out_shape, dtype),
    ]
    strips = ceil_div(spec.out_height, knobs.rows)
    blocks = ceil_div(spec.out_channels, LANES)
    items = spec.batch * blocks * strips * spec.out_width
    grid = ceil_div(items, knobs.threads)

    def body(x: Any, weight: Any, bias: Any, *rest: Any) -> None:
        def thread(block_index: Expr, thread_index: Expr) -> None:
            item = block_index * knobs.threads + thread_index
            column, strip = item % spec.out_width, item // spec.out_width % strips
            outer = item // (spec.out_width * strips)
            image, block = (0, outer) if spec.batch == 1 else (outer // blocks, outer % blocks)
            when(
                below(item, items, grid * knobs.threads),
                lambda: _column(
                    spec,
                    knobs,
                    View(x, spec.in_channels, pixels),
                    weight,
                    bias,
                    View(rest[0], spec.out_channels, spec.out_pixels) if spec.residual else None,
                    View(rest[-1], spec.out_channels, spec.out_pixels),
                    (image, block, strip * knobs.rows, column),
                ),
            )

        with selected_bounds():
            launch(grid, knobs.threads, thread)

    return prim_func(buffers, body)


def _column(
    spec: ConvSpec,
    knobs: DepthwiseKnobs,
    x: View,
    weight: Any,
    bias: Any,
    residual: View | None,
    y: View,
    where: tuple[Expr, Expr, Expr, Expr],
) -> None:
    """One thread's outputs: ``where`` is image, channel block, first row, column."""
    image, block, first, column = where
    kernel_h, kernel_w = spec.kernel
    stride_h, dilation_h = spec.stride[0], spec.dilation[0]
    sums, factor = local(LANES * knobs.rows, "sums"), local(LANES * kernel_h, "factor")
    value, other, result = (local(LANES, name) for name in ("value", "other", "result"))
    for row in range(knobs.rows):
        load_bias(sums, row * LANES, bias, block, spec.out_channels)
    reached: dict[int, list[tuple[int, int]]] = {}  # input row -> (output row, kernel row)
    for row in range(knobs.rows):
        for kh in range(kernel_h):
            reached.setdefault(row * stride_h + kh * dilation_h, []).append((row, kh))
    for kw in range(kernel_w):
        for kh in range(kernel_h):
            tap = kh * kernel_w + kw
            copy4(factor, kh * LANES, weight, (block * (kernel_h * kernel_w) + tap) * LANES)
        iw = column * spec.stride[1] - spec.padding[1] + kw * spec.dilation[1]
        for offset, uses in sorted(reached.items()):
            ih = first * stride_h - spec.padding[0] + offset
            inside = both(
                ih >= 0 if offset < spec.padding[0] else None,
                ih < spec.in_height if _beyond(spec, knobs, offset) else None,
                iw >= 0 if spec.padding[1] else None,
                iw < spec.in_width if spec.padding[3] else None,
            )
            x.load(value, 0, image, block, ih * spec.in_width + iw, inside)
            for row, kh in uses:
                for lane in range(LANES):
                    at = row * LANES + lane
                    product = value[lane] * factor[kh * LANES + lane]
                    T.buffer_store(sums, sums[at] + product, [at])
    for row in range(knobs.rows):

        def write(row: int = row) -> None:
            pixel = (first + row) * spec.out_width + column
            if residual is not None:
                residual.load(other, 0, image, block, pixel)
            for lane in range(LANES):
                total = sums[row * LANES + lane]
                if residual is not None:
                    total = total + other[lane]
                T.buffer_store(result, activate(total, spec.activation, 1), [lane])
            y.store(image, block, pixel, result, 0)

        reach = ceil_div(spec.out_height, knobs.rows) * knobs.rows
        last = reach - knobs.rows + row >= spec.out_height
        when(first + row < spec.out_height if last else None, write)


def _beyond(spec: ConvSpec, knobs: DepthwiseKnobs, offset: int) -> bool:
    """Whether a strip's input row at ``offset`` can lie below the map."""
    last = (ceil_div(spec.out_height, knobs.rows) - 1) * knobs.rows
    return last * spec.stride[0] - spec.padding[0] + offset >= spec.in_height


class _Depthwise:
    """As many rows a thread as leave every multiprocessor enough threads to hide latency."""

    name = "cuda-depthwise"
    knobs_class = DepthwiseKnobs
    build = staticmethod(build)

    # threads of a multiprocessor, below which it waits for memory instead of for load slots
    ENOUGH_THREADS = 512

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, ConvSpec) and spec.kind == "depthwise"

    def analytic(self, spec: ConvSpec, target: TargetSpec) -> DepthwiseKnobs:
        assert target.gpu is not None
        columns = spec.batch * ceil_div(spec.out_channels, LANES) * spec.out_width
        enough = self.ENOUGH_THREADS * target.gpu.sms
        choices = [r for r in self._rows(spec) if columns * ceil_div(spec.out_height, r) >= enough]
        rows = max(choices, default=1)
        return DepthwiseKnobs(rows, 128)

    @staticmethod
    def _rows(spec: ConvSpec) -> list[int]:
        return [rows for rows in (1, 2, 4) if rows <= spec.out_height]

    def space(self, spec: ConvSpec, target: TargetSpec) -> Iterable[DepthwiseKnobs]:
        return [DepthwiseKnobs(r, t) for r in self._rows(spec) for t in (64, 128, 256)]

    def pack_weight(
        self, spec: ConvSpec, knobs: DepthwiseKnobs, weight: np.ndarray, argument: int = 1
    ) -> np.ndarray:
        return pack_depthwise(weight)


DEPTHWISE: Any = _Depthwise()
