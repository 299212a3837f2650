"""Squeeze-excite in fewer kernels: at batch 1 a launch costs more than what it computes.

The channels' factors are multiplied in where the pointwise convolution after them loads its map
(`operands.Scaled`), so that the map goes neither to memory nor back once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..spec import ScaledSpec
from . import gemm
from .convolution import (
    LAUNCH_US,
    POINTWISE,
    START,
    TENSOR_POINTWISE,
    Product,
    TensorProduct,
    memory_clocks,
    on_tensor_cores,
)

if TYPE_CHECKING:
    from tvm_mobilenet.targets import GpuSpec, TargetSpec

# Instructions for four channels of a pixel: the factors, four FMUL, float16 to float32 and back.
SCALE_INSTRUCTIONS = 12


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


SCALED: Any = _Scaled("cuda-scaled", "scaled")
TENSOR_SCALED: Any = _TensorScaled("cuda-tensor-scaled", "scaled")
