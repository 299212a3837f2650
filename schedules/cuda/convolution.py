"""Knobs of the matrix products, from the GPU's data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

from ..spec import ConvSpec, SeparableSpec, Spec, stored_bytes
from . import gemm as template
from . import tensor_core, tensor_core_knobs
from .depthwise import DEPTHWISE
from .gemm_knobs import GemmKnobs, Problem
from .ir import LANES, WARP, ceil_div
from .tensor_core_knobs import TensorKnobs

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
# Microseconds from the end of one kernel of a CUDA graph to the start of the next.
LAUNCH_US = 1.5


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
class Product:
    """Tile, steps and split by the predicted clocks of the busiest multiprocessor."""

    name: str
    kind: str
    knobs_class: type = GemmKnobs

    build: ClassVar[Any] = staticmethod(template.build)
    pack_weight: ClassVar[Any] = staticmethod(template.pack_weight)

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, template.GemmSpec) and spec.kind == self.kind

    def analytic(self, spec: Any, target: TargetSpec) -> Any:
        return min(self._choices(spec, target), key=lambda k: self.predicted(spec, k, target))

    def predicted(self, spec: Any, knobs: Any, target: TargetSpec) -> float:
        """Clocks by which tuning orders candidates until it has measured some."""
        assert target.gpu is not None
        return predicted_clocks(template.problem_of(spec), knobs, target.gpu)

    def space(self, spec: Any, target: TargetSpec) -> Iterable[Any]:
        best = self.predicted(spec, self.analytic(spec, target), target)
        return [
            knobs
            for knobs in self._choices(spec, target)
            if self.predicted(spec, knobs, target) <= 1.5 * best
        ]

    def _choices(self, spec: Any, target: TargetSpec) -> tuple[Any, ...]:
        assert target.gpu is not None
        return _candidates(target.gpu)


def on_tensor_cores(spec: Spec, target: TargetSpec) -> bool:
    """Whether the GPU has tensor cores for an operator's precision."""
    assert target.gpu is not None
    rates = {"tf32": target.gpu.tf32_fma, "float16": target.gpu.f16_fma}
    return rates.get(spec.precision, 0) > 0


@dataclass(frozen=True)
class TensorProduct(Product):
    """The same products on tensor cores, for operators of another precision than float32."""

    knobs_class: type = TensorKnobs

    build: ClassVar[Any] = staticmethod(tensor_core.build)
    pack_weight: ClassVar[Any] = staticmethod(tensor_core.pack_weight)

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return super().takes(spec, target) and on_tensor_cores(spec, target)

    def predicted(self, spec: Any, knobs: TensorKnobs, target: TargetSpec) -> float:
        assert target.gpu is not None
        taps = _taps(spec)
        problem = template.problem_of(spec)
        return tensor_core_knobs.predicted_clocks(problem, knobs, target.gpu, spec.precision, taps)

    def _choices(self, spec: Any, target: TargetSpec) -> tuple[TensorKnobs, ...]:
        return tensor_core_knobs.candidates(spec.precision)


def _taps(spec: Any) -> int:
    """Of the depthwise convolution that is computed on the way, 0 for none."""
    return math.prod(spec.depthwise.kernel) if isinstance(spec, SeparableSpec) else 0


def separable_pays(rule: Any, second: Any, spec: SeparableSpec, target: TargetSpec) -> bool:
    """Whether one kernel takes less time than two; ``second``: the rule of the pointwise one."""
    assert target.gpu is not None
    one = rule.predicted(spec, rule.analytic(spec, target), target)
    pointwise = spec.pointwise
    two = second.predicted(pointwise, second.analytic(pointwise, target), target)
    launch = LAUNCH_US * target.gpu.clock_mhz
    return bool(one < depthwise_clocks(spec.depthwise, target) + launch + two)


class _Separable(Product):
    """Depthwise and pointwise in one kernel, where that saves more than it costs.

    It saves a launch and a trip of the map to L2 and back; it costs the depthwise convolution once
    more for every further tile of output channels.
    """

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
        problem = template.problem_of(spec)
        return predicted_clocks(problem, knobs, target.gpu, _taps(spec))

    def pays(self, spec: SeparableSpec, target: TargetSpec) -> bool:
        second = TENSOR_POINTWISE if on_tensor_cores(spec, target) else POINTWISE
        better = TENSOR_SEPARABLE.takes(spec, target)
        return not better and separable_pays(self, second, spec, target)


