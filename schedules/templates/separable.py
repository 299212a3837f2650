"""Depthwise convolution and the pointwise one after it in one pass over strips of rows.

Idea
----
On large feature maps a depthwise convolution only waits for memory: it writes an array that the
pointwise convolution reads back. Here a strip of ``rows`` rows goes through both while it is in
cache, so the array between them never exists as a whole, and two threads meet once instead of
twice. The strip's two halves are the depthwise and the convolution template; register budgets are
theirs. The last strip starts early enough to be whole: a few rows may be computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..emit import LINE, Expr, loop, prefetch, prim_func
from ..spec import SeparableSpec, channel_blocks
from . import convolution, depthwise
from .depthwise import DepthwiseKnobs
from .problem import ConvKnobs, problem_of

DEPTHWISE_WEIGHT, POINTWISE_WEIGHT = 1, 3  # positions in the call


@dataclass(frozen=True)
class SeparableKnobs:
    """Knobs of the template.

    rows: output rows of a strip.
    depthwise_pixels: output pixels of the depthwise register tile.
    pixels, vectors, unroll: of the pointwise half, see ``ConvKnobs``.
    parallel: spread the strips over the threads.
    prefetch: while one strip is in the pointwise half, bring the next one's input into L2.
    """

    rows: int
    depthwise_pixels: int
    pixels: int
    vectors: int
    unroll: int = 1
    parallel: bool = False
    prefetch: bool = False

    @property
    def depthwise(self) -> DepthwiseKnobs:
        return DepthwiseKnobs(self.depthwise_pixels)

    @property
    def pointwise(self) -> ConvKnobs:
        return ConvKnobs(self.pixels, self.vectors, self.unroll)


def pack_weight(
    spec: SeparableSpec, knobs: SeparableKnobs, weight: np.ndarray, argument: int
) -> np.ndarray:
    """The weight at position ``argument`` of the call, as its half of the strip reads it."""
    if argument == DEPTHWISE_WEIGHT:
        return depthwise.pack_weight(spec.depthwise, knobs.depthwise, weight)
    return convolution.pack_weight(spec.pointwise, knobs.pointwise, weight)


def build(spec: SeparableSpec, knobs: SeparableKnobs) -> tirx.PrimFunc:
    """The PrimFunc ``(input, depthwise weight, bias, weight, bias[, residual], output)``."""
    first, second = spec.depthwise, spec.pointwise
    height, width, channels = first.out_height, first.out_width, first.out_channels
    rows = min(knobs.rows, height)
    strips = -(-height // rows)
    out_shape = (second.batch, second.out_channels * height * width)
    buffers = [
        ("x", (first.batch, channels * first.in_height * first.in_width)),
        ("depthwise_weight", (channels * first.kernel[0] * first.kernel[1],)),
        ("depthwise_bias", (channels,)),
        ("weight", (second.out_channels * channels,)),
        ("bias", (second.out_channels,)),
        *([("residual", out_shape)] if second.residual else []),
        ("y", out_shape),
    ]
    strip_spec = replace(second, in_height=rows)
    problem = replace(problem_of(strip_spec, knobs.pointwise), out_pixels=height * width)

    def body(x, depthwise_weight, depthwise_bias, weight, bias, *rest):  # type: ignore[no-untyped-def]
        residual, y = rest[0] if second.residual else None, rest[-1]

        def strip(k: Expr) -> None:
            image, start = k // strips, T.min(k % strips * rows, height - rows)
            between = T.alloc_buffer((1, channels * rows * width), "float32", scope="global")
            above = depthwise.Nest(
                first,
                knobs.depthwise,
                x,
                depthwise_weight,
                depthwise_bias,
                None,
                between,
                strip_rows=rows,
                strip_start=start,
            )
            blocks = len(channel_blocks(channels, first.lanes))

            def prefetch_input(group: Expr, pixel: Expr, block: Expr) -> None:
                """A tile's share of the rows that the next strip reads for the first time."""
                groups = -(-len(problem.out_blocks) // knobs.vectors)
                tiles = -(-rows * width // knobs.pixels)
                new = rows * first.stride[0] * first.in_width * first.lanes
                share = -(-new // (LINE * tiles * groups))
                new_row = (start + rows - 1) * first.stride[0] - first.padding[0] + first.kernel[0]
                at = (block * first.in_height + new_row) * first.in_width * first.lanes
                at += (group * tiles + pixel // knobs.pixels) * (share * LINE)
                for i in range(share):
                    prefetch(x, (image, at + i * LINE))

            loop(blocks, lambda block: above.rows_of(image, block, start, rows))
            convolution.Nest(
                problem,
                strip_spec,
                knobs.pointwise,
                between,
                weight,
                bias,
                residual,
                y,
                strip=start * width,
                alongside=prefetch_input if knobs.prefetch else None,
            ).emit_image(image)

        loop(first.batch * strips, strip, parallel=knobs.parallel)

    return prim_func(buffers, body)
