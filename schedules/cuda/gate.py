"""Squeeze-excite's gate, pooling and two dense layers, in two kernels without atomics.

Idea
----
The first dense layer is a sum over channels, so a block of threads that has pooled a ``group`` of
them also multiplies these means by their columns of the weight and writes its share of all sums
(`SqueezeSpec`). The second kernel (`ExciteSpec`) adds the shares up where it loads its input, in a
fixed order. Every block of it does so again: few shares make that cheap, many fill the GPU in the
first kernel; `gate` weighs both against the launch that is saved.

Squeeze: ``threads / (group / 4)`` threads add up the pixels of four channels, then through shared
memory; a thread has its columns of weights under way meanwhile. The shares are sums over pixels,
too, so that a large map of few channels is cut in ``chunks``. The depthwise convolution before
(`DepthwiseSqueezeSpec`) is computed on the way: the map is written and not read again. Excite: a
dense layer as in `dense`, ``parts`` threads an output, whose weights are under way while the shares
are added.

Registers: ``group`` weights (excite: a few float4) and some 30. Shared memory: four floats a thread
(excite: one, and the hidden layer).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..emit import Expr, activate, constant, prim_func, selected_bounds, vector
from ..spec import (
    ConvSpec,
    DenseSpec,
    DepthwiseSqueezeSpec,
    ExciteSpec,
    PoolSpec,
    Spec,
    SqueezeSpec,
    storage,
    stored_bytes,
)
from .convolution import L2_BYTES_PER_CLOCK, LAUNCH_US, START, depthwise_clocks, memory_clocks
from .dense import MOST_IMAGES, DenseKnobs
from .dense import pack_weight as pack_dense
from .gemm import MIN_BLOCKS, REGISTERS_PER_SM, result_type
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
    serial,
    shared,
    unrolled,
    when,
)
from .operands import Depthwise, pack_depthwise

if TYPE_CHECKING:
    from tvm_mobilenet.targets import GpuSpec, TargetSpec

GROUPS, CHUNKS = (4, 8, 16, 32), (1, 2, 4, 8)  # channels of a block of threads, pieces of a map
BARRIERS = 300  # clocks of the steps through shared memory
# Left alone, ptxas saves registers for blocks that there are not, and has few loads under way.
SQUEEZE_REGISTERS, EXCITE_REGISTERS = 128, 64


@dataclass(frozen=True)
class SqueezeKnobs:
    """``threads`` per block."""

    threads: int = 256


def build_squeeze(spec: SqueezeSpec | DepthwiseSqueezeSpec, knobs: SqueezeKnobs) -> tirx.PrimFunc:
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

    return prim_func(buffers, body, {MIN_BLOCKS: _resident(knobs.threads, SQUEEZE_REGISTERS)})


def pack_squeeze(
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


def build_excite(spec: ExciteSpec, knobs: DenseKnobs) -> tirx.PrimFunc:
    """The PrimFunc ``(shares, bias, weight with whole float4 a row, bias, output)``."""
    hidden, features = spec.first.out_features, spec.second.out_features
    steps, threads = ceil_div(hidden, LANES), knobs.outputs * knobs.parts
    rounds, adders = ceil_div(steps, knobs.parts), ceil_div(steps * LANES, threads)
    spread = max(1, min(spec.parts, threads // hidden))  # threads that add up one sum's shares
    grid = ceil_div(features, knobs.outputs)
    row = knobs.parts + 1  # a float more, against bank conflicts
    buffers = [
        ("sums", (spec.batch, spec.parts * hidden), "float32"),
        ("first_bias", (hidden,), "float32"),
        ("weight", (features * steps * LANES,), storage(spec.precision)),
        ("bias", (features,), "float32"),
        ("y", (spec.batch, features), result_type(spec.second)),
    ]

    def body(shares: Any, first_bias: Any, weight: Any, bias: Any, y: Any) -> None:
        def thread(index: Expr, thread: Expr) -> None:
            image, tile = (0, index) if spec.batch == 1 else (index // grid, index % grid)
            inputs = shared(steps * LANES, "hidden")
            memory = shared(knobs.outputs * row, "parts")
            partial: Any = shared(spread * hidden, "partial") if spread > 1 else None
            factors, value = local(rounds * LANES, "factors"), local(LANES, "value")
            total = local(1, "total")
            part, own = thread % knobs.parts, thread // knobs.parts
            output = tile * knobs.outputs + own

            def there(i: Expr) -> Expr | None:
                return both(
                    below(i * knobs.parts + part, steps, rounds * knobs.parts),
                    below(output, features, grid * knobs.outputs),
                )

            def fetch(i: Expr) -> None:
                at = (output * steps + i * knobs.parts + part) * LANES
                when(there(i), lambda: copy4(factors, i * LANES, weight, at))

            unrolled(rounds, fetch)

            def add_shares(first: Expr, count: int, at: Expr) -> None:
                def share(p: Expr) -> None:
                    number = first + p

                    def one() -> None:
                        value = shares[image, number * hidden + at]
                        T.buffer_store(total, total[0] + value, [0])

                    when(below(number, spec.parts, spread * count), one)

                unrolled(count, share)

            if spread > 1:

                def spread_out() -> None:
                    T.buffer_store(total, constant(0.0), [0])
                    count = ceil_div(spec.parts, spread)
                    add_shares(thread // hidden * count, count, thread % hidden)
                    T.buffer_store(partial, total[0], [thread])

                when(below(thread, spread * hidden, threads), spread_out)
                barrier()

            def add(i: Expr) -> None:
                at = i * threads + thread

                def known() -> None:
                    T.buffer_store(total, first_bias[at], [0])
                    if spread > 1:
                        for group in range(spread):
                            value = partial[group * hidden + at]
                            T.buffer_store(total, total[0] + value, [0])
                    else:
                        add_shares(0, spec.parts, at)
                    result = activate(total[0], spec.first.activation, 1)
                    T.buffer_store(inputs, result, [at])

                if steps * LANES > hidden:  # zeros up to whole float4
                    with T.If(at < hidden):
                        with T.Then():
                            known()
                        with T.Else(), T.If(at < steps * LANES), T.Then():
                            T.buffer_store(inputs, constant(0.0), [at])
                else:
                    when(below(at, hidden, adders * threads), known)

            unrolled(adders, add)
            barrier()
            T.buffer_store(total, constant(0.0), [0])

            def multiply(i: Expr) -> None:
                def four() -> None:
                    copy4(value, 0, inputs, (i * knobs.parts + part) * LANES)
                    for k in range(LANES):
                        product = value[k] * factors[i * LANES + k]
                        T.buffer_store(total, total[0] + product, [0])

                when(there(i), four)

            unrolled(rounds, multiply)
            T.buffer_store(memory, total[0], [own * row + part])
            barrier()

            def finish() -> None:
                last = tile * knobs.outputs + thread

                def write() -> None:
                    T.buffer_store(total, bias[last], [0])

                    def gather(i: Expr) -> None:
                        T.buffer_store(total, total[0] + memory[thread * row + i], [0])

                    unrolled(knobs.parts, gather)
                    result = activate(total[0], spec.second.activation, 1)
                    T.buffer_store(y, cast(result, y), [image, last])

                when(below(last, features, grid * knobs.outputs), write)

            when(thread < knobs.outputs, finish)

        with selected_bounds():
            launch(spec.batch * grid, threads, thread)

    return prim_func(buffers, body, {MIN_BLOCKS: _resident(threads, EXCITE_REGISTERS)})


def pack_excite(
    spec: ExciteSpec, knobs: DenseKnobs, weight: np.ndarray, argument: int = 2
) -> np.ndarray:
    """The second layer's weight, see `dense.pack_weight`."""
    return pack_dense(spec.second, knobs, weight)


