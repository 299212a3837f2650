"""Pooling and its share in a dense layer: the first kernel of squeeze-excite's gate.

Idea
----
A dense layer is a sum over channels, so a block of threads that has pooled a ``group`` of them also
multiplies these means by their columns of the weight and writes its share of all sums; the next
kernel (`excite`) adds the shares up, in a fixed order, without atomics. The shares are sums over
pixels, too, so that a large map of few channels is cut in ``chunks``. The depthwise convolution
before (`DepthwiseSqueezeSpec`) is computed on the way: the map is written and not read again.

``threads / (group / 4)`` threads add up the pixels of four channels, then through shared memory; a
thread has its columns of weights under way meanwhile.

Registers: ``group`` weights, with a convolution its taps, and some 30. Shared memory: four floats a
thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..emit import Expr, constant, prim_func, selected_bounds, vector
from ..spec import DepthwiseSqueezeSpec, SqueezeSpec, storage
from .gemm import MIN_BLOCKS, REGISTERS_PER_SM
from .ir import (
    LANES,
    View,
    barrier,
    below,
    both,
    ceil_div,
    copy4,
    launch,
    local,
    serial,
    shared,
    unrolled,
    when,
)
from .operands import Depthwise, pack_depthwise

# Of a thread. Left alone, ptxas saves them for blocks that there are not, and spills some.
REGISTERS = 128


@dataclass(frozen=True)
class SqueezeKnobs:
    """``threads`` per block."""

    threads: int = 256


def build(spec: SqueezeSpec | DepthwiseSqueezeSpec, knobs: SqueezeKnobs) -> tirx.PrimFunc:
    """The PrimFunc ``(map, weight [part][channel block][output][4], output)``.

    Of a joint one ``(the convolution's input, packed weight, bias, weight, sums, its output)``.
    """
    convolution = spec.depthwise if isinstance(spec, DepthwiseSqueezeSpec) else None
    spec = spec.squeeze if isinstance(spec, DepthwiseSqueezeSpec) else spec
    pixels, hidden, group = spec.pool.height * spec.pool.width, spec.dense.out_features, spec.group
    blocks, own_blocks = ceil_div(spec.pool.channels, LANES), group // LANES
    lanes = knobs.threads // own_blocks  # threads of a channel block
    rounds, outputs = ceil_div(spec.chunk_pixels, lanes), ceil_div(hidden, knobs.threads)
    pieces = min(knobs.threads // group, 16)  # in which a channel's sums are added up
    each = lanes // pieces
    dtype = storage(spec.precision)
    mapped = ("x", (spec.batch, spec.pool.channels * pixels), dtype)
    operand = Depthwise(convolution) if convolution else None
    buffers = [
        *(operand.buffers if operand else [mapped]),
        ("weight", (spec.parts // spec.chunks * group * hidden,), dtype),
        ("sums", (spec.batch, spec.parts * hidden), "float32"),
        *([("y", *mapped[1:])] if operand else []),
    ]

    def body(*arguments: Any) -> None:
        inputs = arguments[: len(operand.buffers) if operand else 1]
        weight, shares, *_ = arguments[len(inputs) :]
        view = View(arguments[-1 if operand else 0], spec.pool.channels, pixels)

        def thread(index: Expr, thread: Expr) -> None:
            parts = spec.parts
            image, part = (0, index) if spec.batch == 1 else (index // parts, index % parts)
            channel_group, chunk = part // spec.chunks, part % spec.chunks
            memory, gathered = shared(lanes * group, "lane_sums"), shared(pieces * group, "pieces")
            means = shared(group, "means")
            sums, value = local(LANES, "sum4"), local(LANES, "value")
            factors = local(outputs * group, "factors")
            total = local(1, "total")
            lane, own = thread % lanes, thread // lanes
            block = channel_group * own_blocks + own

            def output(i: Expr) -> Expr:
                return i * knobs.threads + thread

            def written(i: Expr) -> Expr | None:
                return below(output(i), hidden, outputs * knobs.threads)

            def fetch(i: Expr) -> None:
                def four(b: Expr) -> None:
                    at = ((channel_group * own_blocks + b) * hidden + output(i)) * LANES
                    copy4(factors, (i * own_blocks + b) * LANES, weight, at)

                when(written(i), lambda: unrolled(own_blocks, four))

            unrolled(outputs, fetch)
            T.buffer_store(sums, constant(0.0, LANES), [vector(0, LANES)])

            def add(i: Expr) -> None:
                within = i * lanes + lane
                pixel = chunk * spec.chunk_pixels + within

                def one() -> None:
                    if operand:
                        operand.load(inputs, value, 0, image, block, pixel, None)
                        view.store(image, block, pixel, value, 0)
                    else:
                        view.load(value, 0, image, block, pixel)
                    for k in range(LANES):
                        T.buffer_store(sums, sums[k] + value[k], [k])

                inside = both(
                    below(within, spec.chunk_pixels, rounds * lanes),
                    below(pixel, pixels, spec.chunks * spec.chunk_pixels),
                )
                when(inside, one)

            there = below(block, blocks, spec.parts // spec.chunks * own_blocks)
            when(there, lambda: serial(rounds, add))
            copy4(memory, lane * group + own * LANES, sums, 0)
            barrier()
            channel, piece = thread % group, thread // group

            def gather(count: int, at: Callable[[Expr], Expr], source: Any) -> None:
                T.buffer_store(total, constant(0.0), [0])
                unrolled(count, lambda i: T.buffer_store(total, total[0] + source[at(i)], [0]))

            def first() -> None:
                gather(each, lambda i: (i * pieces + piece) * group + channel, memory)
                T.buffer_store(gathered, total[0], [thread])

            when(below(thread, pieces * group, knobs.threads), first)
            barrier()

            def second() -> None:
                gather(pieces, lambda i: i * group + thread, gathered)
                T.buffer_store(means, total[0] / constant(float(pixels)), [thread])

            when(thread < group, second)
            barrier()

            def write(i: Expr) -> None:
                T.buffer_store(total, constant(0.0), [0])

                def four(b: Expr) -> None:
                    copy4(value, 0, means, b * LANES)
                    for k in range(LANES):
                        product = value[k] * factors[(i * own_blocks + b) * LANES + k]
                        T.buffer_store(total, total[0] + product, [0])

                def put() -> None:
                    unrolled(own_blocks, four)
                    T.buffer_store(shares, total[0], [image, part * hidden + output(i)])

                when(written(i), put)

            unrolled(outputs, write)

        with selected_bounds():
            launch(spec.batch * spec.parts, knobs.threads, thread)

    return prim_func(
        buffers, body, {MIN_BLOCKS: max(1, REGISTERS_PER_SM // (knobs.threads * REGISTERS))}
    )


def pack_weight(
    spec: SqueezeSpec | DepthwiseSqueezeSpec,
    knobs: SqueezeKnobs,
    weight: np.ndarray,
    argument: int = 1,
) -> np.ndarray:
    """Weight ``(H, C)`` -> ``[group][channel block][output][4]``, channels filled up with zeros.

    A joint operator's depthwise weight (argument 1) as `pack_depthwise` has it.
    """
    if isinstance(spec, DepthwiseSqueezeSpec):
        if argument == 1:
            return pack_depthwise(weight)
        spec = spec.squeeze
    hidden, channels = weight.shape
    whole = np.zeros((hidden, spec.parts // spec.chunks * spec.group), weight.dtype)
    whole[:, :channels] = weight
    return np.ascontiguousarray(whole.reshape(hidden, -1, LANES).transpose(1, 0, 2)).reshape(-1)
