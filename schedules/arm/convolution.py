"""Pointwise, stem, general convolution and dense on ARM Cortex-A.

On aarch64 the innermost loop of pointwise and dense layers is `PointwiseTile`; armv7 and the other
kinds of convolution run the template's own loop. Tiles are chosen by predicted cycles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from ..emit import native_bounds
from ..spec import FLOAT_BYTES, ConvSpec, DenseSpec, Spec, channel_blocks
from ..templates import convolution as template
from ..templates.convolution import Nest, Tile
from ..templates.problem import ConvKnobs
from ..x86.work import worth_threads
from .assembly import LANES, REGISTERS
from .pointwise import PointwiseTile
from .stem import StemTile

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

# Cycles from one FMLA to the next on the same sum (Cortex-A72, A76 and Neoverse N1 forward sums
# early; A53 and A55 take 4).
LATENCY = 4
# Instructions to start and finish a register tile: addresses and loop control.
TILE_OVERHEAD = 16
# Per sum: set to the bias, two for the activation, half a store.
SUM_OVERHEAD = 3.5


@dataclass(frozen=True)
class NeonConvKnobs(ConvKnobs):
    """early: load ahead, for cores that issue in program order."""

    early: bool = False


class PointwiseNest(Nest):
    """The template's loop nest with assembly inside, wherever blocks are whole."""

    def accumulate(self, tile: Tile) -> None:
        kernel = self.kernel(tile)
        if kernel is None:
            super().accumulate(tile)
            return
        problem = self.problem
        pixel = tile.row * problem.in_row + tile.column
        x_at = pixel * (problem.in_channels if problem.plain else LANES)
        kernel.assembly().emit(self.x[tile.image, x_at], self.weight[tile.panel], tile.sums)
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
            early=getattr(self.knobs, "early", False),
        )


class StemNest(Nest):
    """The template's loop nest with assembly inside, away from the upper and lower edge."""

    def accumulate(self, tile: Tile) -> None:
        kernel = self.kernel(tile)
        if kernel is None:
            super().accumulate(tile)
            return
        problem = self.problem
        row = tile.row * problem.stride[0] - problem.padding[0]
        column = tile.column * problem.stride[1] - problem.padding[1] + kernel.columns[0]
        kernel.assembly().emit(
            self.x[tile.image, row * problem.in_row + column], self.weight[tile.panel], tile.sums
        )

    def kernel(self, tile: Tile) -> StemTile | None:
        """The assembly for a tile, if there is one."""
        problem = self.problem
        whole = all(width == LANES for width in tile.widths)
        if not whole or len(tile.kernel_rows) < problem.kernel[0] or not any(tile.run.taps):
            return None
        assert isinstance(self.spec, ConvSpec)
        early = getattr(self.knobs, "early", False)
        found = _stem_tile(self.spec, tile.run.taps, len(tile.widths), early)
        return found if found.registers <= REGISTERS else None


def _stem_tile(
    spec: ConvSpec, taps: Sequence[tuple[int, ...]], vectors: int, early: bool
) -> StemTile:
    return StemTile(
        channels=spec.in_channels,
        kernel=spec.kernel,
        taps=tuple(taps),
        vectors=vectors,
        stride=spec.stride[1],
        dilation=spec.dilation[1],
        row_bytes=FLOAT_BYTES * spec.in_width * spec.dilation[0],
        plane_bytes=FLOAT_BYTES * spec.in_width * spec.in_height,
        early=early,
    )