class _Squeeze:
    """A block of threads for each group of channels and chunk of the map."""

    name = "cuda-squeeze"
    knobs_class = SqueezeKnobs
    build = staticmethod(build_squeeze)
    pack_weight = staticmethod(pack_squeeze)

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, SqueezeSpec | DepthwiseSqueezeSpec)

    def analytic(self, spec: Any, target: TargetSpec) -> SqueezeKnobs:
        return SqueezeKnobs()

    def space(self, spec: Any, target: TargetSpec) -> Iterable[SqueezeKnobs]:
        return [SqueezeKnobs(threads) for threads in (128, 256, 512)]

    def gate(
        self,
        depthwise: ConvSpec | None,
        pool: PoolSpec,
        first: DenseSpec,
        second: DenseSpec,
        target: TargetSpec,
    ) -> tuple[SqueezeSpec | DepthwiseSqueezeSpec, ExciteSpec] | None:
        """The fastest of all ways by predicted clocks; None: kernels of their own."""
        gpu = target.gpu
        if gpu is None or pool.batch > MOST_IMAGES:  # a matrix product reuses the weights better
            return None
        launch = LAUNCH_US * gpu.clock_mhz
        before = depthwise_clocks(depthwise, target) + launch if depthwise else 0.0
        apart = sum(START + memory_clocks(spec.min_bytes, gpu) for spec in (pool, first, second))
        best, found = before + apart + launch, None
        for group, chunks in product(GROUPS, CHUNKS):
            squeeze = SqueezeSpec(pool, first, group, chunks)
            excite = ExciteSpec(first, second, squeeze.parts)
            for joint in (squeeze, DepthwiseSqueezeSpec(depthwise, squeeze) if depthwise else None):
                if joint is None:
                    continue
                clocks = squeeze_clocks(joint, gpu) + excite_clocks(excite, gpu)
                if joint is squeeze:
                    clocks += before
                if clocks < best:
                    best, found = clocks, (joint, excite)
        return found


