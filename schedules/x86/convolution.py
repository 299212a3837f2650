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
from ..templates.problem import ConvKnobs
from .work import worth_threads

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

# Cycles to start and finish a register tile (bias, store, loop control): small K makes it matter.
TILE_OVERHEAD = 20
# Share of a load's cost that remains when it hides behind an FMA.
HIDDEN_LOAD = 0.1
# What two load ports sustain: tiles one vector wide, bound by loads, measured 15-25 % slower than
# two loads a cycle would have them.
LOADS_PER_CYCLE = 1.6
# Bytes of weights per cycle that one of several cores streams from beyond L2; measured as what
# 7x7 layers of 960 channels take beyond their arithmetic, prefetching included.
STREAM = 3.6


def register_tiles(target: TargetSpec, columns: int = 1) -> list[tuple[int, int]]:
    """All (pixels, vectors) that fit the registers beside the weights and one broadcast.

    A kernel of several columns is unrolled, and LLVM keeps their weights in registers as well: a
    3x3 stem of 10x2 measured 1.8 times as fast as one of 14x2, which spills.

    No more than four vectors: wider panels crowd L1. A 5x5 tile measured slower than 9x3 on 7x7
    layers, and 1x8 up to 25 % slower than 1x4 on dense layers.
    """
    free = target.vector_registers
    # the rest is for constants and addresses that LLVM keeps in registers
    sums = free * 7 // 8 if columns == 1 else free * 5 // 8
    return [
        (pixels, vectors)
        for vectors in range(1, 5)
        for pixels in range(1, sums + 1)
        if pixels * vectors <= sums and pixels * vectors + vectors + 1 <= free
    ]


def tile_cycles(pixels: int, widths: list[int], target: TargetSpec, taps: int) -> float:
    """Cycles of one register tile over ``taps`` multiply-adds per sum.

    Per tap: an FMA per sum, a load per weight vector and a broadcast per pixel;
    sums fewer than the FMAs in flight (4 cycles' latency) leave the units waiting. Loads that hide
    behind FMAs still cost a little: of tiles with equal FMAs, the squarer one measures faster.
    """
    vectors = len(widths)
    fma = max(pixels * vectors / target.fma_units, 4.0)
    loads = (pixels + vectors) / LOADS_PER_CYCLE
    return TILE_OVERHEAD + pixels * vectors / 2 + taps * (max(fma, loads) + HIDDEN_LOAD * loads)


