"""Knobs of the matrix product on tensor cores (see `tensor_core`), and its predicted clocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

from ..spec import Precision
from .gemm_knobs import Problem
from .ir import LANES, WARP, ceil_div

if TYPE_CHECKING:
    from tvm_mobilenet.targets import GpuSpec

TILE = 16  # pixels, channels and steps of the reduction that one product of a warp covers
FOURS = TILE // LANES
PADDING = 2  # pixels between rows of split sums: eight lanes then write to 32 different banks

# What mma.sync reaches of the tensor cores' peak, which from sm_90 on takes other instructions.
MMA_SHARE = 0.6
L1_BYTES_PER_CLOCK, L2_BYTES_PER_CLOCK = 128, 32  # of a multiprocessor
SCHEDULERS = 4
EXPOSED = 0.1  # of each part: they do not overlap fully, and among equals the least work is best
# Clocks for the first loads and the epilogue; from a load to its value in L2.
START, LATENCY = 1200, 300
# Instructions of a load with its address and bounds; of a tap and four channels of a depthwise
# convolution in float16, which is converted first (counted in what NVRTC makes for sm_90).
LOAD_INSTRUCTIONS, TAP_INSTRUCTIONS = 4, 14
MOST_REGISTERS = 168  # of a thread, by estimate: no spills
SPILLING = (2, 2, 2)  # pixels, channels, depth that need more than by estimate, on sm_80
SHARED_BYTES = 48 * 1024  # static shared memory of a block


@dataclass(frozen=True)
class TensorKnobs:
    """Knobs of the template, see the module's text."""

    pixels: int  # tiles of a warp
    channels: int
    pixel_warps: int
    channel_warps: int
    depth: int  # tiles of the reduction in a stage
    split: int = 1

    @property
    def group(self) -> int:
        """Warps that share one part of the reduction."""
        return self.pixel_warps * self.channel_warps

    @property
    def threads(self) -> int:
        return WARP * self.group * self.split

    @property
    def tile_pixels(self) -> int:
        return TILE * self.pixels * self.pixel_warps

    @property
    def tile_channels(self) -> int:
        return TILE * self.channels * self.channel_warps

    @property
    def sums(self) -> int:
        """Of a thread."""
        return self.pixels * self.channels * TILE * TILE // WARP

    @property
    def shared_floats(self) -> int:
        """The split sums."""
        row = (self.tile_pixels + PADDING) * LANES
        return self.split * self.tile_channels // LANES * row if self.split > 1 else 0

    def stages(self, problem: Problem) -> int:
        """Of one warp."""
        return ceil_div(problem.steps, FOURS * self.depth * self.split)

    def steps(self, problem: Problem) -> int:
        """Tiles of the reduction, filled up to whole stages of all groups."""
        return self.stages(problem) * self.depth * self.split

    def registers(self, precision: Precision) -> int:
        """An estimate: sums, two stages of both operands, and some 40 for addresses and bounds."""
        words = 8 if precision == "tf32" else 4  # of a thread and tile
        return self.sums + 2 * self.depth * words * (self.pixels + self.channels) + 40


@lru_cache(maxsize=4)
def candidates(precision: Precision) -> tuple[TensorKnobs, ...]:
    """All knobs within a multiprocessor's limits."""
    return tuple(_candidates(precision))


def _candidates(precision: Precision) -> Iterator[TensorKnobs]:
    few = (1, 2, 4)
    for values in product(few, few, (1, 2, 4, 8), few, few, (1, 2, 4, 8)):
        knobs = TensorKnobs(*values)
        fits = 4 * knobs.shared_floats <= SHARED_BYTES
        fits = fits and knobs.registers(precision) <= MOST_REGISTERS
        fits = fits and (knobs.pixels, knobs.channels, knobs.depth) != SPILLING
        if fits and 2 * WARP <= knobs.threads <= 8 * WARP:
            yield knobs


def predicted_clocks(
    problem: Problem, knobs: TensorKnobs, gpu: GpuSpec, precision: Precision, taps: int = 0
) -> float:
    """Clocks of the busiest multiprocessor: the largest of tensor cores, issue, L1, L2 and waits.

    ``taps``: of the depthwise convolution that is computed on the way, 0 for none.
    """
    pixel_tiles, channel_tiles = problem.tiles(knobs)
    blocks = pixel_tiles * channel_tiles
    busiest = ceil_div(blocks, gpu.sms)
    resident = min(
        busiest,
        gpu.shared_kib_per_sm * 1024 // (4 * knobs.shared_floats + 1024),
        gpu.registers_per_sm // (knobs.registers(precision) * knobs.threads),
        gpu.threads_per_sm // knobs.threads,
    )
    # many blocks of an SM even out, few do not
    work = busiest if busiest <= 4 else blocks / gpu.sms + 0.5
    steps = knobs.steps(problem)
    warp_steps = work * knobs.group * steps
    tf32 = precision == "tf32"
    bytes_of_value = 4 if tf32 else 2
    bytes_of_tile = TILE * TILE * bytes_of_value
    rate = gpu.tf32_fma if tf32 else gpu.f16_fma
    tensor = warp_steps * knobs.pixels * knobs.channels * TILE**3 / (rate * MMA_SHARE)
    loads = 2 * knobs.pixels + (2 if tf32 else 1) * knobs.channels
    products = knobs.pixels * knobs.channels * (4 if tf32 else 2)
    rounding = 8 * knobs.pixels if tf32 else 0
    issue = warp_steps * (LOAD_INSTRUCTIONS * loads + products + rounding) / SCHEDULERS
    l1 = warp_steps * (knobs.pixels + knobs.channels) * bytes_of_tile / L1_BYTES_PER_CLOCK
    map_tiles = work * steps * knobs.pixels * knobs.pixel_warps
    weight_tiles = work * steps * knobs.channels * knobs.channel_warps
    l2 = (map_tiles + weight_tiles) * bytes_of_tile / L2_BYTES_PER_CLOCK
    waits = work / max(1, resident) * knobs.stages(problem) * LATENCY
    if knobs.split > 1:
        l1 += 2 * work * 4 * knobs.shared_floats / L1_BYTES_PER_CLOCK
    if taps:
        vectors = warp_steps * knobs.pixels * TILE * FOURS
        issue += vectors * taps * TAP_INSTRUCTIONS / (SCHEDULERS * WARP)
        # passes: of the map's four channels two in float16 and four in float32, of the weights one
        l1 += vectors / WARP * taps * (bytes_of_value + 1)
        # rows above and below come from L2 as well
        l2 += 2 * map_tiles * bytes_of_tile / L2_BYTES_PER_CLOCK
        waits *= 2
    parts = (tensor, issue, l1, l2, waits)  # of which the largest hides most of the others
    hidden = max(parts) + EXPOSED * sum(parts)
    return hidden + work / max(1, resident) * START + 20 * knobs.split
