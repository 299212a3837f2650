"""Depthwise convolution on ARM Cortex-A.

Idea
----
The template's tiles, a piece of one output row of four channels, with assembly for the taps: per
kernel row its weights and the input columns are loaded once, up to eight columns by two
instructions, and each is multiplied into every sum that it feeds. Edge tiles load only columns
that exist. 14 pixels of 3x3: 126 FMLA, 12 input loads, 3 weight loads.

With ``early``, for cores that wait for each instruction's operands in program order, loads stand
among the FMLAs, up to eight columns ahead of those that use them, and the weights of two kernel
rows are in registers.

Register budget: P sums + KW weights (early: 2 KW) + 8 inputs (early: 12) <= 32; 14 pixels of 3x3
take 25 (early: 32), of 5x5 27.

llvm-mca, of the cycles that the FMLAs alone take: 100 % on Cortex-A72 and Neoverse N1, but 87 % on
N1 for 7 pixels with stride 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from ..emit import native_bounds
from ..spec import ConvSpec, Spec
from ..templates import depthwise as template
from ..templates.depthwise import DepthwiseKnobs, Nest, Tile
from ..templates.tiling import ColumnRun, column_runs
from ..x86.work import worth_threads
from .assembly import LANES, VECTOR_BYTES, Assembly, interleave, load, load_apart
from .taps import RowTile

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

INPUTS = 8  # registers for input columns
MOST_TAPS = 7  # per kernel row: the weights of one row are in registers
# Instructions around a tile's taps: addresses and loop control.
TILE_OVERHEAD = 8


@dataclass(frozen=True)
class DepthwiseTile(RowTile):
    """All taps of one tile: ``sums[p] += x[row][column(p, tap)] * w[row][tap]``."""

    kernel_rows: int
    kernel_width: int
    early: bool = False  # loads apart, before they are needed

    def assembly(self) -> Assembly:
        """Fixed registers: inputs from v0, then the weights of a kernel row (early: of two)."""
        if self.early:
            inputs = first_weight = early_inputs(self.stride)
            lines = self._early()
        else:
            lines = [line for loads, products in self._steps() for line in (*loads, *products)]
            inputs, first_weight = min(INPUTS, len(self.columns)), INPUTS
        weights = self.kernel_width * (2 if self.early else 1)
        # before the last load of a row
        moved = LANES * VECTOR_BYTES * ((len(self.columns) - 1) // LANES)
        return Assembly(
            name=(
                f"tvm_mobilenet_depthwise_{self.kernel_rows}x{self.kernel_width}"
                f"_{self.label}{'_early' * self.early}"
            ),
            lines=tuple(lines),
            sums=len(self.taps),
            fixed=(*range(inputs), *range(first_weight, first_weight + weights)),
            constants=(self.row_bytes - (0 if self.early else moved),),
        )

    def _steps(self) -> list[tuple[list[str], list[str]]]:
        """Loads and products of up to eight input columns at a time."""
        weights = range(INPUTS, INPUTS + self.kernel_width)
        steps = []
        for _ in range(self.kernel_rows):
            for i, chunk in enumerate(chunks := _chunks(self.columns, INPUTS)):
                loads = load(weights, "w") if i == 0 else []
                step = "{c0}" if i == len(chunks) - 1 else ""
                loads += load(range(len(chunk)), "x", step)
                steps.append((loads, self._products(chunk, 0, weights)))
        return steps

    def _early(self) -> list[str]:
        """Some columns at a time, in registers that take turns; loads a step or two ahead."""
        steps: list[tuple[list[str], list[str]]] = []
        width, inputs = LANES * min(self.stride, 2), early_inputs(self.stride)
        chunks = _chunks(self.columns, width)
        for row in range(self.kernel_rows):
            start = inputs + row % 2 * self.kernel_width
            weights = range(start, start + self.kernel_width)
            for i, chunk in enumerate(chunks):
                first = width * len(steps) % inputs
                row_of_weights = VECTOR_BYTES * self.kernel_width * row
                loads = load_apart(weights, "w", row_of_weights) if i == 0 else []
                registers = range(first, first + len(chunk))
                loads += load_apart(registers, "x", VECTOR_BYTES * width * i)
                loads += ["add {x}, {x}, {c0}"] if i == len(chunks) - 1 else []
                steps.append((loads, self._products(chunk, first, weights)))
        ahead = min(inputs // width - 1, len(chunks))  # weights of one row ahead, no more
        lines = [line for loads, _ in steps[:ahead] for line in loads]
        for i, (_, products) in enumerate(steps):
            loads = [line for loads, _ in steps[i + ahead :][:1] for line in loads]
            early, last = products[:-LANES], products[-LANES:]  # none right before the next step
            lines += [*interleave(early, loads), *last]
        return lines

    def _products(self, chunk: range, first: int, weights: range) -> list[str]:
        """All uses of some columns, in registers from ``first``; a sum's FMLAs stand apart."""
        return [
            f"fmla {{s{p}}}.4s, v{first + at - chunk[0]}.4s, v{weights[tap]}.4s"
            for tap in range(self.kernel_width)
            for p, taps in enumerate(self.taps)
            if tap in taps and (at := self.column(p, tap)) in chunk
        ]