def _spans(total: int, tile: int) -> list[int]:
    return [tile] * (total // tile) + ([total % tile] if total % tile else [])


def predicted_cycles(
    spec: ConvSpec | DenseSpec, tile: tuple[int, int], target: TargetSpec
) -> float:
    """Cycles of the whole operator on one core with a register tile, caches left aside."""
    return sum(_panel_cycles(spec, tile, target))


@dataclass(frozen=True)
class Split:
    """How a convolution's work is dealt to the threads, in runs of consecutive items.

    An item is one of ``parts`` equal pieces of the pixels of one weight panel; ``order`` is the
    outer loop: over the panels (``channels``) or over the pieces (``pixels``).
    """

    order: str = "channels"
    parts: int = 1


def busiest_thread(
    spec: ConvSpec | DenseSpec, tile: tuple[int, int], split: Split, target: TargetSpec
) -> float:
    """Cycles of the thread with most work; each must also stream the panels that it touches."""
    panels = _panel_cycles(spec, tile, target)
    pixels = spec.batch if isinstance(spec, DenseSpec) else spec.out_pixels
    tiles = -(-pixels // tile[0])
    piece = -(-tiles // split.parts) / tiles
    by_panel = [(i, cycles * piece) for i, cycles in enumerate(panels)]
    if split.order == "channels":
        items = [item for item in by_panel for _ in range(split.parts)]
    else:
        items = by_panel * split.parts
    share = -(-len(items) // target.cores)
    runs = [items[i : i + share] for i in range(0, len(items), share)]
    return max(
        sum(cycles for _, cycles in run)
        + len({i for i, _ in run}) * weight_bytes(spec) / len(panels) / STREAM
        for run in runs
    )


def _panel_cycles(
    spec: ConvSpec | DenseSpec, tile: tuple[int, int], target: TargetSpec
) -> list[float]:
    """Cycles of each weight panel's part of the operator on one core, caches left aside."""
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
    return [
        batch
        * rows
        * sum(
            tile_cycles(span, blocks[i : i + vectors], target, taps)
            for span in _spans(columns, pixels)
        )
        for i in range(0, len(blocks), vectors)
    ]


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

    def analytic(self, spec: Any, target: TargetSpec, vectors: int | None = None) -> ConvKnobs:
        threads = worth_threads(spec, target)
        near = spec.kind == "pointwise" and weights_stay_near(spec, target)
        splits = [Split()]
        if spec.kind == "pointwise" and threads and not near:
            splits += [Split("channels", target.cores), Split("pixels", target.cores)]

        def cycles(choice: tuple[tuple[int, int], Split]) -> float:
            tile, split = choice
            if threads and not near:
                return busiest_thread(spec, tile, split, target)
            return predicted_cycles(spec, tile, target)  # many rows: any split is balanced

        fitting = [t for t in register_tiles(target, _columns(spec)) if vectors in (None, t[1])]
        choices = list(product(fitting, splits))
        (pixels, vectors), split = min(choices, key=cycles)
        order, row_tiles = split.order, 0
        if near:
            # a pseudo-row's input should stay in half of L1 while all panels pass over it
            order = "pixels"
            row_tiles = max(1, target.l1d_kib * 512 // (FLOAT_BYTES * spec.in_channels * pixels))
            tiles = -(-spec.out_pixels // pixels)
            rows = -(-tiles // row_tiles)
            if threads:
                rows = -(-rows // target.cores) * target.cores
            row_tiles = -(-tiles // rows)
        elif spec.kind == "stem":
            order = "pixels"
        elif split.parts > 1:
            tiles = -(-spec.out_pixels // pixels)
            row_tiles = -(-tiles // split.parts)
        panel = template.working_set(spec, ConvKnobs(pixels, vectors))
        depth = pass_depth(spec, vectors, panel, target, threads)
        unrolled = spec.kind in ("conv", "stem")  # a wider kernel's columns are unrolled already
        return ConvKnobs(
            pixels=pixels,
            vectors=vectors,
            unroll=4 if target.vector_registers >= 32 and not unrolled else 1,
            row_tiles=row_tiles,
            order=order,
            parallel=threads,
            # a dense layer reads each weight once, as fast as memory gives it
            prefetch=not near and spec.kind in ("pointwise", "conv") and panel > 4096,
            depth=depth,
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
        analytic = self.analytic(spec, target)
        row_tiles, depths = {0, analytic.row_tiles}, sorted({0, analytic.depth})
        if spec.kind == "pointwise":
            row_tiles |= {1, 2, 4, 8, 16}
        return [
            ConvKnobs(*tile, unroll, rows, order, parallel, prefetch, depth)
            for tile, unroll, rows, order, prefetch, depth in product(
                tiles, (1, 2, 4), sorted(row_tiles), ("channels", "pixels"), (False, True), depths
            )
            if not depth or order == "channels"
        ]


def weight_bytes(spec: ConvSpec | DenseSpec) -> int:
    """Bytes of the weights."""
    outputs = 1 if isinstance(spec, DenseSpec) else spec.out_pixels
    return FLOAT_BYTES * spec.mult_adds // (spec.batch * outputs)


def weights_stay_near(spec: ConvSpec | DenseSpec, target: TargetSpec) -> bool:
    """Whether all weights stay in L2, beside the activations, while every row passes over them."""
    return weight_bytes(spec) <= target.l2_kib * 1024 // 16


def pass_depth(
    spec: ConvSpec | DenseSpec, vectors: int, panel: int, target: TargetSpec, threads: bool
) -> int:
    """Blocks of input channels per pass over the pixels; 0: all in one.

    Every row of pixels reads its panel again: one of more than a quarter of L2 is used in parts of
    a sixteenth: 1.9 times as fast at 7x7x1024 to 1024, 1.08 at 14x14x512 to 512 on one thread.
    """
    l2 = target.l2_kib * 1024
    if isinstance(spec, DenseSpec) or spec.kind != "conv" or panel <= l2 // 4:
        return 0
    groups = -(-len(channel_blocks(spec.out_channels, spec.lanes)) // vectors)
    if threads and spec.batch * groups < 4 * target.cores:
        return 0  # passes are dealt to the threads by whole panels
    return max(1, l2 // 16 * len(channel_blocks(spec.in_channels, spec.lanes)) // panel)


def _columns(spec: ConvSpec | DenseSpec) -> int:
    return 1 if isinstance(spec, DenseSpec) else spec.kernel[1]


POINTWISE: Any = _Convolution("pointwise", "pointwise")
STEM: Any = _Convolution("stem", "stem")
CONVOLUTION: Any = _Convolution("convolution", "conv")
DENSE: Any = _Convolution("dense", "dense")
