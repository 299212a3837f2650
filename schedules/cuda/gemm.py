"""Convolutions and dense layers as one matrix product: pointwise, general, stem, depthwise fused.

Idea
----
A block of threads computes ``tile_pixels`` x ``tile_channels`` outputs. It walks the reduction in
steps of ``depth``: while it multiplies one step from shared memory, the next comes from global
memory into registers, and goes to the other half of shared memory afterwards (one barrier a step).
A thread has ``thread_pixels`` x ``thread_channels`` sums; per four steps of the reduction it reads
``thread_pixels`` + ``thread_channels`` float4 for ``4 * thread_pixels * thread_channels`` FFMA.

Small maps at batch 1 have too few outputs to fill the GPU, so ``split`` groups of threads of one
block share out each step of the reduction and add their sums up through shared memory at the end:
all multiprocessors and their four schedulers are busy with small tiles, and no second kernel or
atomic addition is needed.

What stands on the left of the product is an `operands.Operand`: it gives four values of the
reduction for one pixel. Everything else is the same for all kinds.

Registers: ``thread_pixels * (thread_channels + 4) + thread_channels``, the staged float4, and some
30 for addresses. Shared memory: ``2 * depth * (tile_pixels + tile_channels)`` floats, or the split
sums, ``split * tile_pixels * tile_channels``, which reuse its first half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from ..emit import prim_func, selected_bounds
from ..spec import ConvSpec, DenseSpec, ScaledSpec, SeparableSpec, storage
from .gemm_kernel import Kernel
from .gemm_knobs import GemmKnobs, Problem
from .ir import (
    LANES,
    View,
    ceil_div,
)
from .operands import matrix_of, operand_of, pack_depthwise

MIN_BLOCKS = "tirx.launch_bounds_min_blocks_per_sm"  # TVM's name for a function's attribute
REGISTERS_PER_SM = 65536  # of every architecture since sm_50
# Registers beyond the estimate that ptxas may use: to load ahead, and for the taps under way.
SPARE_REGISTERS, TAP_REGISTERS = 16, 48
FEW_STAGED, ADDRESS_REGISTERS = 8, 72  # what V2's 24 to 144 channels at 56x56 needs on any GPU


GemmSpec = ConvSpec | DenseSpec | SeparableSpec | ScaledSpec


def problem_of(spec: GemmSpec) -> Problem:
    steps = ceil_div(matrix_of(spec), LANES)
    if isinstance(spec, DenseSpec):
        return Problem(1, spec.batch, spec.out_features, steps, rows=True)
    last = _last(spec)
    return Problem(last.batch, last.out_pixels, last.out_channels, steps, rows=False)


def result_type(spec: GemmSpec) -> str:
    """The type of what it writes: the network's own result is float32 at every precision."""
    exact = isinstance(spec, DenseSpec) and spec.float32_output
    return "float32" if exact else storage(spec.precision)


def _last(spec: ConvSpec | SeparableSpec | ScaledSpec) -> ConvSpec:
    return spec if isinstance(spec, ConvSpec) else spec.pointwise


def pack_weight(
    spec: GemmSpec, knobs: GemmKnobs, weight: np.ndarray, argument: int = 1
) -> np.ndarray:
    """The weight -> panels ``[channel tile][reduction][tile_channels]``, padded with zeros.

    A joint operator's depthwise weight (argument 1) -> ``[block][tap][4]``.
    """
    if isinstance(spec, SeparableSpec) and argument == 1:
        return pack_depthwise(weight)
    problem = problem_of(spec)
    matrix = operand_of(spec).matrix(weight)  # (reduction, channels)
    tiles, depth = problem.tiles(knobs)[1], problem.stages(knobs) * knobs.depth
    whole = np.zeros((depth, tiles * knobs.tile_channels), weight.dtype)
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    panels = whole.reshape(depth, tiles, knobs.tile_channels).transpose(1, 0, 2)
    return np.ascontiguousarray(panels).reshape(-1)


def build(spec: GemmSpec, knobs: GemmKnobs) -> tirx.PrimFunc:
    """The PrimFunc ``(operand's buffers, packed weight, bias[, residual], output)``."""
    problem = problem_of(spec)
    panels = problem.tiles(knobs)[1] * knobs.tile_channels
    weights = problem.stages(knobs) * knobs.depth * panels
    return product(spec, knobs, weights, resident_blocks(spec, knobs), Kernel)


def product(
    spec: GemmSpec, knobs: Any, weights: int, resident: int, kernel: type[Kernel]
) -> tirx.PrimFunc:
    """The product as ``kernel`` emits it; ``weights``: packed; ``resident``: blocks of an SM."""
    problem, operand = problem_of(spec), operand_of(spec)
    residual = not isinstance(spec, DenseSpec) and _last(spec).residual
    if isinstance(spec, DenseSpec):
        out_shape, activation = (spec.batch, spec.out_features), spec.activation
    else:
        out_shape = (problem.images, problem.channels * problem.pixels)
        activation = _last(spec).activation
    dtype = storage(spec.precision)
    buffers = [
        *operand.buffers,
        ("weight", (weights,), dtype),
        ("bias", (problem.channels,), "float32"),
        *([("residual", out_shape, dtype)] if residual else []),
        ("y", out_shape, result_type(spec)),
    ]

    def body(*arguments: Any) -> None:
        inputs = arguments[: len(operand.buffers)]
        weight, bias, *rest = arguments[len(operand.buffers) :]
        y = View(rest[-1], problem.channels, problem.pixels, problem.rows)
        other = View(rest[0], problem.channels, problem.pixels) if residual else None
        with selected_bounds():
            kernel(problem, knobs, operand, inputs, weight, bias, other, y, activation).emit()

    return prim_func(buffers, body, {MIN_BLOCKS: resident})


def resident_blocks(spec: GemmSpec, knobs: GemmKnobs) -> int:
    """Blocks of a multiprocessor that ptxas must leave registers for.

    Left alone, it saves registers for more blocks than there are, and spills some. Of more than
    `FEW_STAGED` float4 under way it spills the addresses, too.
    """
    taps = TAP_REGISTERS if isinstance(spec, SeparableSpec) else 0
    addresses = ADDRESS_REGISTERS if sum(knobs.staged) > FEW_STAGED else 0
    registers = knobs.registers + SPARE_REGISTERS + addresses + taps
    return max(1, REGISTERS_PER_SM // (knobs.threads * registers))
