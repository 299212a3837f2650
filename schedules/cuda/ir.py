"""What CUDA kernels have in common: the thread grid, four-channel vectors, bounds, the layout.

Layout
------
Activations are blocked by four channels, ``[C/4][H*W][4]`` (see `schedules.spec`). Neighbouring
threads take neighbouring pixels of a block, so that every access of a warp is 32 whole float4 in a
row, whatever the width of the map: 7x7 and 14x14 maps need no case of their own, which NCHW has (a
row is no multiple of four floats) and NHWC with few channels (a warp's float4 lie apart). For
depthwise convolutions a float4 is four independent channels; for matrix products it is four steps
of the reduction for one pixel, which go to shared memory without transposition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from ..emit import Buffer, Expr, constant, splat, vector
from ..plain import blocked_index

LANES = 4  # channels of a block: a float4
WARP = 32


def launch(blocks: int, threads: int, body: Callable[[Expr, Expr], None]) -> None:
    """Run ``body(block, thread)`` on a grid of ``blocks`` x ``threads``."""
    with (
        T.thread_binding(0, blocks, thread="blockIdx.x") as block,
        T.thread_binding(0, threads, thread="threadIdx.x") as thread,
    ):
        body(block, thread)


def local(size: int, name: str, dtype: str = "float32") -> Buffer:
    """A thread's own floats: registers, as every index is a constant once loops are unrolled."""
    return IRBuilder.name(name, T.alloc_buffer((size,), dtype, scope="local"))


def shared(size: int, name: str, dtype: str = "float32") -> Buffer:
    """Floats that the threads of a block share."""
    return IRBuilder.name(name, T.alloc_buffer((size,), dtype, scope="shared"))


def reshaped(buffer: Buffer, shape: tuple[int, ...]) -> Buffer:
    """The same memory under another shape, and the same name in the generated source."""
    view = T.decl_buffer(shape, buffer.dtype, data=buffer.data)
    return IRBuilder.name(f"{buffer.name}_flat", view)


