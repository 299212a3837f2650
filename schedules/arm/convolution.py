"""Pointwise, stem, general convolution and dense on ARM Cortex-A.

On aarch64 the innermost loop of pointwise and dense layers is `PointwiseTile`; armv7 and the other
kinds of convolution run the template's own loop. Tiles are chosen by predicted cycles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..emit import native_bounds
from ..spec import FLOAT_BYTES, ConvSpec, DenseSpec, Spec, channel_blocks
from ..templates import convolution as template
from ..templates.convolution import ConvKnobs, Nest, Tile
from ..x86.work import worth_threads
from .assembly import LANES
from .pointwise import PointwiseTile

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

# Cycles from one FMLA to the next on the same sum (Cortex-A72, A76 and Neoverse N1 forward sums
# early; A53 and A55 take 4).
LATENCY = 4
# Instructions to start and finish a register tile: addresses and loop control.
TILE_OVERHEAD = 16
# Per sum: set to the bias, two for the activation, half a store.
SUM_OVERHEAD = 3.5


class NeonNest(Nest):
    """The template's loop nest with assembly inside, wherever blocks are whole."""

    def accumulate(self, tile: Tile) -> None:
        kernel = self.kernel(tile)
        if kernel is None:
            super().accumulate(tile)
            return
        problem = self.problem
        pixel = tile.row * problem.in_row + tile.column
        x_at = pixel * (problem.in_channels if problem.plain else LANES)
        kernel.assembly().emit(
            T.address_of(self.x[tile.image, x_at]),
            T.address_of(self.weight[tile.panel]),
            [tile.sums.address(key) for key in tile.sums],
        )
        for b in range(kernel.blocks, len(problem.in_blocks)):
            self.in_block(tile, b, problem.in_blocks[b])

    def kernel(self, tile: Tile) -> PointwiseTile | None:
        """The assembly for a tile, if there is one."""
        problem = self.problem
        blocks = problem.in_blocks.count(LANES)
        whole = all(width == LANES for width in tile.widths)
        scattered = problem.plain and tile.run.pixels > 1  # pixels are images, not neighbours
        if problem.taps > 1 or not blocks or not whole or scattered:
            return None
        return PointwiseTile(
            pixels=tile.run.pixels,
            vectors=len(tile.widths),
            blocks=blocks,
            block_bytes=FLOAT_BYTES * LANES * (1 if problem.plain else problem.in_pixels),
            unroll=max(1, self.knobs.unroll // LANES),
        )


def register_tiles(target: TargetSpec, *, assembly: bool) -> list[tuple[int, int]]:
    """All (pixels, vectors) that fit the registers."""
    free = target.vector_registers
    if assembly:
        return [
            (pixels, vectors)
            for vectors in range(1, 13)
            for pixels in range(1, 17)
            if PointwiseTile(pixels, vectors, 1, 0).registers <= free
        ]
    sums = free * 3 // 4  # LLVM loads several operands ahead
    return [
        (pixels, vectors)
        for vectors in range(1, 9)
        for pixels in range(1, sums + 1)
        if pixels * vectors <= sums and pixels * vectors + vectors + 1 <= free
    ]


def tile_cycles(pixels: int, vectors: int, target: TargetSpec, taps: int, unroll: int) -> float:
    """Cycles of one register tile over ``taps`` input values per pixel.

    FMLAs on ``fma_units`` pipes, or waiting for each other when there are few; what is not FMLA
    issues beside them, at half a cycle for two pipes.
    """
    sums = pixels * vectors
    fma = max(sums / target.fma_units, LATENCY)
    other = (-(-pixels // LANES) + vectors) / LANES + 2 / unroll
    overhead = TILE_OVERHEAD + SUM_OVERHEAD * sums
    return taps * (fma + 0.5 * other) + overhead / 2


def predicted_cycles(
    spec: ConvSpec | DenseSpec, tile: tuple[int, int], target: TargetSpec, unroll: int
) -> float:
    """Cycles of the whole operator on one core with a register tile, caches left aside."""
    pixels, vectors = tile
    if isinstance(spec, DenseSpec):
        rows, columns, batch = 1, spec.batch, 1
        taps, outputs = spec.in_features, spec.out_features
    else:
        flat = spec.kind == "pointwise"
        rows = 1 if flat else spec.out_height
        columns = spec.out_width * (spec.out_height if flat else 1)
        batch = spec.batch
        taps, outputs = spec.in_channels * spec.kernel[0] * spec.kernel[1], spec.out_channels
    blocks = len(channel_blocks(outputs, spec.lanes))
    return sum(
        batch * rows * number * n_groups * tile_cycles(span, width, target, taps, unroll)
        for number, span in _spans(columns, pixels)
        for n_groups, width in _spans(blocks, vectors)
    )


def _spans(total: int, tile: int) -> list[tuple[int, int]]:
    """(number, width) of the full tiles and of the narrower last one."""
    full, rest = divmod(total, tile)
    return [(number, width) for number, width in ((full, tile), (1, rest)) if number and width]


@dataclass(frozen=True)
class _Convolution:
    """Register tile by predicted cycles, loop order by what stays in cache."""

    name: str
    kind: str
    assembly: bool = False
    knobs_class: type = ConvKnobs

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, ConvSpec | DenseSpec) and spec.kind == self.kind

    @native_bounds()
    def build(self, spec: Any, knobs: ConvKnobs) -> tirx.PrimFunc:
        return template.build(spec, knobs, NeonNest if self.assembly else Nest)

    def pack_weight(self, spec: Any, knobs: ConvKnobs, weight: np.ndarray) -> np.ndarray:
        return template.pack_weight(spec, knobs, weight)

    def analytic(self, spec: Any, target: TargetSpec) -> ConvKnobs:
        unroll = 16 if self.assembly else LANES
        pixels, vectors = min(
            self._tiles(spec, target),
            key=lambda tile: (predicted_cycles(spec, tile, target, unroll), tile),
        )
        order, row_tiles = "channels", 0
        if spec.kind == "stem":
            order = "pixels"
        return ConvKnobs(
            pixels,
            vectors,
            unroll=unroll,
            row_tiles=row_tiles,
            order=order,
            parallel=worth_threads(spec, target),
        )

    def _tiles(self, spec: Any, target: TargetSpec) -> list[tuple[int, int]]:
        tiles = register_tiles(target, assembly=self.assembly)
        if isinstance(spec, DenseSpec) and self.assembly:
            return [tile for tile in tiles if tile[0] == 1]
        return tiles

    def space(self, spec: Any, target: TargetSpec) -> Iterable[ConvKnobs]:
        unrolls = (4, 8, 16) if self.assembly else (1, 2, 4)
        tiles = self._tiles(spec, target)
        cycles = {tile: predicted_cycles(spec, tile, target, unrolls[-1]) for tile in tiles}
        near = [tile for tile in tiles if cycles[tile] <= 1.25 * min(cycles.values())]
        parallel = worth_threads(spec, target)
        row_tiles = (0, 1, 2, 4, 8, 16) if spec.kind == "pointwise" else (0,)
        return [
            ConvKnobs(*tile, unroll, rows, order, parallel)
            for tile, unroll, rows, order in product(
                near, unrolls, row_tiles, ("channels", "pixels")
            )
        ]


POINTWISE: Any = _Convolution("pointwise", "pointwise", assembly=True)
DENSE: Any = _Convolution("dense", "dense", assembly=True)
POINTWISE_32: Any = _Convolution("pointwise", "pointwise")
DENSE_32: Any = _Convolution("dense", "dense")
STEM: Any = _Convolution("stem", "stem")
CONVOLUTION: Any = _Convolution("convolution", "conv")
