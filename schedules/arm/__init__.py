"""Schedules for ARM Cortex-A: NEON, 4 lanes; 32 registers on aarch64, 16 on armv7."""

from __future__ import annotations

from ..x86.depthwise import DEPTHWISE
from ..x86.memory_bound import ELEMENTWISE, LAYOUT, POOL, SCALE
from .convolution import CONVOLUTION, DENSE, DENSE_32, POINTWISE, POINTWISE_32, STEM

_SHARED = (DEPTHWISE, STEM, CONVOLUTION, POOL, SCALE, ELEMENTWISE, LAYOUT)
RULES_AARCH64 = (POINTWISE, DENSE, *_SHARED)
RULES_ARMV7 = (POINTWISE_32, DENSE_32, *_SHARED)
