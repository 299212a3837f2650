"""Each spec as plain scalar loops: its meaning, with unpacked weights, slow and obviously right.

The compiler's graph passes emit these functions; scheduling replaces them. They stay usable as
the reference for one operator: swapping a scheduled function back shows whether it is at fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from .emit import SPEC_ATTR, Expr, activate, constant, prim_func
from .spec import (
    ConvSpec,
    DenseSpec,
    DepthwiseSqueezeSpec,
    ElementwiseSpec,
    ExciteSpec,
    LayoutSpec,
    PoolSpec,
    ScaledSpec,
    ScaleSpec,
    SeparableSpec,
    Spec,
    SqueezeSpec,
    storage,
    to_json,
)

_OPAQUE = 8  # relax's OpPatternKind.kOpaque: FuseOps must leave these functions alone
Shapes = list[tuple[str, tuple[int, ...], str]]  # name, shape, type


def build(spec: Spec) -> tirx.PrimFunc:
    """The plain function of ``spec``, with the spec's JSON as attribute ``SPEC_ATTR``."""
    shapes, body = _WRITERS[type(spec)](spec)
    return prim_func(shapes, body, {SPEC_ATTR: to_json(spec), "op_pattern": _OPAQUE})


def blocked_index(channel: Expr, pixel: Expr, channels: int, pixels: int, lanes: int) -> Expr:
    """Position of (channel, pixel) in the blocked layout with its ragged last block."""
    block = channel // lanes
    width = T.min(lanes, channels - block * lanes)
    return block * (lanes * pixels) + pixel * width + channel % lanes


def _load(buffer: Any, *index: Expr) -> Expr:
    """An element in float32: what arithmetic is done in, whatever memory holds."""
    value = buffer[index]
    return value if buffer.dtype == "float32" else T.Cast("float32", value)


def _store(buffer: Any, value: Expr, index: list[Expr]) -> None:
    value = value if buffer.dtype == "float32" else T.Cast(buffer.dtype, value)
    T.buffer_store(buffer, value, index)


def _conv(spec: ConvSpec):  # type: ignore[no-untyped-def]
    in_pixels = spec.in_height * spec.in_width
    out_height, out_width = spec.out_height, spec.out_width
    out_pixels, per_group = out_height * out_width, spec.in_channels // spec.groups
    nchw = spec.input_layout == "nchw"
    flat = (spec.batch, spec.in_channels * in_pixels)
    out = (spec.batch, spec.out_channels * out_pixels)
    x_shape = (spec.batch, spec.in_channels, spec.in_height, spec.in_width) if nchw else flat
    dtype = storage(spec.precision)
    shapes: Shapes = [
        ("x", x_shape, "float32" if nchw else dtype),
        ("weight", (spec.out_channels, per_group, *spec.kernel), dtype),
        ("bias", (spec.out_channels,), "float32"),
        *([("residual", out, dtype)] if spec.residual else []),
        ("y", out, dtype),
    ]

    def body(x, weight, bias, *rest):  # type: ignore[no-untyped-def]
        y = rest[-1]
        total = T.alloc_buffer((1,), "float32", scope="local")
        with T.grid(spec.batch, spec.out_channels, out_height, out_width) as (n, o, oh, ow):
            T.buffer_store(total, bias[o], [0])
            with T.grid(per_group, *spec.kernel) as (i, kh, kw):
                ih = oh * spec.stride[0] - spec.padding[0] + kh * spec.dilation[0]
                iw = ow * spec.stride[1] - spec.padding[1] + kw * spec.dilation[1]
                inside = tirx.all(ih >= 0, ih < spec.in_height, iw >= 0, iw < spec.in_width)
                with T.If(inside), T.Then():
                    c = o // (spec.out_channels // spec.groups) * per_group + i
                    pixel = ih * spec.in_width + iw
                    at = blocked_index(c, pixel, spec.in_channels, in_pixels, spec.lanes)
                    value = x[n, c, ih, iw] if nchw else _load(x, n, at)
                    product = value * _load(weight, o, i, kh, kw)
                    T.buffer_store(total, total[0] + product, [0])
            pixel = oh * out_width + ow
            where = (n, blocked_index(o, pixel, spec.out_channels, out_pixels, spec.lanes))
            value = total[0] + _load(rest[0], *where) if spec.residual else total[0]
            _store(y, activate(value, spec.activation, 1), list(where))

    return shapes, body


