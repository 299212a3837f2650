"""Schedules for NVIDIA GPUs: own kernels for every operator, with knobs from the GPU's data."""

from __future__ import annotations

from .convolution import CONVOLUTION, DENSE, POINTWISE, STEM
from .depthwise import DEPTHWISE
from .memory_bound import ELEMENTWISE, LAYOUT, POOL, SCALE

RULES = (
    POINTWISE,
    DEPTHWISE,
    STEM,
    CONVOLUTION,
    DENSE,
    POOL,
    SCALE,
    ELEMENTWISE,
    LAYOUT,
)
