"""Knobs of the matrix products, from the GPU's data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

from ..spec import ConvSpec, DenseSpec, SeparableSpec, Spec
from . import gemm as template
from .gemm import GemmKnobs, Problem
from .ir import LANES, WARP, ceil_div

if TYPE_CHECKING:
    from tvm_mobilenet.targets import GpuSpec, TargetSpec

# Bytes a clock that one multiprocessor gets from L2 while all of them ask.
L2_BYTES_PER_CLOCK = 32
# Clocks for the first loads, the epilogue and, per step of the reduction, a barrier.
START, BARRIER = 1200, 60
SHARED_BYTES = 48 * 1024  # static shared memory of a block


@lru_cache(maxsize=8)
def _candidates(gpu: GpuSpec) -> tuple[GemmKnobs, ...]:
    """All knobs within a multiprocessor's limits."""
    found = []
    for rows, columns, depth, split in product((1, 2, 4, 8), (4, 8), (16, 32, 64), (1, 2, 4, 8)):
        for pixels, channels in product((16, 32, 64, 128), (16, 32, 64, 128)):
            if pixels % rows or channels % columns or depth % (LANES * split):
                continue
            knobs = GemmKnobs(pixels, channels, rows, columns, depth, split)
            if knobs.group % WARP or not 64 <= knobs.threads <= 256:
                continue
            if 4 * knobs.shared_floats > SHARED_BYTES or knobs.registers > 128:
                continue
            found.append(knobs)
    return tuple(found)


def predicted_clocks(problem: Problem, knobs: GemmKnobs, gpu: GpuSpec) -> float:
    """Clocks of the busiest multiprocessor: the larger of arithmetic, shared memory and L2."""
    pixel_tiles, channel_tiles = problem.tiles(knobs)
    per_sm = pixel_tiles * channel_tiles / gpu.sms
    busiest = ceil_div(pixel_tiles * channel_tiles, gpu.sms)
    resident = min(
        busiest,
        gpu.shared_kib_per_sm * 1024 // (4 * knobs.shared_floats + 1024),
        gpu.registers_per_sm // (knobs.registers * knobs.threads),
        gpu.threads_per_sm // knobs.threads,
    )
    depth = problem.stages(knobs) * knobs.depth
    # many blocks of an SM even out, few do not
    work = busiest if busiest <= 4 else per_sm + 0.5
    multiplies = work * knobs.tile_pixels * knobs.tile_channels * depth
    fours = depth // LANES // knobs.split  # of one thread
    warps = knobs.threads / WARP
    per_four = LANES * knobs.thread_pixels * knobs.thread_channels
    loads = knobs.thread_pixels + knobs.thread_channels
    issue = multiplies / gpu.fp32_fma * (1 + 1.5 * loads / per_four)
    # a float4 load of a warp takes two passes where threads share addresses
    memory = 2 * work * warps * fours * loads
    traffic = 4 * work * depth * (knobs.tile_pixels + knobs.tile_channels) / L2_BYTES_PER_CLOCK
    # too few warps leave the schedulers waiting for shared memory
    hidden = min(1.0, resident * warps * per_four / (4 * WARP * 8))
    waits = work / max(1, resident) * (problem.stages(knobs) * BARRIER + START)
    return max(issue / max(0.25, hidden), memory, traffic) + waits + 20 * knobs.split


@dataclass(frozen=True)
class _Product:
    """Tile, steps and split by the predicted clocks of the busiest multiprocessor."""

    name: str
    kind: str
    knobs_class: type = GemmKnobs

    build = staticmethod(template.build)
    pack_weight = staticmethod(template.pack_weight)

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, ConvSpec | DenseSpec | SeparableSpec) and spec.kind == self.kind

    def analytic(self, spec: Any, target: TargetSpec) -> GemmKnobs:
        return min(self._choices(spec, target), key=lambda k: self.predicted(spec, k, target))

    def predicted(self, spec: Any, knobs: GemmKnobs, target: TargetSpec) -> float:
        """Clocks by which tuning orders candidates until it has measured some."""
        assert target.gpu is not None
        return predicted_clocks(template.problem_of(spec), knobs, target.gpu)

    def space(self, spec: Any, target: TargetSpec) -> Iterable[GemmKnobs]:
        best = self.predicted(spec, self.analytic(spec, target), target)
        return [
            knobs
            for knobs in self._choices(spec, target)
            if self.predicted(spec, knobs, target) <= 1.5 * best
        ]

    @staticmethod
    def _choices(spec: Any, target: TargetSpec) -> tuple[GemmKnobs, ...]:
        assert target.gpu is not None
        return _candidates(target.gpu)


POINTWISE: Any = _Product("cuda-pointwise", "pointwise")
STEM: Any = _Product("cuda-stem", "stem")
CONVOLUTION: Any = _Product("cuda-convolution", "conv")
DENSE: Any = _Product("cuda-dense", "dense")
