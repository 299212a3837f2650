"""Depthwise convolution on ARM Cortex-A.

Idea
----
The template's tiles, a piece of one output row of four channels, with assembly for the taps: per
kernel row its weights and the input columns are loaded once, up to eight columns by two
instructions, and each is multiplied into every sum that it feeds. Edge tiles load only columns
that exist. 14 pixels of 3x3: 126 FMLA, 12 input loads, 3 weight loads.

Register budget: P sums + KW weights + 8 inputs <= 32; 14 pixels of 3x3 take 25, of 5x5 27.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..emit import native_bounds
from ..spec import ConvSpec, Spec
from ..templates import depthwise as template
from ..templates.depthwise import DepthwiseKnobs, Nest, Tile
from ..templates.tiling import ColumnRun, column_runs
from ..x86.work import worth_threads
from .assembly import LANES, VECTOR_BYTES, Assembly, load

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

INPUTS = 8  # registers for input columns
MOST_TAPS = 7  # per kernel row: the weights of one row are in registers
# Instructions around a tile's taps: addresses and loop control.
TILE_OVERHEAD = 8


@dataclass(frozen=True)
class DepthwiseTile:
    """All taps of one tile: ``sums[p] += x[row][column(p, tap)] * w[row][tap]``.

    ``taps`` are the valid kernel columns per pixel; input columns are numbered from the first
    that is used, which is where the pointer starts.
    """

    kernel_rows: int
    kernel_width: int
    taps: tuple[tuple[int, ...], ...]
    stride: int
    dilation: int
    row_bytes: int  # from one input row used to the next

    def column(self, pixel: int, tap: int) -> int:
        """Input column relative to that of tap 0 of pixel 0."""
        return pixel * self.stride + tap * self.dilation

    @property
    def columns(self) -> range:
        """The columns from the first to the last that is used."""
        used = [self.column(p, tap) for p, taps in enumerate(self.taps) for tap in taps]
        return range(min(used), max(used) + 1)

    def assembly(self) -> Assembly:
        """Fixed registers: inputs from v0, the weights of a kernel row from v8."""
        weights = list(range(INPUTS, INPUTS + self.kernel_width))
        columns, row = self.columns, []
        row += load(weights, "w")
        chunks = [columns[i : i + INPUTS] for i in range(0, len(columns), INPUTS)]
        moved = 0
        for chunk in chunks:
            last = chunk is chunks[-1]
            before_last = (len(chunk) - 1) // LANES * LANES * VECTOR_BYTES
            step = "{c0}" if last else ""
            row += load(range(len(chunk)), "x", step)
            moved += before_last if last else VECTOR_BYTES * len(chunk)
            # by tap first, so that one sum's FMLAs are apart
            for tap in range(self.kernel_width):
                for p, taps in enumerate(self.taps):
                    if tap in taps and (at := self.column(p, tap)) in chunk:
                        register = at - chunk[0]
                        row.append(f"fmla {{s{p}}}.4s, v{register}.4s, v{weights[tap]}.4s")
        inside = "_".join("".join(map(str, taps)) or "x" for taps in self.taps)
        return Assembly(
            name=(
                f"tvm_mobilenet_depthwise_{self.kernel_rows}x{self.kernel_width}"
                f"_{self.stride}_{self.dilation}_{self.row_bytes}_{inside}"
            ),
            lines=tuple(row * self.kernel_rows),
            sums=len(self.taps),
            fixed=(*range(min(INPUTS, len(columns))), *weights),
            constants=(self.row_bytes - moved,),
        )


class NeonNest(Nest):
    """The template's loop nest with assembly inside, wherever a channel block is whole."""

    def accumulate(self, tile: Tile) -> None:
        spec, kernel = self.spec, self.kernel(tile)
        if kernel is None:
            super().accumulate(tile)
            return
        first = tile.rows.taps[0]
        row = tile.row * spec.stride[0] - spec.padding[0] + first * spec.dilation[0]
        column = tile.column * spec.stride[1] - spec.padding[1] + kernel.columns[0]
        plane = tile.channel * (spec.in_height * spec.in_width)
        w_at = (tile.channel * spec.kernel[0] + first * LANES) * spec.kernel[1]
        kernel.assembly().emit(
            T.address_of(self.x[tile.image, plane + (row * spec.in_width + column) * LANES]),
            T.address_of(self.weight[w_at]),
            [tile.sums.address(p) for p in tile.sums],
        )

    def kernel(self, tile: Tile) -> DepthwiseTile | None:
        """The assembly for a tile, if there is one."""
        spec = self.spec
        no_tap = not tile.rows.taps or not any(tile.run.taps)
        if tile.width != LANES or spec.kernel[1] > MOST_TAPS or no_tap:
            return None
        return DepthwiseTile(
            kernel_rows=len(tile.rows.taps),
            kernel_width=spec.kernel[1],
            taps=tile.run.taps,
            stride=spec.stride[1],
            dilation=spec.dilation[1],
            row_bytes=spec.dilation[0] * spec.in_width * VECTOR_BYTES,
        )


