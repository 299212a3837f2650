"""Pooling, channel scaling, element-wise operators and changes of layout.

One pass over memory: a thread per four channels of a pixel (a thread per element where layouts
change), neighbouring threads on neighbouring pixels. Pooling shares the pixels of a channel block
out to ``WARP`` threads, which add up through shared memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script import builder as T

from ..emit import Expr, activate, constant, prim_func, selected_bounds, vector
from ..plain import blocked_index
from ..spec import ElementwiseSpec, LayoutSpec, PoolSpec, ScaleSpec, Spec, storage
from .ir import (
    LANES,
    WARP,
    View,
    barrier,
    below,
    cast,
    ceil_div,
    copy4,
    launch,
    local,
    reshaped,
    serial,
    shared,
    when,
)

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec


@dataclass(frozen=True)
class MemoryKnobs:
    """``threads`` per block."""

    threads: int = 128


def _each(items: int, knobs: MemoryKnobs, body: Callable[[Expr], None]) -> None:
    """``body(item)`` in a thread of its own for every item."""
    grid = ceil_div(items, knobs.threads)

    def thread(block: Expr, thread: Expr) -> None:
        item = block * knobs.threads + thread
        when(below(item, items, grid * knobs.threads), lambda: body(item))

    with selected_bounds():
        launch(grid, knobs.threads, thread)


def build_scale(spec: ScaleSpec, knobs: MemoryKnobs) -> tirx.PrimFunc:
    """Each channel times its factor."""
    pixels = spec.height * spec.width
    flat = (spec.batch, spec.channels * pixels)
    blocks = ceil_div(spec.channels, LANES)

    def body(x: Any, factor: Any, y: Any) -> None:
        def item(index: Expr) -> None:
            pixel, outer = index % pixels, index // pixels
            image, block = (0, outer) if spec.batch == 1 else (outer // blocks, outer % blocks)
            value, factors = local(LANES, "value"), local(LANES, "factors")
            View(x, spec.channels, pixels).load(value, 0, image, block, pixel)
            View(factor, spec.channels, 1).load(factors, 0, image, block, 0)
            for lane in range(LANES):
                scaled = activate(value[lane] * factors[lane], spec.activation, 1)
                T.buffer_store(value, scaled, [lane])
            View(y, spec.channels, pixels).store(image, block, pixel, value, 0)

        _each(spec.batch * blocks * pixels, knobs, item)

    dtype = storage(spec.precision)
    factors = ("factor", (spec.batch, spec.channels), dtype)
    return prim_func([("x", flat, dtype), factors, ("y", flat, dtype)], body)


def build_elementwise(spec: ElementwiseSpec, knobs: MemoryKnobs) -> tirx.PrimFunc:
    """``activation(a op b)``, a float4 a thread where the size is a multiple of four."""
    width = LANES if spec.size % LANES == 0 else 1

    def body(*buffers: Any) -> None:
        flats = [reshaped(b, (spec.size,)) for b in buffers]

        def item(index: Expr) -> None:
            at = vector(index * width, width)
            first, second = local(width, "first"), local(width, "second")
            T.buffer_store(first, cast(flats[0][at], first, width), [vector(0, width)])
            if spec.operands == 2:
                T.buffer_store(second, cast(flats[1][at], second, width), [vector(0, width)])
            for lane in range(width):
                value = first[lane]
                if spec.op == "add":
                    value = value + second[lane]
                elif spec.op == "multiply":
                    value = value * second[lane]
                T.buffer_store(first, activate(value, spec.activation, 1), [lane])
            T.buffer_store(flats[-1], cast(first[vector(0, width)], flats[-1], width), [at])

        _each(spec.size // width, knobs, item)

    names = ["a", "b"][: spec.operands]
    dtype = storage(spec.precision)
    return prim_func([(name, spec.shape, dtype) for name in [*names, "y"]], body)


def build_layout(spec: LayoutSpec, knobs: MemoryKnobs) -> tirx.PrimFunc:
    """NCHW to blocked or back: a thread per element, in the order of the side that is written."""
    pixels = spec.height * spec.width
    nchw = (spec.batch, spec.channels, spec.height, spec.width)
    flat = (spec.batch, spec.channels * pixels)
    pack = spec.direction == "pack"

    def body(x: Any, y: Any) -> None:
        planes = x if pack else y
        planes = reshaped(planes, (spec.batch, spec.channels, pixels))

        def item(index: Expr) -> None:
            if pack and spec.channels % LANES == 0:
                lane, pixel = index % LANES, index // LANES % pixels
                outer = index // (LANES * pixels)
                blocks = spec.channels // LANES
                image, channel = outer // blocks, outer % blocks * LANES + lane
            else:
                pixel, outer = index % pixels, index // pixels
                image, channel = outer // spec.channels, outer % spec.channels
            at = blocked_index(channel, pixel, spec.channels, pixels, LANES)
            if pack:
                T.buffer_store(y, cast(planes[image, channel, pixel], y), [image, at])
            else:
                value = cast(x[image, at], planes)
                T.buffer_store(planes, value, [image, channel, pixel])

        _each(spec.batch * spec.channels * pixels, knobs, item)

    outside, inside = (nchw, "float32"), (flat, storage(spec.precision))
    buffers = ("x", *(outside if pack else inside)), ("y", *(inside if pack else outside))
    return prim_func(buffers, body)


def build_pool(spec: PoolSpec, knobs: MemoryKnobs) -> tirx.PrimFunc:
    """Global average pooling: a warp's worth of threads per channel block."""
    pixels = spec.height * spec.width
    blocks = ceil_div(spec.channels, LANES)
    items, per_block = spec.batch * blocks, knobs.threads // WARP
    grid = ceil_div(items, per_block)
    rounds = ceil_div(pixels, WARP)

    def body(x: Any, y: Any) -> None:
        view = View(x, spec.channels, pixels)

        def thread(block_index: Expr, thread_index: Expr) -> None:
            memory = shared(knobs.threads * LANES, "parts")
            sums, value = local(LANES, "sums"), local(LANES, "value")
            # the sums of one channel block lie per_block apart: no bank conflict when they are read
            item = block_index * per_block + thread_index % per_block
            item_at = block_index * per_block + thread_index // WARP
            lane_index = thread_index % WARP
            image, block = item_at // blocks, item_at % blocks
            T.buffer_store(sums, constant(0.0, LANES), [vector(0, LANES)])

            def add(i: Expr) -> None:
                pixel = i * WARP + lane_index

                def one() -> None:
                    view.load(value, 0, image, block, pixel)
                    for lane in range(LANES):
                        T.buffer_store(sums, sums[lane] + value[lane], [lane])

                when(below(pixel, pixels, rounds * WARP), one)

            there = below(item_at, items, grid * per_block)
            when(there, lambda: serial(rounds, add))
            at = (lane_index * per_block + thread_index // WARP) * LANES
            copy4(memory, at, sums, 0)
            barrier()

            def finish() -> None:
                T.buffer_store(sums, constant(0.0, LANES), [vector(0, LANES)])

                def part(i: Expr) -> None:
                    copy4(value, 0, memory, (i * per_block + thread_index) * LANES)
                    for lane in range(LANES):
                        T.buffer_store(sums, sums[lane] + value[lane], [lane])

                with T.unroll(0, WARP) as i:
                    part(i)
                for lane in range(LANES):
                    T.buffer_store(sums, sums[lane] / constant(float(pixels)), [lane])
                View(y, spec.channels, 1).store(item // blocks, item % blocks, 0, sums, 0)

            last = below(item, items, grid * per_block)
            first = thread_index < per_block
            when(first if last is None else tirx.all(first, last), finish)

        launch(grid, knobs.threads, thread)

    dtype = storage(spec.precision)
    x_shape, y_shape = (spec.batch, spec.channels * pixels), (spec.batch, spec.channels)
    return prim_func([("x", x_shape, dtype), ("y", y_shape, dtype)], body)


@dataclass(frozen=True)
class MemoryBound:
    """One pass over memory: the only choice is the size of a block of threads."""

    name: str
    spec_class: type
    build: Callable[..., Any]
    knobs_class: type = MemoryKnobs

    def takes(self, spec: Spec, target: TargetSpec) -> bool:
        return isinstance(spec, self.spec_class)

    def analytic(self, spec: Any, target: TargetSpec) -> MemoryKnobs:
        return MemoryKnobs()

    def space(self, spec: Any, target: TargetSpec) -> Iterable[MemoryKnobs]:
        return [MemoryKnobs(threads) for threads in (64, 128, 256)]


POOL: Any = MemoryBound("cuda-pool", PoolSpec, build_pool)
SCALE: Any = MemoryBound("cuda-scale", ScaleSpec, build_scale)
ELEMENTWISE: Any = MemoryBound("cuda-elementwise", ElementwiseSpec, build_elementwise)
LAYOUT: Any = MemoryBound("cuda-layout", LayoutSpec, build_layout)
