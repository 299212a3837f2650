"""Dense layers of few rows: every weight is read once, as fast as memory gives it.

Idea
----
``parts`` threads share one output: neighbours read neighbouring float4 of its row of weights, so
that a warp reads 512 bytes in a row and has all its loads under way at once. Their sums meet in
shared memory (one float more a row, against bank conflicts), where a thread per output and image
adds them up. So few outputs as a block has, so many blocks there are: the split of the reduction
keeps all multiprocessors busy at batch 1.

Registers: a sum an image, two float4, some 20 for addresses. Shared memory: a float a thread and
image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..emit import Buffer, Expr, activate, constant, prim_func, selected_bounds
from ..spec import DenseSpec, Spec, storage
from .gemm import result_type
from .ir import (
    LANES,
    WARP,
    View,
    barrier,
    below,
    both,
    cast,
    ceil_div,
    copy4,
    launch,
    local,
    padded,
    shared,
    unrolled,
    when,
)

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

MOST_IMAGES = 8  # beyond, a matrix product reuses the weights better


@dataclass(frozen=True)
class DenseKnobs:
    """``outputs`` of a block, each shared by ``parts`` threads."""

    outputs: int
    parts: int


def build(spec: DenseSpec, knobs: DenseKnobs) -> tirx.PrimFunc:
    """The PrimFunc ``(input, weight with whole float4 a row, bias, output)``."""
    steps = ceil_div(spec.in_features, LANES)
    rounds = ceil_div(steps, knobs.parts)
    dtype = storage(spec.precision)
    buffers = [
        ("x", (spec.batch, spec.in_features), dtype),
        ("weight", (spec.out_features * steps * LANES,), dtype),
        ("bias", (spec.out_features,), "float32"),
        ("y", (spec.batch, spec.out_features), result_type(spec)),
    ]
    grid = ceil_div(spec.out_features, knobs.outputs)
    row = knobs.parts + 1

    def body(x: Any, weight: Any, bias: Any, y: Any) -> None:
        view = View(x, spec.in_features, spec.batch, rows=True)

        def thread(block: Expr, index: Expr) -> None:
            memory = shared(spec.batch * knobs.outputs * row, "parts")
            sums = local(spec.batch, "sums")
            value, factor = local(LANES, "value"), local(LANES, "factor")
            part, own = index % knobs.parts, index // knobs.parts
            output = block * knobs.outputs + own
            unrolled(spec.batch, lambda n: T.buffer_store(sums, constant(0.0), [n]))

            def add(i: Expr) -> None:
                step = i * knobs.parts + part

                def multiply() -> None:
                    copy4(factor, 0, weight, (output * steps + step) * LANES)
                    for image in range(spec.batch):
                        view.load(value, 0, 0, step, image)
                        for lane in range(LANES):
                            total = sums[image] + value[lane] * factor[lane]
                            T.buffer_store(sums, total, [image])

                there = below(step, steps, rounds * knobs.parts)
                when(both(there, below(output, spec.out_features, grid * knobs.outputs)), multiply)

            unrolled(rounds, add)
            for image in range(spec.batch):
                at = (image * knobs.outputs + own) * row + part
                T.buffer_store(memory, sums[image], [at])
            barrier()

            def finish() -> None:
                image, within = index // knobs.outputs, index % knobs.outputs
                last = block * knobs.outputs + within

                def write() -> None:
                    result = add_parts(sums, bias[last], memory, index * row, knobs.parts)
                    result = activate(result, spec.activation, 1)
                    T.buffer_store(y, cast(result, y), [image, last])

                when(below(last, spec.out_features, grid * knobs.outputs), write)

            when(index < spec.batch * knobs.outputs, finish)

        with selected_bounds():
            launch(grid, knobs.outputs * knobs.parts, thread)

    return prim_func(buffers, body)


def add_parts(total: Buffer, bias: Expr, memory: Buffer, first: Expr, parts: int) -> Expr:
    """The bias and the sums of ``parts`` threads, which lie in a row from ``first`` on."""
    T.buffer_store(total, bias, [0])
    unrolled(parts, lambda i: T.buffer_store(total, total[0] + memory[first + i], [0]))
    return total[0]


def pack_weight(
    spec: DenseSpec, knobs: DenseKnobs, weight: np.ndarray, argument: int = 1
) -> np.ndarray:
    """Weight ``(O, I)`` -> 1-D, each row filled up to whole float4 with zeros."""
    whole = np.zeros((spec.out_features, padded(spec.in_features)), weight.dtype)
    whole[:, : spec.in_features] = weight
    return whole.reshape(-1)


class _Dense:
    """So few outputs a block that every multiprocessor has one; warps a part each."""

    name = "cuda-dense"
    knobs_class = DenseKnobs
    build = staticmethod(build)
    pack_weight = staticmethod(pack_weight)

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, DenseSpec) and spec.batch <= MOST_IMAGES

    def analytic(self, spec: DenseSpec, target: TargetSpec) -> DenseKnobs:
        assert target.gpu is not None
        outputs = next((n for n in (1, 2, 4) if n * target.gpu.sms >= spec.out_features), 8)
        # at least two float4 a thread and image; not many threads to add up at the end
        parts = 2 * WARP if outputs < 8 and spec.in_features >= 4 * WARP * LANES else WARP
        return DenseKnobs(outputs, parts)

    def space(self, spec: DenseSpec, target: TargetSpec) -> Iterable[DenseKnobs]:
        return [
            DenseKnobs(outputs, parts)
            for outputs in (1, 2, 4, 8)
            for parts in (WARP, 2 * WARP, 4 * WARP)
            if outputs * parts <= 512
        ]


DENSE: Any = _Dense()
