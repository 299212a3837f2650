"""Pointwise, stem, general convolution and dense on x86: knobs of the convolution template.

Register budget: AVX-512 has 32 vector registers, of which a 14x2 tile uses 28 + 2 + 1; AVX2 and
SSE have 16, of which 6x2 uses 12 + 2 + 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from ..spec import FLOAT_BYTES, ConvSpec, DenseSpec, Spec, channel_blocks
from ..templates import convolution as template
from ..templates.convolution import ConvKnobs
from .work import worth_threads

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

# Cycles to start and finish a register tile (bias, store, loop control): small K makes it matter.
TILE_OVERHEAD = 20
# Share of a load's cost that remains when it hides behind an FMA.
HIDDEN_LOAD = 0.1


def register_tiles(target: TargetSpec) -> list[tuple[int, int]]:
    """All (pixels, vectors) that fit the registers beside the weights and one broadcast.

    More than four vectors only for a single pixel, which needs them to hide the FMA's latency:
    wider panels crowd L1, and a 5x5 tile measured slower than 9x3 on 7x7 layers.
    """
    free = target.vector_registers
    sums = free * 7 // 8  # the rest is for constants and addresses that LLVM keeps in registers
    return [
        (pixels, vectors)
        for vectors in range(1, 9)
        for pixels in range(1, sums + 1 if vectors <= 4 else 2)
        if pixels * vectors <= sums and pixels * vectors + vectors + 1 <= free
    ]


def tile_cycles(pixels: int, widths: list[int], target: TargetSpec, taps: int) -> float:
    """Cycles of one register tile over ``taps`` multiply-adds per sum.

    Per tap: an FMA per sum, a load per weight vector and a broadcast per pixel, on two load ports;
    sums fewer than the FMAs in flight (4 cycles' latency) leave the units waiting. Loads that hide
    behind FMAs still cost a little: of tiles with equal FMAs, the squarer one measures faster.
    """
    vectors = len(widths)
    fma = max(pixels * vectors / target.fma_units, 4.0)
    loads = (pixels + vectors) / 2
    return TILE_OVERHEAD + pixels * vectors / 2 + taps * (max(fma, loads) + HIDDEN_LOAD * loads)


def _spans(total: int, tile: int) -> list[int]:
    return [tile] * (total // tile) + ([total % tile] if total % tile else [])


def predicted_cycles(
    spec: ConvSpec | DenseSpec, tile: tuple[int, int], target: TargetSpec
) -> float:
    """Cycles of the whole operator on one core with a register tile, caches left aside."""
    pixels, vectors = tile
    if isinstance(spec, DenseSpec):
        rows, columns, batch = 1, spec.batch, 1
        taps = spec.in_features
        blocks = channel_blocks(spec.out_features, spec.lanes)
    else:
        flat = spec.kind == "pointwise"
        rows = 1 if flat else spec.out_height
        columns = spec.out_width * (spec.out_height if flat else 1)
        batch = spec.batch
        taps = spec.in_channels * spec.kernel[0] * spec.kernel[1]
        blocks = channel_blocks(spec.out_channels, spec.lanes)
    groups = [blocks[i : i + vectors] for i in range(0, len(blocks), vectors)]
    return (
        batch
        * rows
        * sum(
            tile_cycles(span, widths, target, taps)
            for span in _spans(columns, pixels)
            for widths in groups
        )
    )


@dataclass(frozen=True)
class _Convolution:
    """Register tile by predicted cycles, loop order by what stays in cache."""

    name: str
    kind: str
    knobs_class: type = ConvKnobs

    build = staticmethod(template.build)
    pack_weight = staticmethod(template.pack_weight)

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, ConvSpec | DenseSpec) and spec.kind == self.kind

    def analytic(self, spec: Any, target: TargetSpec) -> ConvKnobs:
        pixels, vectors = min(
            register_tiles(target),
            key=lambda tile: (predicted_cycles(spec, tile, target), tile),
        )
        return self._with_order(spec, target, pixels, vectors)

    def _with_order(self, spec: Any, target: TargetSpec, pixels: int, vectors: int) -> ConvKnobs:
        """Loop order and prefetch for a register tile."""
        knobs = ConvKnobs(pixels, vectors, parallel=worth_threads(spec, target))
        panel = template.working_set(spec, knobs)
        in_features = spec.in_features if isinstance(spec, DenseSpec) else spec.in_channels
        out_features = spec.out_features if isinstance(spec, DenseSpec) else spec.out_channels
        taps = 1 if isinstance(spec, DenseSpec) else spec.kernel[0] * spec.kernel[1]
        weights = FLOAT_BYTES * in_features * out_features * taps
        order, row_tiles = "channels", 0
        if spec.kind == "pointwise":
            # a pseudo-row's input should stay in half of L1 while all panels pass over it
            tile_bytes = FLOAT_BYTES * in_features * pixels
            row_tiles = max(1, target.l1d_kib * 512 // tile_bytes)
            if weights <= target.l2_kib * 1024 // 16:
                order = "pixels"
            else:
                row_tiles = 0
        elif spec.kind == "stem":
            order = "pixels"
        return ConvKnobs(
            pixels=pixels,
            vectors=vectors,
            # a wider kernel's columns are unrolled already
            unroll=4 if target.vector_registers >= 32 and taps == 1 else 1,
            row_tiles=row_tiles,
            order=order,
            parallel=knobs.parallel,
            prefetch=order == "channels" and panel > 4096,
        )

    def predicted(self, spec: Any, knobs: ConvKnobs, target: TargetSpec) -> float:
        """Cycles by which tuning orders candidates until it has measured some."""
        return predicted_cycles(spec, (knobs.pixels, knobs.vectors), target)

    def space(self, spec: Any, target: TargetSpec) -> Iterable[ConvKnobs]:
        best = min(predicted_cycles(spec, tile, target) for tile in register_tiles(target))
        tiles = [
            tile
            for tile in register_tiles(target)
            if predicted_cycles(spec, tile, target) <= 1.25 * best
        ]
        parallel = worth_threads(spec, target)
        row_tiles = (0, 1, 2, 4, 8, 16) if spec.kind == "pointwise" else (0,)
        return [
            ConvKnobs(*tile, unroll, rows, order, parallel, prefetch)
            for tile, unroll, rows, order, prefetch in product(
                tiles, (1, 2, 4), row_tiles, ("channels", "pixels"), (False, True)
            )
        ]


POINTWISE: Any = _Convolution("pointwise", "pointwise")
STEM: Any = _Convolution("stem", "stem")
CONVOLUTION: Any = _Convolution("convolution", "conv")
DENSE: Any = _Convolution("dense", "dense")
