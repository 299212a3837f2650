"""Direct convolution on blocked activations: pointwise, stem, general convolution and dense.

Idea
----
A register tile of ``pixels`` output pixels x ``vectors`` vectors of output channels is computed
over all input channels and taps without touching memory for the sums. Per input value: one
broadcast load, reused by ``vectors`` FMAs; per weight vector: one load, reused by ``pixels`` FMAs.
Register budget: ``pixels * vectors`` sums + ``vectors`` weights + 1 broadcast.

Weights are packed at compile time into panels, one per group of ``vectors`` channel vectors, in
exactly the order of reading: ``[input block][kernel row][kernel column][lane][group width]``.

A pointwise convolution is a single row of ``H*W`` pixels cut into pseudo-rows of ``row_tiles``
tiles, so that one loop nest serves all kinds; a dense layer is one whose pixels are the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..emit import LINE, Expr, Registers, activate, loop, prefetch, prim_func, splat, switch, vector
from ..spec import FLOAT_BYTES, ConvSpec, DenseSpec
from .problem import ConvKnobs, Problem, problem_of
from .tiling import ColumnRun, RowGroup


def pack_weight(
    spec: ConvSpec | DenseSpec, knobs: ConvKnobs, weight: np.ndarray, argument: int = 1
) -> np.ndarray:
    """Weight ``(O, I, KH, KW)`` or ``(O, I)`` -> 1-D array of panels, see the module's text."""
    problem = problem_of(spec, knobs)
    taps = weight.reshape(problem.out_channels, problem.in_channels, problem.taps)
    panels = []
    group = knobs.vectors * problem.out_blocks[0]
    for start in range(0, problem.out_channels, group):
        panel = taps[start : start + group]
        channel = 0
        for width in problem.in_blocks:
            block = panel[:, channel : channel + width]  # (group, width, taps)
            panels.append(np.ascontiguousarray(block.transpose(2, 1, 0)).reshape(-1))
            channel += width
    return np.concatenate(panels)


def build(
    spec: ConvSpec | DenseSpec, knobs: ConvKnobs, nest: type[Nest] | None = None
) -> tirx.PrimFunc:
    """The PrimFunc ``(input, packed weight, bias[, residual], output)``.

    ``nest`` is a variant of the loop nest, e.g. with another innermost loop.
    """
    problem = problem_of(spec, knobs)
    residual = isinstance(spec, ConvSpec) and spec.residual
    weight_size = problem.out_channels * problem.in_channels * problem.taps
    out_shape: tuple[int, ...] = (problem.batch, problem.out_channels * problem.out_pixels)
    in_shape: tuple[int, ...] = (problem.batch, problem.in_channels * problem.in_pixels)
    flat_in = in_shape
    if isinstance(spec, DenseSpec):
        in_shape = (spec.batch, spec.in_features)
        out_shape = (spec.batch, spec.out_features)
        flat_in = (1, spec.batch * spec.in_features)
    elif spec.input_layout == "nchw":
        in_shape = (spec.batch, spec.in_channels, spec.in_height, spec.in_width)
    buffers = [
        ("x", in_shape),
        ("weight", (weight_size,)),
        ("bias", (problem.out_channels,)),
        *([("residual", out_shape)] if residual else []),
        ("y", out_shape),
    ]

    def body(x, weight, bias, *rest):  # type: ignore[no-untyped-def]
        y = rest[-1]
        if in_shape != flat_in:
            x = T.decl_buffer(flat_in, "float32", data=x.data)
        if isinstance(spec, DenseSpec):
            y = T.decl_buffer((1, spec.batch * spec.out_features), "float32", data=y.data)
        emitter = nest or Nest
        emitter(problem, spec, knobs, x, weight, bias, rest[0] if residual else None, y).emit()

    return prim_func(buffers, body)


