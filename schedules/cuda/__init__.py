"""Schedules for NVIDIA GPUs: own kernels for every operator, with knobs from the GPU's data."""

from __future__ import annotations

from .convolution import CONVOLUTION, DENSE_PRODUCT, POINTWISE, SEPARABLE, STEM
from .dense import DENSE
from .depthwise import DEPTHWISE
from .memory_bound import ELEMENTWISE, LAYOUT, POOL, SCALE

RULES = (
    SEPARABLE,
    POINTWISE,
    DEPTHWISE,
    STEM,
    CONVOLUTION,
    DENSE,
    DENSE_PRODUCT,
    POOL,
    SCALE,
    ELEMENTWISE,
    LAYOUT,
)
