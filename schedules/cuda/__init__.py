"""Schedules for NVIDIA GPUs: own kernels for every operator, with knobs from the GPU's data."""

from __future__ import annotations

from .convolution import (
    CONVOLUTION,
    DENSE_PRODUCT,
    POINTWISE,
    SEPARABLE,
    STEM,
    TENSOR_CONVOLUTION,
    TENSOR_DENSE_PRODUCT,
    TENSOR_POINTWISE,
    TENSOR_SEPARABLE,
    TENSOR_STEM,
)
from .dense import DENSE
from .depthwise import DEPTHWISE
from .memory_bound import ELEMENTWISE, LAYOUT, POOL, SCALE
from .squeeze_excite import EXCITE, SCALED, SQUEEZE, TENSOR_SCALED

RULES = (
    TENSOR_SEPARABLE,
    TENSOR_SCALED,
    TENSOR_POINTWISE,
    TENSOR_STEM,
    TENSOR_CONVOLUTION,
    SEPARABLE,
    SCALED,
    POINTWISE,
    DEPTHWISE,
    STEM,
    CONVOLUTION,
    DENSE,
    TENSOR_DENSE_PRODUCT,
    DENSE_PRODUCT,
    SQUEEZE,
    EXCITE,
    POOL,
    SCALE,
    ELEMENTWISE,
    LAYOUT,
)
