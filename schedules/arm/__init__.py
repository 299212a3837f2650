"""Schedules for ARM Cortex-A: NEON, 4 lanes; 32 registers on aarch64, 16 on armv7.

``assembly``     instructions as a function that LLVM inlines
``pointwise``    the innermost loop of pointwise and dense layers (aarch64)
``convolution``  their rules, and those of the other convolutions
``depthwise``    taps in assembly (aarch64) and the rules
"""

from __future__ import annotations

from ..x86.depthwise import DEPTHWISE as DEPTHWISE_32
from ..x86.memory_bound import ELEMENTWISE, LAYOUT, POOL, SCALE
from .convolution import CONVOLUTION, DENSE, DENSE_32, POINTWISE, POINTWISE_32, STEM
from .depthwise import DEPTHWISE

_SHARED = (STEM, CONVOLUTION, POOL, SCALE, ELEMENTWISE, LAYOUT)
RULES_AARCH64 = (POINTWISE, DENSE, DEPTHWISE, *_SHARED)
RULES_ARMV7 = (POINTWISE_32, DENSE_32, DEPTHWISE_32, *_SHARED)