@dataclass(frozen=True)
class _Convolution:
    """Register tile by predicted cycles, loop order by what stays in cache."""

    name: str
    kind: str
    nest: type[Nest] = Nest
    unrolls: tuple[int, ...] = (1, 2, 4)
    knobs_class: type = NeonConvKnobs

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, ConvSpec | DenseSpec) and spec.kind == self.kind

    @native_bounds()
    def build(self, spec: Any, knobs: ConvKnobs) -> tirx.PrimFunc:
        return template.build(spec, knobs, self.nest)

    def pack_weight(
        self, spec: Any, knobs: ConvKnobs, weight: np.ndarray, argument: int = 1
    ) -> np.ndarray:
        return template.pack_weight(spec, knobs, weight)

    def tiles(self, spec: Any, target: TargetSpec) -> dict[tuple[int, int], float]:
        """The (pixels, vectors) that fit the registers, and their loads per input and tap."""
        free = target.vector_registers
        sums = free * 3 // 4  # LLVM loads several operands ahead
        return {
            (pixels, vectors): pixels + vectors / 2
            for vectors in range(1, 9)
            for pixels in range(1, sums // vectors + 1)
            if pixels * vectors + vectors + 1 <= free
        }

    def analytic(self, spec: Any, target: TargetSpec, vectors: int | None = None) -> NeonConvKnobs:
        cycles = self._cycles(spec, target)
        tiles = [tile for tile in cycles if vectors in (None, tile[1])]
        pixels, vectors = min(tiles, key=lambda tile: (cycles[tile], tile))
        return NeonConvKnobs(
            pixels,
            vectors,
            unroll=self.unrolls[-1],
            order="pixels" if spec.kind == "stem" else "channels",
            parallel=worth_threads(spec, target),
            early=target.in_order and self.nest is not Nest,
        )

    def space(self, spec: Any, target: TargetSpec) -> Iterable[NeonConvKnobs]:
        cycles = self._cycles(spec, target)
        near = [tile for tile in cycles if cycles[tile] <= 1.25 * min(cycles.values())]
        parallel = worth_threads(spec, target)
        row_tiles = (0, 1, 2, 4, 8, 16) if spec.kind == "pointwise" else (0,)
        earlies = (False, True) if self.nest is not Nest and target.in_order else (False,)
        return [
            NeonConvKnobs(*tile, unroll, rows, order, parallel, early=early)
            for tile, unroll, rows, order, early in product(
                near, self.unrolls, row_tiles, ("channels", "pixels"), earlies
            )
        ]

    def _cycles(self, spec: Any, target: TargetSpec) -> dict[tuple[int, int], float]:
        """Predicted cycles of the whole operator on one core per tile, caches left aside."""
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
        return {
            tile: sum(
                batch * rows * number * groups * tile_cycles(span, width, target, taps, loads)
                for number, span in _spans(columns, tile[0])
                for groups, width in _spans(blocks, tile[1])
            )
            for tile, loads in self.tiles(spec, target).items()
        }


class _Pointwise(_Convolution):
    """Tiles of `PointwiseTile`; a dense layer's pixels are images, one at a time."""

    def tiles(self, spec: Any, target: TargetSpec) -> dict[tuple[int, int], float]:
        most = 1 if isinstance(spec, DenseSpec) else 16
        return {
            (pixels, vectors): (-(-pixels // LANES) + vectors) / LANES
            for vectors in range(1, 13)
            for pixels in range(1, most + 1)
            if PointwiseTile(pixels, vectors, 1, 0).registers <= target.vector_registers
        }


class _Stem(_Convolution):
    """Tiles of `StemTile`."""

    def tiles(self, spec: Any, target: TargetSpec) -> dict[tuple[int, int], float]:
        found = {}
        for pixels, vectors in product(range(1, 17), range(1, 7)):
            taps = [tuple(range(spec.kernel[1]))] * pixels
            tile = _stem_tile(spec, taps, vectors, target.in_order)
            late = _stem_tile(spec, taps, vectors, early=False)
            if max(tile.registers, late.registers) <= target.vector_registers:
                found[pixels, vectors] = tile.loads / spec.kernel[1]
        return found or super().tiles(spec, target)


def tile_cycles(pixels: int, vectors: int, target: TargetSpec, taps: int, loads: float) -> float:
    """Cycles of one register tile over ``taps`` inputs, with ``loads`` instructions for each.

    FMLAs on ``fma_units`` pipes, or waiting for each other when there are few; what is not FMLA
    issues beside them, at half a cycle.
    """
    sums = pixels * vectors
    fma = max(sums / target.fma_units, LATENCY)
    return taps * (fma + loads / 2) + (TILE_OVERHEAD + SUM_OVERHEAD * sums) / 2


def _spans(total: int, tile: int) -> list[tuple[int, int]]:
    """(number, width) of the full tiles and of the narrower last one."""
    full, rest = divmod(total, tile)
    return [(number, width) for number, width in ((full, tile), (1, rest)) if number and width]


POINTWISE: Any = _Pointwise("pointwise", "pointwise", PointwiseNest, (4, 8, 16))
DENSE: Any = _Pointwise("dense", "dense", PointwiseNest, (4, 8, 16))
STEM: Any = _Stem("stem", "stem", StemNest, (1,))
CONVOLUTION: Any = _Convolution("convolution", "conv")
POINTWISE_32: Any = _Convolution("pointwise", "pointwise")
DENSE_32: Any = _Convolution("dense", "dense")
STEM_32: Any = _Convolution("stem", "stem")