def _separable(spec: SeparableSpec):  # type: ignore[no-untyped-def]
    (x, weight, bias, between), depthwise = _conv(spec.depthwise)
    named = [(f"depthwise_{name}", *rest) for name, *rest in (weight, bias)]
    return _in_turn(([x, *named, between], depthwise), _conv(spec.pointwise))


def _scaled(spec: ScaledSpec):  # type: ignore[no-untyped-def]
    return _in_turn(_scale(spec.scale), _conv(spec.pointwise))


def _in_turn(first, second):  # type: ignore[no-untyped-def]
    """Two operators as one, the second on what the first gives."""
    (*shapes, between), one = first
    (_, *others), two = second

    def body(*buffers):  # type: ignore[no-untyped-def]
        middle = T.alloc_buffer(between[1], between[2])
        one(*buffers[: len(shapes)], middle)
        two(middle, *buffers[len(shapes) :])

    return [*shapes, *others], body


def _dense(spec: DenseSpec):  # type: ignore[no-untyped-def]
    dtype = storage(spec.precision)
    shapes: Shapes = [
        ("x", (spec.batch, spec.in_features), dtype),
        ("weight", (spec.out_features, spec.in_features), dtype),
        ("bias", (spec.out_features,), "float32"),
        ("y", (spec.batch, spec.out_features), "float32" if spec.float32_output else dtype),
    ]

    def body(x, weight, bias, y):  # type: ignore[no-untyped-def]
        total = T.alloc_buffer((1,), "float32", scope="local")
        with T.grid(spec.batch, spec.out_features) as (n, o):
            T.buffer_store(total, bias[o], [0])
            with T.serial(0, spec.in_features) as i:
                T.buffer_store(total, total[0] + _load(x, n, i) * _load(weight, o, i), [0])
            _store(y, activate(total[0], spec.activation, 1), [n, o])

    return shapes, body


def _pool(spec: PoolSpec):  # type: ignore[no-untyped-def]
    pixels = spec.height * spec.width
    dtype = storage(spec.precision)
    shapes: Shapes = [
        ("x", (spec.batch, spec.channels * pixels), dtype),
        ("y", (spec.batch, spec.channels), dtype),
    ]

    def body(x, y):  # type: ignore[no-untyped-def]
        total = T.alloc_buffer((1,), "float32", scope="local")
        with T.grid(spec.batch, spec.channels) as (n, c):
            T.buffer_store(total, constant(0.0), [0])
            with T.serial(0, pixels) as p:
                at = blocked_index(c, p, spec.channels, pixels, spec.lanes)
                T.buffer_store(total, total[0] + _load(x, n, at), [0])
            _store(y, total[0] / constant(float(pixels)), [n, c])

    return shapes, body


def _scale(spec: ScaleSpec):  # type: ignore[no-untyped-def]
    pixels = spec.height * spec.width
    flat = (spec.batch, spec.channels * pixels)
    dtype = storage(spec.precision)
    shapes: Shapes = [
        ("x", flat, dtype),
        ("factor", (spec.batch, spec.channels), dtype),
        ("y", flat, dtype),
    ]

    def body(x, factor, y):  # type: ignore[no-untyped-def]
        with T.grid(spec.batch, spec.channels, pixels) as (n, c, p):
            at = blocked_index(c, p, spec.channels, pixels, spec.lanes)
            scaled = _load(x, n, at) * _load(factor, n, c)
            _store(y, activate(scaled, spec.activation, 1), [n, at])

    return shapes, body