class _Excite:
    """So few outputs a block that every multiprocessor has one; a warp an output."""

    name = "cuda-excite"
    knobs_class = DenseKnobs
    build = staticmethod(build_excite)
    pack_weight = staticmethod(pack_excite)

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, ExciteSpec)

    def analytic(self, spec: ExciteSpec, target: TargetSpec) -> DenseKnobs:
        return DenseKnobs(8, WARP)

    def space(self, spec: ExciteSpec, target: TargetSpec) -> Iterable[DenseKnobs]:
        return [
            DenseKnobs(outputs, parts)
            for outputs in (4, 8, 16, 32)
            for parts in (WARP // 2, WARP)
            if 128 <= outputs * parts <= 512
        ]


def _resident(threads: int, registers: int) -> int:
    """Blocks of a multiprocessor that ptxas must leave so many registers a thread for."""
    return max(1, REGISTERS_PER_SM // (threads * registers))


def squeeze_clocks(spec: SqueezeSpec | DepthwiseSqueezeSpec, gpu: GpuSpec) -> float:
    """Clocks of the busiest multiprocessor: reading map and weight, or the taps."""
    taps, stride = 0, 1
    if isinstance(spec, DepthwiseSqueezeSpec):
        taps, stride = math.prod(spec.depthwise.kernel), math.prod(spec.depthwise.stride)
        spec = spec.squeeze
    columns = spec.chunk_pixels * stride + spec.dense.out_features
    width = stored_bytes(spec.precision)  # also passes of a warp's load of four channels
    moved = width * spec.group * columns
    vectors = spec.group // LANES * spec.chunk_pixels
    work = max(moved / L2_BYTES_PER_CLOCK, vectors / WARP * taps * (width + 1))
    return START + BARRIERS + _busiest(spec.batch * spec.parts, gpu) * work


def excite_clocks(spec: ExciteSpec, gpu: GpuSpec) -> float:
    """Clocks of the busiest multiprocessor: every block reads all shares of its image."""
    hidden, outputs = spec.first.out_features, 8
    weights = spec.second.min_bytes / ceil_div(spec.second.out_features, outputs)
    blocks = spec.batch * ceil_div(spec.second.out_features, outputs)
    moved = 4 * spec.parts * hidden + weights
    return START + BARRIERS + _busiest(blocks, gpu) * moved / L2_BYTES_PER_CLOCK


def _busiest(blocks: int, gpu: GpuSpec) -> float:
    """Blocks of one multiprocessor at once; many even out."""
    return ceil_div(blocks, gpu.sms) if blocks <= 4 * gpu.sms else blocks / gpu.sms


SQUEEZE: Any = _Squeeze()
EXCITE: Any = _Excite()
