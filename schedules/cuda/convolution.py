"""Knobs of the matrix products, from the GPU's data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

from ..spec import ConvSpec, DenseSpec, SeparableSpec, Spec
from . import gemm as template
from .gemm_knobs import GemmKnobs, Problem
from .ir import LANES, WARP, ceil_div

if TYPE_CHECKING:
    from tvm_mobilenet.targets import GpuSpec, TargetSpec

# Bytes a clock that one multiprocessor gets from L2 while all of them ask.
L2_BYTES_PER_CLOCK = 32
# Clocks for the first loads, the epilogue and, per step of the reduction, a barrier.
START, BARRIER = 1200, 60
# Instructions a tap and float4: load, four FFMA, bounds and addresses; clocks from L2.
DEPTHWISE_INSTRUCTIONS, L2_LATENCY = 12, 250
# A scheduler needs this many FFMA of its warps under way, while the next operands come from shared
# memory.
SCHEDULERS, TO_HIDE = 4, 128
MOST_REGISTERS = 168  # of a thread, by estimate: no spills
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
            if 4 * knobs.shared_floats > SHARED_BYTES or knobs.registers > MOST_REGISTERS:
                continue
            found.append(knobs)
    return tuple(found)


def predicted_clocks(problem: Problem, knobs: GemmKnobs, gpu: GpuSpec, taps: int = 0) -> float:
    """Clocks of the busiest multiprocessor: the larger of arithmetic, shared memory and L2.

    ``taps``: of the depthwise convolution that is computed on the way, 0 for none.
    """
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
    hidden = min(1.0, resident * warps * per_four / (SCHEDULERS * TO_HIDE))
    waits = work / max(1, resident) * (problem.stages(knobs) * BARRIER + START)
    if taps:
        vectors = work * knobs.tile_pixels * depth / LANES
        issue += vectors * (taps * DEPTHWISE_INSTRUCTIONS) / gpu.fp32_fma
        memory += vectors / WARP * taps * (LANES + 1)  # the map's float4, the warp's weights
        # rows above and below come from L2 as well
        traffic += 4 * work * depth * knobs.tile_pixels * 2 / L2_BYTES_PER_CLOCK
        waits += work / max(1, resident) * problem.stages(knobs) * L2_LATENCY
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

    def _choices(self, spec: Any, target: TargetSpec) -> tuple[GemmKnobs, ...]:
        assert target.gpu is not None
        return _candidates(target.gpu)


class _Separable(_Product):
    """Depthwise and pointwise in one kernel, where that saves more than it costs.

    It saves a launch and a trip of the map to L2 and back; it costs the depthwise convolution once
    more for every further tile of output channels.
    """

    # microseconds from the end of one kernel of a CUDA graph to the start of the next
    LAUNCH_US = 1.5
    # of a thread, sums and float4 of the map: the taps under way need registers, too
    MOST_SUMS, MOST_STAGED = 32, 2

    def _choices(self, spec: Any, target: TargetSpec) -> tuple[GemmKnobs, ...]:
        return tuple(
            knobs
            for knobs in super()._choices(spec, target)
            if knobs.thread_pixels * knobs.thread_channels <= self.MOST_SUMS
            and knobs.staged[0] <= self.MOST_STAGED
        )

    def predicted(self, spec: Any, knobs: GemmKnobs, target: TargetSpec) -> float:
        assert target.gpu is not None
        kernel = spec.depthwise.kernel
        problem = template.problem_of(spec)
        return predicted_clocks(problem, knobs, target.gpu, kernel[0] * kernel[1])

    def pays(self, spec: SeparableSpec, target: TargetSpec) -> bool:
        assert target.gpu is not None
        one = self.predicted(spec, self.analytic(spec, target), target)
        second = POINTWISE.predicted(
            spec.pointwise, POINTWISE.analytic(spec.pointwise, target), target
        )
        launch = self.LAUNCH_US * target.gpu.clock_mhz
        return one < depthwise_clocks(spec.depthwise, target.gpu) + launch + second


def depthwise_clocks(spec: ConvSpec, gpu: GpuSpec) -> float:
    """Clocks of a depthwise convolution on its own: its start, and L1, L2 or memory after it."""
    outputs = spec.batch * spec.out_channels * spec.out_pixels / LANES / gpu.sms
    memory = outputs / WARP * spec.kernel[0] * spec.kernel[1] * (LANES + 1)
    fits = spec.min_bytes <= gpu.l2_kib * 1024 // 2
    bytes_per_clock = gpu.bandwidth_gb_s * 1e3 / gpu.clock_mhz / gpu.sms
    return START + max(
        memory, spec.min_bytes / gpu.sms / (L2_BYTES_PER_CLOCK if fits else bytes_per_clock)
    )


POINTWISE: Any = _Product("cuda-pointwise", "pointwise")
STEM: Any = _Product("cuda-stem", "stem")
CONVOLUTION: Any = _Product("cuda-convolution", "conv")
DENSE_PRODUCT: Any = _Product("cuda-dense-product", "dense")
SEPARABLE: Any = _Separable("cuda-separable", "separable")