def early_inputs(stride: int) -> int:
    """Registers for input columns that are loaded ahead.

    Of three chunks of four columns, or two of eight: of a chunk with stride 2 only every other
    column meets the same kernel column, and a sum's FMLAs must not wait for each other.
    """
    return 12 if stride == 1 else 16


def _chunks(columns: range, size: int) -> list[range]:
    return [columns[i : i + size] for i in range(0, len(columns), size)]


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
            self.x[tile.image, plane + (row * spec.in_width + column) * LANES],
            self.weight[w_at],
            tile.sums,
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
            early=getattr(self.knobs, "early", False),
        )


@dataclass(frozen=True)
class NeonDepthwiseKnobs(DepthwiseKnobs):
    """early: load ahead, for cores that issue in program order."""

    early: bool = False


@dataclass(frozen=True)
class _Depthwise:
    """Tile width by counted instructions."""

    assembly: bool
    name: str = "depthwise"
    knobs_class: type = NeonDepthwiseKnobs

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, ConvSpec) and spec.kind == "depthwise"

    @native_bounds()
    def build(self, spec: ConvSpec, knobs: DepthwiseKnobs) -> tirx.PrimFunc:
        return template.build(spec, knobs, NeonNest if self.assembly else Nest)

    def pack_weight(
        self, spec: ConvSpec, knobs: DepthwiseKnobs, weight: np.ndarray, argument: int = 1
    ) -> np.ndarray:
        return template.pack_weight(spec, knobs, weight)

    def widths(self, spec: ConvSpec, target: TargetSpec) -> range:
        """Tile widths that fit the registers, loading ahead or not."""
        inputs = early_inputs(spec.stride[1]) if target.in_order else INPUTS
        free = target.vector_registers - inputs - 2 * spec.kernel[1]
        if not self.assembly:
            # LLVM's ARM back-end takes minutes for 5x5 from four pixels on
            free = {1: 8, 3: 8, 5: 2}.get(spec.kernel[1], 1)
        return range(1, max(2, min(free, 16, spec.out_width) + 1))

    def analytic(self, spec: ConvSpec, target: TargetSpec) -> NeonDepthwiseKnobs:
        pixels = min(self.widths(spec, target), key=lambda p: (self.instructions(spec, p), p))
        early = self.assembly and target.in_order
        return NeonDepthwiseKnobs(pixels, rows_per_item(spec, target), early)

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

    def space(self, spec: ConvSpec, target: TargetSpec) -> Iterable[NeonDepthwiseKnobs]:
        rows = sorted({0, rows_per_item(spec, target)})
        orders = (False, True) if self.assembly and target.in_order else (False,)
        return [
            NeonDepthwiseKnobs(*knobs) for knobs in product(self.widths(spec, target), rows, orders)
        ]


def rows_per_item(spec: ConvSpec, target: TargetSpec) -> int:
    """Rows per parallel item: four items for each core; 0 where threads do not pay."""
    if not worth_threads(spec, target):
        return 0
    blocks = spec.batch * -(-spec.out_channels // spec.lanes)
    chunks = max(1, -(-4 * target.cores // blocks))
    return max(1, spec.out_height // chunks)


DEPTHWISE: Any = _Depthwise(assembly=True)
DEPTHWISE_32: Any = _Depthwise(assembly=False)
