"""Knobs of the matrix product (see `gemm`) and its sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .ir import LANES, ceil_div


@dataclass(frozen=True)
class GemmKnobs:
    """Knobs of the template, see the module's text. ``depth`` is a multiple of ``4 * split``."""

    tile_pixels: int
    tile_channels: int
    thread_pixels: int
    thread_channels: int
    depth: int
    split: int = 1

    @property
    def pixel_threads(self) -> int:
        return self.tile_pixels // self.thread_pixels

    @property
    def channel_threads(self) -> int:
        return self.tile_channels // self.thread_channels

    @property
    def group(self) -> int:
        """Threads that share one part of the reduction."""
        return self.pixel_threads * self.channel_threads

    @property
    def threads(self) -> int:
        return self.group * self.split

    @property
    def staged(self) -> tuple[int, int]:
        """Float4 of the two operands that one thread carries per step."""
        blocks = self.depth // LANES
        return (
            ceil_div(blocks * self.tile_pixels, self.threads),
            ceil_div(blocks * self.tile_channels, self.threads),
        )

    @property
    def x_floats(self) -> int:
        """Of the left operand in one half of shared memory; the weights follow."""
        return self.depth * self.tile_pixels

    @property
    def halves(self) -> tuple[int, int]:
        """Floats of the halves of shared memory; the first serves the split sums, too."""
        stage = self.depth * (self.tile_pixels + self.tile_channels)
        sums = self.split * self.tile_pixels * self.tile_channels if self.split > 1 else 0
        return max(stage, sums), stage

    @property
    def shared_floats(self) -> int:
        return sum(self.halves)

    @property
    def registers(self) -> int:
        """An estimate, for the choice of knobs."""
        sums = self.thread_pixels * (self.thread_channels + LANES) + self.thread_channels
        return sums + LANES * sum(self.staged) + 30


class Tile(Protocol):
    """What all knobs of products tell: the outputs of a block."""

    @property
    def tile_pixels(self) -> int: ...

    @property
    def tile_channels(self) -> int: ...


@dataclass(frozen=True)
class Problem:
    """The product's sizes: outputs of ``images`` x ``pixels`` x ``channels``."""

    images: int
    pixels: int
    channels: int
    steps: int  # of the reduction, in fours
    rows: bool  # the output is [pixel][channel]

    @property
    def all_pixels(self) -> int:
        return self.images * self.pixels

    def tiles(self, knobs: Tile) -> tuple[int, int]:
        return (
            ceil_div(self.all_pixels, knobs.tile_pixels),
            ceil_div(self.channels, knobs.tile_channels),
        )

    def stages(self, knobs: GemmKnobs) -> int:
        return ceil_div(self.steps * LANES, knobs.depth)
