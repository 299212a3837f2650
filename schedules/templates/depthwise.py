"""Depthwise convolution on blocked activations.

Idea
----
One block of channels at a time: its weights stay in registers, and a tile of ``pixels`` outputs of
one row is summed over the taps, each input vector loaded once and used by every output it feeds.
Rows and columns at the edges have code of their own without the taps that fall outside, so there
is no padded copy of the input and no test inside the loops.
Register budget: ``pixels`` sums + kernel taps (3x3: 9; 5x5 reads weights from L1) + 1 input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..emit import Expr, Registers, activate, loop, prim_func, switch, vector
from ..spec import ConvSpec, channel_blocks
from .tiling import ColumnRun, RowGroup, column_runs, row_groups


@dataclass(frozen=True)
class DepthwiseKnobs:
    """Knobs of the template.

    pixels: output pixels of the register tile.
    parallel_rows: rows per parallel work item; 0 runs serially.
    """

    pixels: int
    parallel_rows: int = 0


def pack_weight(
    spec: ConvSpec, knobs: DepthwiseKnobs, weight: np.ndarray, argument: int = 1
) -> np.ndarray:
    """Weight ``(C, 1, KH, KW)`` -> 1-D: per channel block ``[KH][KW][block width]``."""
    taps = weight.reshape(spec.out_channels, -1)
    blocks, start = [], 0
    for width in channel_blocks(spec.out_channels, spec.lanes):
        blocks.append(np.ascontiguousarray(taps[start : start + width].T).reshape(-1))
        start += width
    return np.concatenate(blocks)


def build(spec: ConvSpec, knobs: DepthwiseKnobs, nest: type[Nest] | None = None) -> tirx.PrimFunc:
    """The PrimFunc ``(input, packed weight, bias[, residual], output)``.

    ``nest`` is a variant of the loop nest, e.g. with another innermost loop.
    """
    channels = spec.out_channels
    out_shape = (spec.batch, channels * spec.out_height * spec.out_width)
    buffers = [
        ("x", (spec.batch, channels * spec.in_height * spec.in_width)),
        ("weight", (channels * spec.kernel[0] * spec.kernel[1],)),
        ("bias", (channels,)),
        *([("residual", out_shape)] if spec.residual else []),
        ("y", out_shape),
    ]

    def body(x, weight, bias, *rest):  # type: ignore[no-untyped-def]
        emitter = nest or Nest
        emitter(spec, knobs, x, weight, bias, rest[0] if spec.residual else None, rest[-1]).emit()

    return prim_func(buffers, body)


@dataclass(frozen=True)
class Tile:
    """``run.pixels`` outputs of one row and channel block, and their sums by pixel."""

    image: Expr
    channel: Expr  # first
    width: int  # of the channel block
    row: Expr
    rows: RowGroup
    column: Expr
    run: ColumnRun
    sums: Registers


@dataclass(frozen=True)
class Nest:
    """Emits the loop nest of one depthwise convolution, from the outer loop to the inner."""

    spec: ConvSpec
    knobs: DepthwiseKnobs
    x: Expr
    weight: Expr
    bias: Expr
    residual: Expr | None
    y: Expr
    # if y is a strip of the output alone: how many rows it has, and the first one
    strip_rows: int | None = None
    strip_start: Expr = 0

    def _axis(self, axis: int) -> dict[str, int]:
        spec = self.spec
        return {
            "size": (spec.in_height, spec.in_width)[axis],
            "kernel": spec.kernel[axis],
            "stride": spec.stride[axis],
            "padding": spec.padding[axis],
            "dilation": spec.dilation[axis],
        }

    def emit(self) -> None:
        spec, rows_per_item = self.spec, self.knobs.parallel_rows
        widths = channel_blocks(spec.out_channels, spec.lanes)
        rows = row_groups(spec.out_height, **self._axis(0))
        columns = column_runs(spec.out_width, self.knobs.pixels, **self._axis(1))

        def serial(image: Expr, block: Expr) -> None:
            def all_rows(width: int) -> None:
                for group in rows:

                    def row(r: Expr, group: RowGroup = group) -> None:
                        self.row(image, block, width, group.start + r, group, columns)

                    loop(group.stop - group.start, row)

            self.of_block(block, all_rows)

        if not rows_per_item:
            loop(spec.batch, lambda n: loop(len(widths), lambda b: serial(n, b)))
            return
        chunks = -(-spec.out_height // rows_per_item)

        def item(k: Expr) -> None:
            image, block = k // (len(widths) * chunks), k // chunks % len(widths)
            self.rows_of(image, block, k % chunks * rows_per_item, rows_per_item)

        loop(spec.batch * len(widths) * chunks, item, parallel=True)

    def of_block(self, block: Expr, work: Callable[[int], None]) -> None:
        """``work(width)`` with the width of a block of channels: at most two bodies."""
        widths = channel_blocks(self.spec.out_channels, self.spec.lanes)
        full = sum(1 for width in widths if width == widths[0])
        cases = [(full, lambda: work(widths[0]))]
        if full < len(widths):
            cases.append((len(widths), lambda: work(widths[-1])))
        switch(block, cases)

    def rows_of(self, image: Expr, block: Expr, start: Expr, count: int) -> None:
        """``count`` rows from ``start`` of one block of channels; rows beyond the last are none."""
        spec = self.spec
        groups = row_groups(spec.out_height, **self._axis(0))
        columns = column_runs(spec.out_width, self.knobs.pixels, **self._axis(1))

        def some_rows(width: int) -> None:
            def one_row(r: Expr) -> None:
                cases: list[tuple[int, Callable[[], None]]] = [
                    (group.stop, partial(self.row, image, block, width, start + r, group, columns))
                    for group in groups
                ]
                if spec.out_height % count:
                    cases.append((spec.out_height + count, lambda: None))
                switch(start + r, cases)

            loop(count, one_row)

        self.of_block(block, some_rows)

    def row(
        self,
        image: Expr,
        block: Expr,
        width: int,
        row: Expr,
        rows: RowGroup,
        columns: list[ColumnRun],
    ) -> None:
        for run in columns:

            def tile(t: Expr, run: ColumnRun = run) -> None:
                self.tile(image, block, width, row, rows, run, run.start + t * run.pixels)

            loop(run.count, tile)

    def tile(
        self,
        image: Expr,
        block: Expr,
        width: int,
        row: Expr,
        rows: RowGroup,
        run: ColumnRun,
        column: Expr,
    ) -> None:
        """``run.pixels`` outputs of one channel block."""
        spec = self.spec
        sums = Registers(dict.fromkeys(range(run.pixels), width))
        channel = block * spec.lanes
        for p in range(run.pixels):
            sums[p] = self.bias[vector(channel, width)]
        self.accumulate(Tile(image, channel, width, row, rows, column, run, sums))
        out_rows = self.strip_rows or spec.out_height
        out_image = 0 if self.strip_rows else image
        out_plane = channel * (out_rows * spec.out_width)
        for p in range(run.pixels):
            pixel = (row - self.strip_start) * spec.out_width + column + p
            where = [out_image, vector(out_plane + pixel * width, width)]
            value = sums[p]
            if self.residual is not None:
                value = value + self.residual[tuple(where)]
            T.buffer_store(self.y, activate(value, spec.activation, width), where)

    def accumulate(self, tile: Tile) -> None:
        """Add all taps to a tile's sums."""
        kernel_rows = tile.rows.taps
        if len(kernel_rows) == self.spec.kernel[0]:
            for kh in kernel_rows:
                self.kernel_row(tile, kh)
        elif kernel_rows:  # few rows are at an edge: a loop, to keep the code small
            loop(len(kernel_rows), lambda k: self.kernel_row(tile, kernel_rows[0] + k))

    def kernel_row(self, tile: Tile, kh: Expr) -> None:
        """Add the taps of one kernel row."""
        spec, width = self.spec, tile.width
        taps, kernel_width = spec.kernel[0] * spec.kernel[1], spec.kernel[1]
        in_row = tile.row * spec.stride[0] - spec.padding[0] + kh * spec.dilation[0]
        in_plane = tile.channel * (spec.in_height * spec.in_width)
        for kw in range(kernel_width):
            in_column = tile.column * spec.stride[1] - spec.padding[1] + kw * spec.dilation[1]
            at = tile.channel * taps + (kh * kernel_width + kw) * width
            w = self.weight[vector(at, width)]
            for p in range(tile.run.pixels):
                if kw not in tile.run.taps[p]:
                    continue
                pixel = in_row * spec.in_width + in_column + p * spec.stride[1]
                x = self.x[tile.image, vector(in_plane + pixel * width, width)]
                tile.sums[p] = tile.sums[p] + x * w
