"""Schedules for ARM Cortex-A: NEON, 4 lanes; 32 registers on aarch64, 16 on armv7."""

from __future__ import annotations

from ..x86.convolution import CONVOLUTION, DENSE, POINTWISE, STEM
from ..x86.depthwise import DEPTHWISE
from ..x86.memory_bound import ELEMENTWISE, LAYOUT, POOL, SCALE

RULES = (POINTWISE, DEPTHWISE, STEM, CONVOLUTION, DENSE, POOL, SCALE, ELEMENTWISE, LAYOUT)