class _TensorSeparable(TensorProduct):
    """The same on tensor cores; lanes that multiply a pixel for other channels compute it again.

    In float16: four floats of a map take twice the registers, and ptxas spills the taps under way.
    So a pair in tf32 is one kernel in float32, which is more exact, or two.
    """

    # of a thread, sums and tiles of the map in a stage: the taps under way need registers, too
    MOST_SUMS, MOST_SUMS_SM_75, MOST_STAGED = 64, 32, 2
    ROOMY = (75, 80, 90, 100)  # on others ptxas spills 32 sums beside two tiles
    # up to four stages are code without a loop, all of whose taps ptxas loads at its start
    STRAIGHT, MOST_AHEAD = 4, 6  # stages, tiles of the map

    def _choices(self, spec: Any, target: TargetSpec) -> tuple[TensorKnobs, ...]:
        assert target.gpu is not None
        capability = target.gpu.capability
        most = self.MOST_SUMS if capability >= 80 else self.MOST_SUMS_SM_75
        both = most * self.MOST_STAGED if capability in self.ROOMY else 32
        problem = template.problem_of(spec)

        def ahead(knobs: TensorKnobs) -> int:
            stages = knobs.stages(problem)
            return knobs.pixels * knobs.depth * (stages if stages <= self.STRAIGHT else 1)

        return tuple(
            knobs
            for knobs in super()._choices(spec, target)
            if knobs.sums <= most
            and knobs.pixels * knobs.depth <= self.MOST_STAGED
            and knobs.sums * knobs.pixels * knobs.depth <= both
            and ahead(knobs) <= self.MOST_AHEAD
        )

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return spec.precision == "float16" and super().takes(spec, target)

    def pays(self, spec: SeparableSpec, target: TargetSpec) -> bool:
        return separable_pays(self, TENSOR_POINTWISE, spec, target)


def depthwise_clocks(spec: ConvSpec, target: TargetSpec) -> float:
    """Clocks of a depthwise convolution on its own: its start, and L1, L2 or memory after it."""
    gpu = target.gpu
    assert gpu is not None
    rows = DEPTHWISE.analytic(spec, target).rows
    threads = spec.batch * spec.out_channels * spec.out_pixels / LANES / rows / gpu.sms
    kernel_h, kernel_w = spec.kernel
    loads = ((rows - 1) * spec.stride[0] + kernel_h) * kernel_w
    # a warp's four channels take two passes in float16 and four in float32, its weights one
    memory = threads / WARP * (loads * stored_bytes(spec.precision) + kernel_h * kernel_w)
    return START + max(memory, memory_clocks(spec.min_bytes, gpu))


def memory_clocks(moved: int, gpu: GpuSpec) -> float:
    """Clocks in which all multiprocessors move so many bytes, from L2 where they fit there."""
    fits = moved <= gpu.l2_kib * 1024 // 2
    bytes_per_clock = gpu.bandwidth_gb_s * 1e3 / gpu.clock_mhz / gpu.sms
    return moved / gpu.sms / (L2_BYTES_PER_CLOCK if fits else bytes_per_clock)


POINTWISE: Any = Product("cuda-pointwise", "pointwise")
STEM: Any = Product("cuda-stem", "stem")
CONVOLUTION: Any = Product("cuda-convolution", "conv")
DENSE_PRODUCT: Any = Product("cuda-dense-product", "dense")
SEPARABLE: Any = _Separable("cuda-separable", "separable")

TENSOR_POINTWISE: Any = TensorProduct("cuda-tensor-pointwise", "pointwise")
TENSOR_STEM: Any = TensorProduct("cuda-tensor-stem", "stem")
TENSOR_CONVOLUTION: Any = TensorProduct("cuda-tensor-convolution", "conv")
TENSOR_DENSE_PRODUCT: Any = TensorProduct("cuda-tensor-dense-product", "dense")
TENSOR_SEPARABLE: Any = _TensorSeparable("cuda-tensor-separable", "separable")