def words_of(buffer: Buffer) -> Buffer:
    """An array of halves as 32-bit words, two halves each."""
    shape = (*buffer.shape[:-1], buffer.shape[-1] // 2)
    return IRBuilder.name(f"{buffer.name}_words", T.decl_buffer(shape, "int32", data=buffer.data))


def barrier() -> None:
    """All threads of the block meet here; what they wrote to shared memory is seen by all."""
    T.evaluate(T.tvm_storage_sync("shared"))


def unrolled(extent: int, body: Callable[[Expr], None]) -> None:
    """``for i in range(extent): body(i)`` as ``#pragma unroll``."""
    if extent == 1:
        body(0)
        return
    with T.unroll(0, extent) as i:
        body(i)


def serial(extent: int, body: Callable[[Expr], None]) -> None:
    """``for i in range(extent): body(i)``."""
    if extent == 1:
        body(0)
        return
    with T.serial(0, extent) as i:
        body(i)


def when(condition: Expr | None, body: Callable[[], None]) -> None:
    """``if (condition) body()``; None: always."""
    if condition is None:
        body()
        return
    with T.If(condition), T.Then():
        body()


def both(*conditions: Expr | None) -> Expr | None:
    """The conjunction; None stands for true."""
    given = [condition for condition in conditions if condition is not None]
    return None if not given else given[0] if len(given) == 1 else tirx.all(*given)


def at_most(value: Expr, most: int, reach: int) -> Expr:
    """The lesser of both; ``value`` itself where its greatest is ``reach - 1`` and no more."""
    return T.min(value, most) if reach > most + 1 else value


def below(index: Expr, bound: int, reach: int) -> Expr | None:
    """``index < bound``; None (true) where the greatest index is ``reach - 1`` anyway."""
    return index < bound if reach > bound else None


def copy4(to: Buffer, at: Expr, source: Buffer, index: Expr) -> None:
    """``to[at:at+4] = source[index:index+4]``, a float4 or four halves, in the type of ``to``."""
    T.buffer_store(to, cast(source[vector(index, LANES)], to, LANES), [vector(at, LANES)])


def cast(value: Expr, to: Buffer, width: int = 1) -> Expr:
    """``value`` in the type of ``to``'s elements, as a vector of ``width``."""
    dtype = to.dtype if width == 1 else f"{to.dtype}x{width}"
    return value if str(value.ty) == dtype else T.Cast(dtype, value)


def zero(buffer: Buffer, width: int = 1) -> Expr:
    """Zeros of a buffer's type."""
    return splat(tirx.const(0.0, buffer.dtype), width)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class View:
    """Four channels at a time of an activation, whatever its layout.

    ``rows`` says that the array is ``[pixel][channel]``, as dense layers have it, and not blocked.
    Where channels are no multiple of four, each of the four is read and written on its own.
    """

    buffer: Buffer
    channels: int
    pixels: int
    rows: bool = False

    @property
    def blocks(self) -> int:
        return ceil_div(self.channels, LANES)

    @property
    def whole(self) -> bool:
        return self.channels % LANES == 0

    def _index(self, image: Expr, channel: Expr, pixel: Expr) -> list[Any]:
        if self.rows:
            return [pixel, channel]
        return [image, blocked_index(channel, pixel, self.channels, self.pixels, LANES)]

    def _whole_index(self, image: Expr, block: Expr, pixel: Expr) -> list[Any]:
        if self.rows:
            return [pixel, vector(block * LANES, LANES)]
        return [image, vector((block * self.pixels + pixel) * LANES, LANES)]

    def load(
        self,
        to: Buffer,
        at: Expr,
        image: Expr,
        block: Expr,
        pixel: Expr,
        inside: Expr | None = None,
    ) -> None:
        """``to[at:at+4]`` = the block's channels at a pixel, zeros where not ``inside``."""
        if self.whole:
            where = self._whole_index(image, block, pixel)
            if inside is not None and self.buffer.dtype == "float16":
                self._load_words(to, at, where, inside)
                return
            value = self.buffer[tuple(where)]
            if inside is not None:
                value = T.if_then_else(inside, value, zero(self.buffer, LANES))
            T.buffer_store(to, cast(value, to, LANES), [vector(at, LANES)])
            return
        for lane in range(LANES):
            channel = block * LANES + lane
            value = self.buffer[tuple(self._index(image, channel, pixel))]
            there = both(inside, channel < self.channels)
            value = T.if_then_else(there, value, zero(self.buffer))
            T.buffer_store(to, cast(value, to), [at + lane])

    def _load_words(self, to: Buffer, at: Expr, where: list[Any], inside: Expr) -> None:
        """Four halves as two words: chosen one by one, NVRTC unpacks and packs each again."""
        first = where[-1].base
        memory = words_of(self.buffer)
        index = (*where[:-1], vector(first // 2, 2))
        value = T.if_then_else(inside, memory[index], splat(tirx.const(0, "int32"), 2))
        if to.dtype == self.buffer.dtype:
            T.buffer_store(words_of(to), value, [vector(at // 2, 2)])
            return
        words = local(2, "words", "int32")
        T.buffer_store(words, value, [vector(0, 2)])
        for word in range(2):
            halves = T.reinterpret("float16x2", words[word])
            T.buffer_store(to, cast(halves, to, 2), [vector(at + 2 * word, 2)])

    def store(self, image: Expr, block: Expr, pixel: Expr, source: Buffer, at: Expr) -> None:
        """The block's channels at a pixel = ``source[at:at+4]``."""
        if self.whole:
            where = self._whole_index(image, block, pixel)
            value = cast(source[vector(at, LANES)], self.buffer, LANES)
            T.buffer_store(self.buffer, value, where)
            return
        for lane in range(LANES):
            channel = block * LANES + lane

            def put(channel: Expr = channel, lane: int = lane) -> None:
                value = cast(source[at + lane], self.buffer)
                T.buffer_store(self.buffer, value, self._index(image, channel, pixel))

            when(channel < self.channels, put)


def load_bias(to: Buffer, at: Expr, bias: Buffer, block: Expr, channels: int) -> None:
    """``to[at:at+4]`` = a block's four values of a ``(channels,)`` array, zeros beyond its end."""
    if channels % LANES == 0:
        copy4(to, at, bias, block * LANES)
        return
    for lane in range(LANES):
        channel = block * LANES + lane
        value = T.if_then_else(channel < channels, bias[channel], constant(0.0))
        T.buffer_store(to, value, [at + lane])


def padded(channels: int) -> int:
    """Channels in whole blocks."""
    return LANES * math.ceil(channels / LANES)
