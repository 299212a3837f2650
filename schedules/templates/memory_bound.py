"""Operators that only move memory: pooling, channel scaling, element-wise, change of layout.

Each is one pass over its data in whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from ..emit import Expr, Registers, activate, constant, loop, prim_func, switch, vector
from ..spec import ElementwiseSpec, LayoutSpec, PoolSpec, ScaleSpec, channel_blocks


@dataclass(frozen=True)
class MemoryKnobs:
    """Knobs of the templates.

    parallel: spread the outer loop over the threads; serial pays for small operators.
    unroll: vectors per iteration of the inner loop, of scaling and element-wise operators.
    """

    parallel: bool = False
    unroll: int = 1


def _unrolled(extent: int, unroll: int, body: Callable[[Expr], None]) -> None:
    """``body(i)`` for i in range(extent), ``unroll`` of them per iteration."""
    full = extent // unroll

    def several(i: Expr) -> None:
        for j in range(unroll):
            body(i * unroll + j)

    if full:
        loop(full, several)
    for i in range(full * unroll, extent):
        body(i)


def _each_block(
    spec: PoolSpec | ScaleSpec | LayoutSpec,
    knobs: MemoryKnobs,
    body: Callable[[Expr, Expr, int], None],
) -> None:
    """``body(image, first channel, block width)`` for every block of the blocked layout."""
    widths = channel_blocks(spec.channels, spec.lanes)
    full = sum(1 for width in widths if width == widths[0])

    def item(k: Expr) -> None:
        image, block = k // len(widths), k % len(widths)
        cases = [(full, lambda: body(image, block * spec.lanes, widths[0]))]
        if full < len(widths):
            cases.append((len(widths), lambda: body(image, block * spec.lanes, widths[-1])))
        switch(block, cases)

    loop(spec.batch * len(widths), item, parallel=knobs.parallel)


def build_pool(spec: PoolSpec, knobs: MemoryKnobs) -> tirx.PrimFunc:
    """Global average pooling; several partial sums hide the latency of the additions."""
    pixels = spec.height * spec.width
    partial = next(n for n in (8, 7, 6, 5, 4, 3, 2, 1) if pixels % n == 0)

    def body(x, y):  # type: ignore[no-untyped-def]
        def block(image: Expr, channel: Expr, width: int) -> None:
            sums = Registers(dict.fromkeys(range(partial), width))
            for i in range(partial):
                sums[i] = constant(0.0, width)

            def step(s: Expr) -> None:
                for i in range(partial):
                    at = channel * pixels + (s * partial + i) * width
                    sums[i] = sums[i] + x[image, vector(at, width)]

            loop(pixels // partial, step)
            total = sums[0]
            for i in range(1, partial):
                total = total + sums[i]
            mean = total / constant(float(pixels), width)
            T.buffer_store(y, mean, [image, vector(channel, width)])

        _each_block(spec, knobs, block)

    shapes = [("x", (spec.batch, spec.channels * pixels)), ("y", (spec.batch, spec.channels))]
    return prim_func(shapes, body)


def build_scale(spec: ScaleSpec, knobs: MemoryKnobs) -> tirx.PrimFunc:
    """Each channel times its factor; the factors of a block stay in one register."""
    pixels = spec.height * spec.width

    def body(x, factor, y):  # type: ignore[no-untyped-def]
        def block(image: Expr, channel: Expr, width: int) -> None:
            def pixel(p: Expr) -> None:
                where = [image, vector(channel * pixels + p * width, width)]
                value = x[tuple(where)] * factor[image, vector(channel, width)]
                T.buffer_store(y, activate(value, spec.activation, width), where)

            _unrolled(pixels, knobs.unroll, pixel)

        _each_block(spec, knobs, block)

    flat = (spec.batch, spec.channels * pixels)
    return prim_func([("x", flat), ("factor", (spec.batch, spec.channels)), ("y", flat)], body)


def build_elementwise(spec: ElementwiseSpec, knobs: MemoryKnobs) -> tirx.PrimFunc:
    """One pass in vectors, and the rest of the elements one by one."""
    size, lanes = spec.size, spec.lanes
    per_item = 256  # vectors: 16 KiB of AVX-512, a worthwhile piece for one thread

    def body(*arguments):  # type: ignore[no-untyped-def]
        flats = [T.decl_buffer((size,), "float32", data=a.data) for a in arguments]
        inputs, y = flats[:-1], flats[-1]

        def piece(at: Expr, width: int) -> None:
            index = vector(at, width)
            value = inputs[0][index]
            if spec.op == "add":
                value = value + inputs[1][index]
            elif spec.op == "multiply":
                value = value * inputs[1][index]
            T.buffer_store(y, activate(value, spec.activation, width), [index])

        full, rest = divmod(size, lanes * per_item)

        def item(i: Expr) -> None:
            _unrolled(per_item, knobs.unroll, lambda j: piece((i * per_item + j) * lanes, lanes))

        if full:
            loop(full, item, parallel=knobs.parallel)
        done = full * per_item * lanes
        if rest // lanes:
            _unrolled(rest // lanes, knobs.unroll, lambda j: piece(done + j * lanes, lanes))
        if rest % lanes:
            piece(done + rest // lanes * lanes, rest % lanes)

    names = ["a", "b"][: spec.operands]
    return prim_func([(name, spec.shape) for name in [*names, "y"]], body)


def build_layout(spec: LayoutSpec, knobs: MemoryKnobs) -> tirx.PrimFunc:
    """NCHW <-> blocked: a transposition of each block; reads or writes of one side are strided."""
    pixels = spec.height * spec.width
    nchw = (spec.batch, spec.channels, spec.height, spec.width)
    flat = (spec.batch, spec.channels * pixels)
    pack = spec.direction == "pack"

    def body(x, y):  # type: ignore[no-untyped-def]
        plain, blocked = (x, y) if pack else (y, x)
        plain = T.decl_buffer(flat, "float32", data=plain.data)

        def block(image: Expr, channel: Expr, width: int) -> None:
            def pixel(p: Expr) -> None:
                strided = [channel * pixels + p + lane * pixels for lane in range(width)]
                together = [channel * pixels + p * width + lane for lane in range(width)]
                for one, other in zip(strided, together, strict=True):
                    if pack:
                        T.buffer_store(blocked, plain[image, one], [image, other])
                    else:
                        T.buffer_store(plain, blocked[image, other], [image, one])

            loop(pixels, pixel)

        _each_block(spec, knobs, block)

    return prim_func([("x", nchw if pack else flat), ("y", flat if pack else nchw)], body)
