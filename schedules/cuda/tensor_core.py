"""The matrix product of `gemm` on tensor cores: tf32 and float16 factors, float32 sums.

Idea
----
``mma.sync`` spreads its factors over the lanes of a warp: lane ``4 g + t`` holds rows ``g`` and
``g + 8`` of the left one, column ``g`` of the right one, and steps of the reduction that ``t``
tells (PTX ISA, "Matrix Fragments for mma.m16n8k8" and "m16n8k16"). Which step is which is free as
long as both factors agree, and so is the order of the output channels, which the packed weights
decide. Both are chosen such that a lane's values lie in memory as they are needed:

- of a tile's 16 steps lane ``4 g + t`` holds four in a row, one block of the blocked layout, of
  pixels ``g`` and ``g + 8``: one float4 (float16: four halves) each, and eight lanes of equal ``t``
  read 128 (64) bytes in a row;
- the weights of a tile lie in the order of the lanes, 16 bytes a load;
- of two products' sums it gets four channels in a row of each pixel: one block of the output.

So no factor goes through shared memory, and no barrier stands in the reduction: a warp loads the
next stage into registers while it multiplies this one, and warps that share pixels or channels
meet in L1. A kind of operator is again an `operands.Operand`, four values of the reduction for one
pixel; a depthwise convolution on the way is computed by the lane that multiplies it.

Small maps at batch 1 have too few outputs to fill the GPU: ``split`` groups of warps share out the
reduction, tile by tile, and add up through shared memory at the end, the only barrier there is.

Factors of tf32 are rounded to nearest: weights when they are packed, the map after loading.

Registers: ``8 * pixels * channels`` sums, two stages of ``depth * (pixels + channels)`` tiles, of
8 registers each in tf32 and of 4 in float16, and some 40 for addresses. Shared memory: the sums of
all groups.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx

from ..spec import SeparableSpec
from .gemm import (
    REGISTERS_PER_SM,
    GemmSpec,
    problem_of,
    product,
)
from .operands import operand_of, pack_depthwise
from .tensor_core_kernel import TensorKernel
from .tensor_core_knobs import FOURS, TILE, TensorKnobs

# Registers beyond the estimate that ptxas may use: for sm_75, which takes the most; for taps.
SPARE_REGISTERS, TAP_REGISTERS = 24, 80


def build(spec: GemmSpec, knobs: TensorKnobs) -> tirx.PrimFunc:
    """The PrimFunc ``(operand's buffers, packed weight, bias[, residual], output)``."""
    problem = problem_of(spec)
    weights = TILE * knobs.steps(problem) * problem.tiles(knobs)[1] * knobs.tile_channels
    return product(spec, knobs, weights, resident_blocks(spec, knobs), TensorKernel)


def resident_blocks(spec: GemmSpec, knobs: TensorKnobs) -> int:
    """Blocks of a multiprocessor that ptxas must leave registers for (see `gemm`)."""
    taps = TAP_REGISTERS if isinstance(spec, SeparableSpec) else 0
    registers = knobs.registers(spec.precision) + SPARE_REGISTERS + taps
    return max(1, REGISTERS_PER_SM // (knobs.threads * registers))


def pack_weight(
    spec: GemmSpec, knobs: TensorKnobs, weight: np.ndarray, argument: int = 1
) -> np.ndarray:
    """The weight -> ``[channel tile][step][16 channels]``, a tile in the order of the lanes.

    A lane has 4 steps of 2 channels: in float16 8 halves in a row, in tf32 4 floats of each half
    of the tile. A joint operator's depthwise weight (argument 1) -> ``[block][tap][4]``.
    """
    if isinstance(spec, SeparableSpec) and argument == 1:
        return pack_depthwise(weight)
    problem = problem_of(spec)
    matrix = operand_of(spec).matrix(weight)  # (reduction, channels)
    if spec.precision == "tf32":
        matrix = rounded_to_tf32(matrix)
    steps, tiles = knobs.steps(problem), problem.tiles(knobs)[1]
    whole = np.zeros((steps * TILE, tiles * knobs.tile_channels), matrix.dtype)
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    # column g of product p is channel 4 (g / 2) + 2 p + g % 2: a lane's sums are of four in a row
    split = whole.reshape(steps, FOURS, 4, tiles, knobs.tile_channels // TILE, 4, 2, 2)
    t, four, tile, sixteen, g_half, p, g_odd = range(1, 8)
    lanes = (g_half, g_odd, t)
    order = (p, *lanes, four) if spec.precision == "tf32" else (*lanes, p, four)
    return np.ascontiguousarray(split.transpose(tile, 0, sixteen, *order)).reshape(-1)


def rounded_to_tf32(values: np.ndarray) -> np.ndarray:
    """Rounded to 10 bits of mantissa, ties away from zero, as ``cvt.rna.tf32.f32`` does."""
    bits = np.ascontiguousarray(values, "float32").view("uint32")
    finite = (bits & 0x7F800000) != 0x7F800000
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(finite, rounded, bits).view("float32")