@dataclass(frozen=True)
class Blocks:
    """The blocks of input channels of one pass: the first, and all their widths."""

    first: Expr
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Tile:
    """One register tile: where it is, and its sums by (pixel, vector)."""

    image: Expr
    row: Expr
    column: Expr
    run: ColumnRun
    kernel_rows: tuple[int, ...]
    channel: Expr  # first output channel
    widths: list[int]  # of the vectors of output channels
    starts: list[int]  # their first channels within the group
    panel: Expr  # where the group's weights start
    sums: Registers
    blocks: Blocks | None = None  # of one of several passes; None: all input channels at once

    @property
    def width(self) -> int:
        return sum(self.widths)


@dataclass(frozen=True)
class Nest:
    """Emits the loop nest of one convolution; the methods go from the outer loop to the inner."""

    problem: Problem
    spec: ConvSpec | DenseSpec
    knobs: ConvKnobs
    x: Expr
    weight: Expr
    bias: Expr
    residual: Expr | None
    y: Expr
    # of a strip of a larger output, whose input is the strip alone: the strip's first output pixel
    strip: Expr | None = None
    # called before each block of input channels of a tile: (group, first pixel of the tile, block)
    alongside: Callable[[Expr, Expr, Expr], None] | None = None

    def emit(self) -> None:
        """The whole operator, over the threads if the knobs say so."""
        problem = self.problem
        outer, inner, item = self._items()
        if self.knobs.parallel:
            loop(
                problem.batch * outer * inner,
                lambda k: item(k // (outer * inner), k // inner % outer, k % inner),
                parallel=True,
            )
        else:
            loop(problem.batch, self.emit_image)

    def emit_image(self, image: Expr) -> None:
        """One image, serially."""
        outer, inner, item = self._items()
        loop(outer, lambda i: loop(inner, lambda j: item(image, i, j)))

    def _items(self) -> tuple[int, int, Callable[[Expr, Expr, Expr], None]]:
        """The two loops around a row of tiles, rows and groups in the order of the knobs."""
        problem, knobs = self.problem, self.knobs
        blocks = list(problem.out_blocks)
        groups = [blocks[i : i + knobs.vectors] for i in range(0, len(blocks), knobs.vectors)]
        n_rows = problem.rows[-1].stop

        def by_width(group: Expr, work: Callable[[list[int]], None]) -> None:
            # only the last group can be narrower: two bodies at most
            full = len(groups) if groups[-1] == groups[0] else len(groups) - 1
            cases = [(full, lambda: work(groups[0]))] if full else []
            if full < len(groups):
                cases.append((len(groups), lambda: work(groups[-1])))
            switch(group, cases)

        if knobs.depth:

            def passes(image: Expr, group: Expr, _: Expr) -> None:
                by_width(group, lambda widths: self.passes(image, group, widths))

            return len(groups), 1, passes

        channels_outer = knobs.order == "channels"
        outer, inner = (len(groups), n_rows) if channels_outer else (n_rows, len(groups))

        def item(image: Expr, i: Expr, j: Expr) -> None:
            row, group = (j, i) if channels_outer else (i, j)
            by_width(group, lambda widths: self.row(image, row, group, widths))

        return outer, inner, item

    def passes(self, image: Expr, group: Expr, widths: list[int]) -> None:
        """One group of output channels, `depth` blocks of input channels at a time."""
        problem, depth = self.problem, self.knobs.depth
        blocks = problem.in_blocks
        full = sum(1 for width in blocks if width == blocks[0]) // depth
        n_rows = problem.rows[-1].stop

        def all_rows(first: Expr, part: tuple[int, ...]) -> None:
            loop(n_rows, lambda r: self.row(image, r, group, widths, Blocks(first, part)))

        def each_vector(work: Callable[[list[Expr], Expr, int], None]) -> None:
            def pixel(p: Expr) -> None:
                for v, width in enumerate(widths):
                    channel = (group * self.knobs.vectors + v) * problem.out_blocks[0]
                    where = [image, vector(channel * problem.out_pixels + p * width, width)]
                    work(where, channel, width)

            loop(problem.out_pixels, pixel)

        def start(where: list[Expr], channel: Expr, width: int) -> None:
            T.buffer_store(self.y, self.bias[vector(channel, width)], where)

        def finish(where: list[Expr], channel: Expr, width: int) -> None:
            T.buffer_store(self.y, self.finished(self.y[tuple(where)], where, width), where)

        each_vector(start)
        loop(full, lambda i: all_rows(i * depth, blocks[:depth]))
        if rest := blocks[full * depth :]:
            all_rows(full * depth, rest)
        each_vector(finish)

    def row(
        self,
        image: Expr,
        row: Expr,
        group: Expr,
        widths: list[int],
        blocks: Blocks | None = None,
    ) -> None:
        """All tiles of one output row for one group of output channels."""
        lanes = self.problem.out_blocks[0]
        group_width = self.knobs.vectors * lanes
        panel_rows = self.problem.in_channels * self.problem.taps
        cases: list[tuple[int, Callable[[], None]]] = []
        for rows, runs in zip(self.problem.rows, self.problem.columns, strict=True):

            def tiles(rows: RowGroup = rows, runs: tuple[ColumnRun, ...] = runs) -> None:
                for run in runs:

                    def tile(t: Expr, run: ColumnRun = run) -> None:
                        column = run.start + t * run.pixels
                        self.tile(
                            Tile(
                                image=image,
                                row=row,
                                column=column,
                                run=run,
                                kernel_rows=rows.taps,
                                channel=group * group_width,
                                widths=widths,
                                starts=[lanes * v for v in range(len(widths))],
                                panel=group * (group_width * panel_rows),
                                sums=Registers(
                                    {
                                        (p, v): w
                                        for p in range(run.pixels)
                                        for v, w in enumerate(widths)
                                    }
                                ),
                                blocks=blocks,
                            )
                        )

                    loop(run.count, tile)

            cases.append((rows.stop, tiles))
        switch(row, cases)

    def tile(self, tile: Tile) -> None:
        """One register tile: sums start from the bias, end through residual and activation.

        In one of several passes they start from the output and end there.
        """
        problem = self.problem
        out_pixel = tile.row * problem.out_row + tile.column
        if self.strip is not None:
            out_pixel += self.strip

        def where(p: int, v: int) -> list[Expr]:
            channel, width = tile.channel + tile.starts[v], tile.widths[v]
            if problem.plain:
                offset = (out_pixel + p) * problem.out_channels + channel
            else:
                offset = channel * problem.out_pixels + (out_pixel + p) * width
            return [tile.image, vector(offset, width)]

        for p, v in tile.sums:
            if tile.blocks is None:
                tile.sums[p, v] = self.bias[vector(tile.channel + tile.starts[v], tile.widths[v])]
            else:
                tile.sums[p, v] = self.y[tuple(where(p, v))]
        self.accumulate(tile)
        for p, v in tile.sums:
            value = tile.sums[p, v]
            if tile.blocks is None:
                value = self.finished(value, where(p, v), tile.widths[v])
            T.buffer_store(self.y, value, where(p, v))

    def finished(self, value: Expr, where: list[Expr], width: int) -> Expr:
        """A sum with residual and activation."""
        if self.residual is not None:
            value = value + self.residual[tuple(where)]
        return activate(value, self.spec.activation, width)

    def accumulate(self, tile: Tile) -> None:
        """Add the input channels of a tile's pass, or all, and all taps to its sums."""
        first, blocks = 0, self.problem.in_blocks
        if tile.blocks is not None:
            first, blocks = tile.blocks.first, tile.blocks.widths
        full = sum(1 for width in blocks if width == blocks[0])
        loop(full, lambda b: self.in_block(tile, first + b, blocks[0]))
        for b in range(full, len(blocks)):
            self.in_block(tile, first + b, blocks[b])

    def in_block(self, tile: Tile, block: Expr, width: int) -> None:
        """Add one block of input channels to a tile, kernel row by kernel row."""
        if self.knobs.prefetch:
            self.prefetch_next_panel(tile, block)
        if self.alongside is not None:
            group = tile.channel // (self.knobs.vectors * self.problem.out_blocks[0])
            self.alongside(group, tile.row * self.problem.out_row + tile.column, block)
        if tile.kernel_rows:  # a row of padding alone has none
            first = tile.kernel_rows[0]
            loop(len(tile.kernel_rows), lambda k: self.kernel_row(tile, block, width, first + k))

    def kernel_row(self, tile: Tile, block: Expr, width: int, kh: Expr) -> None:
        """Add one block of input channels for one kernel row: holds the innermost loop."""
        problem, knobs = self.problem, self.knobs
        first = block * problem.in_blocks[0]
        in_row = tile.row * problem.stride[0] - problem.padding[0] + kh * problem.dilation[0]
        # only the tile that does most of the work is worth unrolled code
        whole = (tile.run.pixels, len(tile.widths)) == (knobs.pixels, knobs.vectors)
        unroll = knobs.unroll if whole and width % knobs.unroll == 0 else 1
        for kw in range(problem.kernel[1]):
            pixels = [p for p, taps in enumerate(tile.run.taps) if kw in taps]
            if not pixels:
                continue
            in_column = tile.column * problem.stride[1] - problem.padding[1]
            pixel = in_row * problem.in_row + in_column + kw * problem.dilation[1]
            tap = (first * problem.taps + (kh * problem.kernel[1] + kw) * width) * tile.width

            def in_channels(
                step: Expr, pixels: list[int] = pixels, pixel: Expr = pixel, tap: Expr = tap
            ) -> None:
                for lane in (step * unroll + u for u in range(unroll)):
                    for p in pixels:
                        if problem.plain:
                            x_at = (pixel + p) * problem.in_channels + first + lane
                        else:
                            x_at = first * problem.in_pixels + lane
                            x_at += (pixel + p * problem.stride[1]) * width
                        x = self.x[tile.image if self.strip is None else 0, x_at]
                        for v, lanes in enumerate(tile.widths):
                            w_at = tile.panel + tap + lane * tile.width + tile.starts[v]
                            w = self.weight[vector(w_at, lanes)]
                            tile.sums[p, v] = tile.sums[p, v] + splat(x, lanes) * w

            loop(width // unroll, in_channels)

    def prefetch_next_panel(self, tile: Tile, block: Expr) -> None:
        """This tile's share of the next panel, or of the next pass, spread over its blocks."""
        problem = self.problem
        per_channel = problem.in_channels * problem.taps
        # the tiles that pass over this panel before the next: of one row, or of all
        row_alone = self.knobs.order == "pixels"
        tiles = max(1, (problem.out_row if row_alone else problem.out_pixels) // tile.run.pixels)
        start = tile.panel + per_channel * tile.width
        blocks = problem.in_blocks
        if tile.blocks is not None:
            blocks = tile.blocks.widths
            per_channel = sum(blocks) * problem.taps
            behind = tile.blocks.first * problem.in_blocks[0] * problem.taps + per_channel
            start = tile.panel + behind * tile.width
            block -= tile.blocks.first
        panel_lines = -(-per_channel * tile.width // LINE)
        tile_lines = -(-panel_lines // tiles)
        block_lines = -(-tile_lines // len(blocks))
        first = tile.column if row_alone else tile.row * problem.out_row + tile.column
        number = first // tile.run.pixels
        last = problem.out_channels * problem.in_channels * problem.taps - 1
        for i in range(block_lines):
            at = start + (number * tile_lines + block * block_lines + i) * LINE
            prefetch(self.weight, T.min(at, last))


def working_set(spec: ConvSpec | DenseSpec, knobs: ConvKnobs) -> int:
    """Bytes that one weight panel takes."""
    problem = problem_of(spec, knobs)
    return FLOAT_BYTES * problem.in_channels * problem.taps * knobs.vectors * problem.out_blocks[0]