def _squeeze(spec: SqueezeSpec):  # type: ignore[no-untyped-def]
    pool, hidden = spec.pool, spec.dense.out_features
    pixels, dtype = pool.height * pool.width, storage(spec.precision)
    shapes: Shapes = [
        ("x", (pool.batch, pool.channels * pixels), storage(pool.precision)),
        ("weight", (hidden, pool.channels), dtype),
        ("y", (spec.batch, spec.parts * hidden), "float32"),
    ]

    def body(x, weight, y):  # type: ignore[no-untyped-def]
        sums = T.alloc_buffer((pool.channels,), "float32")
        total = T.alloc_buffer((1,), "float32", scope="local")
        with T.grid(pool.batch, spec.chunks) as (n, chunk):
            with T.serial(0, pool.channels) as c:
                T.buffer_store(sums, constant(0.0), [c])
                with T.serial(0, spec.chunk_pixels) as i:
                    p = chunk * spec.chunk_pixels + i
                    with T.If(p < pixels), T.Then():
                        at = blocked_index(c, p, pool.channels, pixels, pool.lanes)
                        T.buffer_store(sums, sums[c] + _load(x, n, at), [c])
            with T.grid(spec.parts // spec.chunks, hidden) as (group, o):
                T.buffer_store(total, constant(0.0), [0])
                with T.serial(0, spec.group) as i:
                    c = group * spec.group + i
                    with T.If(c < pool.channels), T.Then():
                        mean = sums[c] / constant(float(pixels))
                        T.buffer_store(total, total[0] + mean * _load(weight, o, c), [0])
                T.buffer_store(y, total[0], [n, (group * spec.chunks + chunk) * hidden + o])

    return shapes, body


def _depthwise_squeeze(spec: DepthwiseSqueezeSpec):  # type: ignore[no-untyped-def]
    (x, weight, bias, y), depthwise = _conv(spec.depthwise)
    (_, *others), squeeze = _squeeze(spec.squeeze)
    named = [(f"depthwise_{name}", *rest) for name, *rest in (weight, bias)]
    others[-1] = ("sums", *others[-1][1:])

    def body(x, weight, bias, squeezed, sums, y):  # type: ignore[no-untyped-def]
        depthwise(x, weight, bias, y)
        squeeze(y, squeezed, sums)

    return [x, *named, *others, y], body


def _excite(spec: ExciteSpec):  # type: ignore[no-untyped-def]
    (between, *others), dense = _dense(spec.second)
    hidden = spec.first.out_features
    sums = ("sums", (spec.batch, spec.parts * hidden), "float32")

    def body(sums, bias, *rest):  # type: ignore[no-untyped-def]
        middle = T.alloc_buffer(between[1], "float32")
        total = T.alloc_buffer((1,), "float32", scope="local")
        with T.grid(spec.batch, hidden) as (n, o):
            T.buffer_store(total, bias[o], [0])
            with T.serial(0, spec.parts) as part:
                T.buffer_store(total, total[0] + sums[n, part * hidden + o], [0])
            T.buffer_store(middle, activate(total[0], spec.first.activation, 1), [n, o])
        dense(middle, *rest)

    return [sums, ("first_bias", (hidden,), "float32"), *others], body


def _elementwise(spec: ElementwiseSpec):  # type: ignore[no-untyped-def]
    names = ["a", "b"][: spec.operands]

    def body(*buffers):  # type: ignore[no-untyped-def]
        flats = [T.decl_buffer((spec.size,), b.dtype, data=b.data) for b in buffers]
        with T.serial(0, spec.size) as i:
            value = _load(flats[0], i)
            if spec.op == "add":
                value = value + _load(flats[1], i)
            elif spec.op == "multiply":
                value = value * _load(flats[1], i)
            _store(flats[-1], activate(value, spec.activation, 1), [i])

    return [(name, spec.shape, storage(spec.precision)) for name in [*names, "y"]], body


def _layout(spec: LayoutSpec):  # type: ignore[no-untyped-def]
    pixels = spec.height * spec.width
    nchw = (spec.batch, spec.channels, spec.height, spec.width)
    flat = (spec.batch, spec.channels * pixels)
    pack = spec.direction == "pack"

    def body(x, y):  # type: ignore[no-untyped-def]
        with T.grid(*nchw) as (n, c, h, w):
            at = blocked_index(c, h * spec.width + w, spec.channels, pixels, spec.lanes)
            if pack:
                _store(y, x[n, c, h, w], [n, at])
            else:
                T.buffer_store(y, _load(x, n, at), [n, c, h, w])

    outside, inside = (nchw, "float32"), (flat, storage(spec.precision))
    return [("x", *(outside if pack else inside)), ("y", *(inside if pack else outside))], body


_WRITERS: dict[type, Callable[[Any], tuple[Shapes, Callable[..., None]]]] = {
    ConvSpec: _conv,
    SeparableSpec: _separable,
    DenseSpec: _dense,
    PoolSpec: _pool,
    ScaleSpec: _scale,
    ScaledSpec: _scaled,
    SqueezeSpec: _squeeze,
    DepthwiseSqueezeSpec: _depthwise_squeeze,
    ExciteSpec: _excite,
    ElementwiseSpec: _elementwise,
    LayoutSpec: _layout,
}
