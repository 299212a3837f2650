"""How output rows and columns fall into tiles whose code is the same.

Convolution with padding needs other code at the edges. Instead of padding the input or testing
each tap at run time, rows and columns are grouped by *which taps are inside*, and each group gets
code of its own, with the taps outside left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class RowGroup:
    """Consecutive output rows ``start <= row < stop`` with the same valid kernel rows."""

    start: int
    stop: int
    taps: tuple[int, ...]  # kernel rows inside the input


@dataclass(frozen=True)
class ColumnRun:
    """``count`` tiles of ``pixels`` output columns from ``start``, with the same valid taps."""

    start: int
    count: int
    pixels: int
    taps: tuple[tuple[int, ...], ...]  # per pixel of the tile: kernel columns inside the input


def valid_taps(
    out: int, *, size: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[int, ...]:
    """Kernel positions whose input coordinate ``out*stride - padding + k*dilation`` is inside."""
    origin = out * stride - padding
    return tuple(k for k in range(kernel) if 0 <= origin + k * dilation < size)


def row_groups(
    out_size: int, *, size: int, kernel: int, stride: int, padding: int, dilation: int
) -> list[RowGroup]:
    """Output rows grouped by their valid kernel rows, in order."""

    def taps_of(row: int) -> tuple[int, ...]:
        return valid_taps(
            row, size=size, kernel=kernel, stride=stride, padding=padding, dilation=dilation
        )

    groups = []
    for taps, rows in groupby(range(out_size), key=taps_of):
        members = list(rows)
        groups.append(RowGroup(members[0], members[-1] + 1, taps))
    return groups


def column_runs(
    out_size: int,
    pixels: int,
    *,
    size: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
) -> list[ColumnRun]:
    """Output columns cut into tiles of ``pixels`` (the last may be narrower), equal ones joined."""
    tiles = []
    for start in range(0, out_size, pixels):
        width = min(pixels, out_size - start)
        taps = tuple(
            valid_taps(
                start + p,
                size=size,
                kernel=kernel,
                stride=stride,
                padding=padding,
                dilation=dilation,
            )
            for p in range(width)
        )
        tiles.append((start, width, taps))
    runs = []
    for (width, taps), members in groupby(tiles, key=lambda tile: tile[1:]):
        starts = [tile[0] for tile in members]
        runs.append(ColumnRun(starts[0], len(starts), width, taps))
    return runs
