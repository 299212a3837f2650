"""Schedules for x86: SSE (4 lanes, 16 registers), AVX2 (8, 16) and AVX-512 (16, 32)."""

from __future__ import annotations

from .convolution import CONVOLUTION, DENSE, POINTWISE, STEM
from .depthwise import DEPTHWISE
from .memory_bound import ELEMENTWISE, LAYOUT, POOL, SCALE
from .separable import SEPARABLE

RULES = (
    SEPARABLE,
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
