"""What the direct convolution computes and how it is cut; `convolution` has the loop nest."""

from __future__ import annotations

from dataclasses import dataclass

from ..spec import ConvSpec, DenseSpec, channel_blocks
from .tiling import ColumnRun, RowGroup, column_runs, row_groups


@dataclass(frozen=True)
class ConvKnobs:
    """Knobs of the template.

    pixels: output pixels of the register tile.
    vectors: vectors of output channels of the register tile.
    unroll: input channels per iteration of the innermost loop.
    row_tiles: tiles per pseudo-row of a pointwise convolution (0: all in one row).
    order: outer loop, ``channels`` (a weight panel stays in cache while the pixels pass) or
        ``pixels`` (a row of pixels stays in cache while the panels pass).
    parallel: spread rows x groups over the threads; serial pays for small operators.
    prefetch: while one weight panel is used, bring the next into L2.
    depth: blocks of input channels per pass over the pixels (0: all in one). Several passes keep
        a part of a large kernel's panel in cache for all pixels; the sums rest in the output.
    """

    pixels: int
    vectors: int
    unroll: int = 1
    row_tiles: int = 0
    order: str = "channels"
    parallel: bool = False
    prefetch: bool = False
    depth: int = 0


@dataclass(frozen=True)
class Problem:
    """A ConvSpec or DenseSpec reduced to what the loop nest needs (element strides, no layouts)."""

    batch: int
    in_blocks: tuple[int, ...]  # widths
    out_blocks: tuple[int, ...]
    in_pixels: int  # per image
    out_pixels: int
    in_row: int  # pixels from one input row to the next
    out_row: int
    rows: tuple[RowGroup, ...]
    columns: tuple[tuple[ColumnRun, ...], ...]  # per row group
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    plain: bool = False  # dense: pixels are images, elements are in [pixel][channel] order

    @property
    def in_channels(self) -> int:
        return sum(self.in_blocks)

    @property
    def out_channels(self) -> int:
        return sum(self.out_blocks)

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]


def _flat(pixels: int, tile: int, row_tiles: int) -> tuple[int, list[RowGroup], list[list]]:
    """Cut ``pixels`` into pseudo-rows of ``row_tiles`` tiles: row length, groups, columns."""
    plain = {"kernel": 1, "stride": 1, "padding": 0, "dilation": 1}
    # rows a little shorter that divide the tiles evenly save the code of a shorter last row
    if pixels % tile == 0:
        even = max((n for n in range(1, row_tiles + 1) if pixels // tile % n == 0), default=0)
        row_tiles = even if 2 * even >= row_tiles else row_tiles
    row = min(pixels, row_tiles * tile) if row_tiles else pixels
    full, rest = divmod(pixels, row)
    groups, columns = [RowGroup(0, full, (0,))], [column_runs(row, tile, size=row, **plain)]
    if rest:
        groups.append(RowGroup(full, full + 1, (0,)))
        columns.append(column_runs(rest, tile, size=rest, **plain))
    return row, groups, columns


def problem_of(spec: ConvSpec | DenseSpec, knobs: ConvKnobs) -> Problem:
    if isinstance(spec, DenseSpec):
        row, groups, columns = _flat(spec.batch, knobs.pixels, knobs.row_tiles)
        return Problem(
            batch=1,
            in_blocks=tuple(channel_blocks(spec.in_features, spec.lanes)),
            out_blocks=tuple(channel_blocks(spec.out_features, spec.lanes)),
            in_pixels=spec.batch,
            out_pixels=spec.batch,
            in_row=row,
            out_row=row,
            rows=tuple(groups),
            columns=tuple(map(tuple, columns)),
            kernel=(1, 1),
            stride=(1, 1),
            padding=(0, 0),
            dilation=(1, 1),
            plain=True,
        )
    in_lanes = spec.lanes if spec.input_layout == "blocked" else 1  # NCHW: blocks of one channel
    in_row, out_row = spec.in_width, spec.out_width
    if spec.kind == "pointwise":
        in_row, groups, columns = _flat(
            spec.in_height * spec.in_width, knobs.pixels, knobs.row_tiles
        )
        out_row = in_row
    else:
        axes = [
            {
                "size": size,
                "kernel": spec.kernel[axis],
                "stride": spec.stride[axis],
                "padding": spec.padding[axis],
                "dilation": spec.dilation[axis],
            }
            for axis, size in enumerate((spec.in_height, spec.in_width))
        ]
        groups = row_groups(spec.out_height, **axes[0])
        columns = [column_runs(spec.out_width, knobs.pixels, **axes[1])] * len(groups)
    return Problem(
        batch=spec.batch,
        in_blocks=tuple(channel_blocks(spec.in_channels, in_lanes)),
        out_blocks=tuple(channel_blocks(spec.out_channels, spec.lanes)),
        in_pixels=spec.in_height * spec.in_width,
        out_pixels=spec.out_height * spec.out_width,
        in_row=in_row,
        out_row=out_row,
        rows=tuple(groups),
        columns=tuple(map(tuple, columns)),
        kernel=spec.kernel,
        stride=spec.stride,
        padding=spec.padding[:2],
        dilation=spec.dilation,
    )
