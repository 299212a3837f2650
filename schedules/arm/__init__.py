"""Schedules for ARM Cortex-A: NEON, 4 lanes; 32 registers on aarch64, 16 on armv7.

``assembly``     instructions as a function that LLVM inlines
``pointwise``    the innermost loop of pointwise and dense layers, in assembly
``stem``         the taps of the first convolution, in assembly
``convolution``  the loop nests around them, and the rules of all convolutions and dense layers
``depthwise``    taps in assembly, loop nest and rules
``taps``         what the tiles of stem and depthwise share
``memory_bound`` the rest

Assembly is for aarch64; armv7 runs the templates' own loops.
"""

from __future__ import annotations

from .convolution import CONVOLUTION, DENSE, DENSE_32, POINTWISE, POINTWISE_32, STEM, STEM_32
from .depthwise import DEPTHWISE, DEPTHWISE_32
from .memory_bound import ELEMENTWISE, LAYOUT, POOL, SCALE

_SHARED = (CONVOLUTION, POOL, SCALE, ELEMENTWISE, LAYOUT)
RULES_AARCH64 = (POINTWISE, DEPTHWISE, STEM, DENSE, *_SHARED)
RULES_ARMV7 = (POINTWISE_32, DEPTHWISE_32, STEM_32, DENSE_32, *_SHARED)