class _Depthwise:
    """Tile width by counted instructions."""

    name = "depthwise"
    knobs_class = DepthwiseKnobs

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, ConvSpec) and spec.kind == "depthwise"

    @native_bounds()
    def build(self, spec: ConvSpec, knobs: DepthwiseKnobs) -> tirx.PrimFunc:
        return template.build(spec, knobs, NeonNest)

    def pack_weight(
        self, spec: ConvSpec, knobs: DepthwiseKnobs, weight: np.ndarray, argument: int = 1
    ) -> np.ndarray:
        return template.pack_weight(spec, knobs, weight)

    def widths(self, spec: ConvSpec, target: TargetSpec) -> range:
        """Tile widths that fit the registers."""
        free = target.vector_registers - INPUTS - spec.kernel[1]
        return range(1, max(2, min(free, 16, spec.out_width) + 1))

    def analytic(self, spec: ConvSpec, target: TargetSpec) -> DepthwiseKnobs:
        pixels = min(self.widths(spec, target), key=lambda p: (self.instructions(spec, p), p))
        return DepthwiseKnobs(pixels, rows_per_item(spec, target))

    @staticmethod
    def instructions(spec: ConvSpec, pixels: int) -> float:
        """Instructions per inner output row of one channel block, beside its FMLAs."""
        runs = column_runs(
            spec.out_width,
            pixels,
            size=spec.in_width,
            kernel=spec.kernel[1],
            stride=spec.stride[1],
            padding=spec.padding[1],
            dilation=spec.dilation[1],
        )

        def tile(run: ColumnRun) -> float:
            columns = (run.pixels - 1) * spec.stride[1] + spec.kernel[1]
            full, rest = divmod(columns, INPUTS)
            loads = full * 2 + -(-rest // LANES) + -(-spec.kernel[1] // LANES)
            return TILE_OVERHEAD + spec.kernel[0] * loads + -(-run.pixels // 2)

        return sum(run.count * tile(run) for run in runs)

    def space(self, spec: ConvSpec, target: TargetSpec) -> Iterable[DepthwiseKnobs]:
        rows = sorted({0, rows_per_item(spec, target)})
        return [DepthwiseKnobs(p, r) for p in self.widths(spec, target) for r in rows]


def rows_per_item(spec: ConvSpec, target: TargetSpec) -> int:
    """Rows per parallel item: four items for each core; 0 where threads do not pay."""
    if not worth_threads(spec, target):
        return 0
    blocks = spec.batch * -(-spec.out_channels // spec.lanes)
    chunks = max(1, -(-4 * target.cores // blocks))
    return max(1, spec.out_height // chunks)


DEPTHWISE: Any = _Depthwise()
