"""Squeeze-excite in fewer kernels: at batch 1 a launch costs more than what it computes.

The channels' factors are multiplied in where the pointwise convolution after them loads its map
(`operands.Scaled`), so that the map goes neither to memory nor back once more. The gate that makes
them, pooling and two dense layers, is two kernels (`squeeze`, `excite`), the first of which also
computes the depthwise convolution before: a block of V3's is four launches instead of seven.
Predicted clocks decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING, Any

from ..spec import (
    ConvSpec,
    DenseSpec,
    DepthwiseSqueezeSpec,
    ExciteSpec,
    PoolSpec,
    ScaledSpec,
    Spec,
    SqueezeSpec,
    stored_bytes,
)
from . import excite, gemm, squeeze
from .convolution import (
    L2_BYTES_PER_CLOCK,
    LAUNCH_US,
    POINTWISE,
    START,
    TENSOR_POINTWISE,
    Product,
    TensorProduct,
    depthwise_clocks,
    memory_clocks,
    on_tensor_cores,
)
from .dense import MOST_IMAGES, DenseKnobs
from .ir import LANES, WARP, ceil_div

if TYPE_CHECKING:
    from tvm_mobilenet.targets import GpuSpec, TargetSpec

# Instructions for four channels of a pixel: the factors, four FMUL, float16 to float32 and back.
SCALE_INSTRUCTIONS = 12
GROUPS, CHUNKS = (4, 8, 16, 32), (1, 2, 4, 8)  # channels of a block of threads, pieces of a map
MOST_WEIGHTS = 32  # of a thread, under way while it pools
BARRIERS = 300  # clocks of the gate's steps through shared memory


def scaling_clocks(spec: ScaledSpec, knobs: Any, gpu: GpuSpec) -> float:
    """Clocks for multiplying while loading, once for each tile (tensor cores: warp) of channels."""
    problem = gemm.problem_of(spec)
    pixel_tiles, channel_tiles = problem.tiles(knobs)
    times = channel_tiles * getattr(knobs, "channel_warps", 1)
    vectors = pixel_tiles * knobs.tile_pixels * problem.steps * times
    return float(vectors * SCALE_INSTRUCTIONS / gpu.fp32_fma / gpu.sms)


def _scaled_pays(rule: Any, second: Any, spec: ScaledSpec, target: TargetSpec) -> bool:
    """Whether one kernel takes less time than two; ``second``: the rule of the convolution."""
    assert target.gpu is not None
    one = rule.predicted(spec, rule.analytic(spec, target), target)
    pointwise = spec.pointwise
    two = second.predicted(pointwise, second.analytic(pointwise, target), target)
    scale = START + memory_clocks(spec.scale.min_bytes, target.gpu)
    return bool(one < scale + LAUNCH_US * target.gpu.clock_mhz + two)


class _Scaled(Product):
    """Channel scaling and the pointwise convolution of its result, where one kernel is faster."""

    def predicted(self, spec: Any, knobs: Any, target: TargetSpec) -> float:
        assert target.gpu is not None
        return super().predicted(spec, knobs, target) + scaling_clocks(spec, knobs, target.gpu)

    def pays(self, spec: ScaledSpec, target: TargetSpec) -> bool:
        return not on_tensor_cores(spec, target) and _scaled_pays(self, POINTWISE, spec, target)


class _TensorScaled(TensorProduct):
    """The same on tensor cores; the factors are multiplied in before rounding."""

    def predicted(self, spec: Any, knobs: Any, target: TargetSpec) -> float:
        assert target.gpu is not None
        return super().predicted(spec, knobs, target) + scaling_clocks(spec, knobs, target.gpu)

    def pays(self, spec: ScaledSpec, target: TargetSpec) -> bool:
        return _scaled_pays(self, TENSOR_POINTWISE, spec, target)


class _Squeeze:
    """A block of threads for each group of channels and chunk of the map."""

    name = "cuda-squeeze"
    knobs_class = squeeze.SqueezeKnobs
    build = staticmethod(squeeze.build)
    pack_weight = staticmethod(squeeze.pack_weight)

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, SqueezeSpec | DepthwiseSqueezeSpec)

    def analytic(self, spec: Any, target: TargetSpec) -> squeeze.SqueezeKnobs:
        return squeeze.SqueezeKnobs()

    def space(self, spec: Any, target: TargetSpec) -> Iterable[squeeze.SqueezeKnobs]:
        return [squeeze.SqueezeKnobs(threads) for threads in (128, 256, 512)]

    def gate(
        self,
        depthwise: ConvSpec | None,
        pool: PoolSpec,
        first: DenseSpec,
        second: DenseSpec,
        target: TargetSpec,
    ) -> tuple[SqueezeSpec | DepthwiseSqueezeSpec, ExciteSpec] | None:
        """The fastest of all ways by predicted clocks; None: kernels of their own."""
        gpu = target.gpu
        if gpu is None or pool.batch > MOST_IMAGES:  # a matrix product reuses the weights better
            return None
        launch = LAUNCH_US * gpu.clock_mhz
        before = depthwise_clocks(depthwise, target) + launch if depthwise else 0.0
        apart = sum(START + memory_clocks(spec.min_bytes, gpu) for spec in (pool, first, second))
        best, found = before + apart + launch, None
        columns = ceil_div(first.out_features, squeeze.SqueezeKnobs().threads)  # of a thread
        for group, chunks in product(GROUPS, CHUNKS):
            if columns * group > MOST_WEIGHTS:
                continue
            one = SqueezeSpec(pool, first, group, chunks)
            two = ExciteSpec(first, second, one.parts)
            for joint in (one, DepthwiseSqueezeSpec(depthwise, one) if depthwise else None):
                if joint is None:
                    continue
                clocks = squeeze_clocks(joint, gpu) + excite_clocks(two, gpu)
                if joint is one:
                    clocks += before
                if clocks < best:
                    best, found = clocks, (joint, two)
        return found


class _Excite:
    """So few outputs a block that every multiprocessor has one; a warp an output."""

    name = "cuda-excite"
    knobs_class = DenseKnobs
    build = staticmethod(excite.build)
    pack_weight = staticmethod(excite.pack_weight)

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, ExciteSpec)

    def analytic(self, spec: ExciteSpec, target: TargetSpec) -> DenseKnobs:
        return DenseKnobs(8, WARP)

    def space(self, spec: ExciteSpec, target: TargetSpec) -> Iterable[DenseKnobs]:
        return [
            DenseKnobs(outputs, parts)
            for outputs in (4, 8, 16, 32)
            for parts in (WARP // 2, WARP)
            if 128 <= outputs * parts <= 512
        ]


def squeeze_clocks(spec: SqueezeSpec | DepthwiseSqueezeSpec, gpu: GpuSpec) -> float:
    """Clocks of the busiest multiprocessor: reading map and weight, or the taps."""
    taps, stride = 0, 1
    if isinstance(spec, DepthwiseSqueezeSpec):
        taps, stride = math.prod(spec.depthwise.kernel), math.prod(spec.depthwise.stride)
        spec = spec.squeeze
    columns = spec.chunk_pixels * stride + spec.dense.out_features
    width = stored_bytes(spec.precision)  # also passes of a warp's load of four channels
    moved = width * spec.group * columns
    vectors = spec.group // LANES * spec.chunk_pixels
    work = max(moved / L2_BYTES_PER_CLOCK, vectors / WARP * taps * (width + 1))
    return START + BARRIERS + _busiest(spec.batch * spec.parts, gpu) * work


def excite_clocks(spec: ExciteSpec, gpu: GpuSpec) -> float:
    """Clocks of the busiest multiprocessor: every block reads all shares of its image."""
    hidden, outputs = spec.first.out_features, 8
    weights = spec.second.min_bytes / ceil_div(spec.second.out_features, outputs)
    blocks = spec.batch * ceil_div(spec.second.out_features, outputs)
    moved = 4 * spec.parts * hidden + weights
    return START + BARRIERS + _busiest(blocks, gpu) * moved / L2_BYTES_PER_CLOCK


def _busiest(blocks: int, gpu: GpuSpec) -> float:
    """Blocks of one multiprocessor at once; many even out."""
    return ceil_div(blocks, gpu.sms) if blocks <= 4 * gpu.sms else blocks / gpu.sms


SCALED: Any = _Scaled("cuda-scaled", "scaled")
TENSOR_SCALED: Any = _TensorScaled("cuda-tensor-scaled", "scaled")
SQUEEZE: Any = _Squeeze()
EXCITE: Any = _Excite()
