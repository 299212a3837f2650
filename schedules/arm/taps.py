"""What the tiles of one output row share: the input columns that their taps use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RowTile:
    """Neighbouring output pixels of a row.

    ``taps`` are the valid kernel columns per pixel; input columns count from the first that is
    used, which is where the pointer starts.
    """

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

    @property
    def label(self) -> str:
        """The fields as a part of a function's name."""
        inside = "_".join("".join(map(str, taps)) or "x" for taps in self.taps)
        return f"{self.stride}_{self.dilation}_{self.row_bytes}_{inside}"
