"""The loop nest of the matrix product; `gemm` says what it is and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm.tirx.script import builder as T

from ..emit import Buffer, Expr, activate, constant
from .gemm_knobs import GemmKnobs, Problem
from .ir import (
    LANES,
    View,
    at_most,
    barrier,
    below,
    both,
    ceil_div,
    copy4,
    launch,
    load_bias,
    local,
    serial,
    shared,
    unrolled,
    when,
)
from .operands import Operand


@dataclass(frozen=True)
class Kernel:
    """Emits one product; the methods go from the grid to the single output."""

    PADDING: ClassVar[int] = 0  # pixels between the rows of split sums
    problem: Problem
    knobs: GemmKnobs
    operand: Operand
    inputs: tuple[Buffer, ...]
    weight: Buffer
    bias: Buffer
    residual: View | None
    y: View
    activation: Any

    def emit(self) -> None:
        pixel_tiles, channel_tiles = self.problem.tiles(self.knobs)

        def block(index: Expr, thread: Expr) -> None:
            # neighbouring blocks read the same pixels: they meet in L2
            self.block(index // channel_tiles, index % channel_tiles, thread)

        launch(pixel_tiles * channel_tiles, self.knobs.threads, block)

    def block(self, pixel_tile: Expr, channel_tile: Expr, thread: Expr) -> None:
        knobs, stages = self.knobs, self.problem.stages(self.knobs)
        first, second = knobs.halves
        # two buffers and not one: TVM would put a barrier between reading and writing the same
        halves = [shared(first, "even"), *([shared(second, "odd")] if stages > 1 else [])]
        staged_x = local(LANES * knobs.staged[0], "staged_x")
        staged_w = local(LANES * knobs.staged[1], "staged_w")
        sums = local(knobs.thread_pixels * knobs.thread_channels, "sums")
        unrolled(
            knobs.thread_pixels * knobs.thread_channels,
            lambda i: T.buffer_store(sums, constant(0.0), [i]),
        )
        group, lane = thread // knobs.group, thread % knobs.group

        def fetch(stage: Expr) -> None:
            self.fetch(pixel_tile, channel_tile, thread, stage, staged_x, staged_w)

        def put(half: int) -> None:
            self.put(thread, halves[half], 0, staged_x, knobs.tile_pixels)
            self.put(thread, halves[half], knobs.x_floats, staged_w, knobs.tile_channels)
            barrier()

        def multiply(half: int) -> None:
            self.multiply(halves[half], group, lane, sums)

        def step(stage: Expr, half: int) -> None:
            fetch(stage + 1)
            multiply(half)
            put(1 - half)

        fetch(0)
        put(0)

        def two(pair: Expr) -> None:
            step(pair * 2, 0)
            step(pair * 2 + 1, 1)

        pairs, odd = divmod(stages - 1, 2)
        if pairs:
            serial(pairs, two)
        if odd:
            step(pairs * 2, 0)
        multiply(odd)
        if knobs.split > 1:
            self.reduce(halves[0], group, lane, sums)
            self.finish_split(halves[0], pixel_tile, channel_tile, thread)
        else:
            self.finish(pixel_tile, channel_tile, lane, sums)

    def fetch(
        self,
        pixel_tile: Expr,
        channel_tile: Expr,
        thread: Expr,
        stage: Expr,
        staged_x: Buffer,
        staged_w: Buffer,
    ) -> None:
        """One step of both operands from global memory into registers."""
        problem, knobs = self.problem, self.knobs
        blocks = knobs.depth // LANES
        reach = problem.tiles(knobs)[0] * knobs.tile_pixels
        slots = blocks * knobs.tile_pixels

        def x(i: Expr) -> None:
            slot = thread + i * knobs.threads
            pixel = pixel_tile * knobs.tile_pixels + slot % knobs.tile_pixels
            step = stage * blocks + slot // knobs.tile_pixels
            # of pixels past the last nothing is written: reading that one again needs no predicates
            image, within = self.place(at_most(pixel, problem.all_pixels - 1, reach))
            inside = both(
                below(slot, slots, knobs.staged[0] * knobs.threads),
                below(step, problem.steps, problem.stages(knobs) * blocks),
            )
            self.operand.load(self.inputs, staged_x, i * LANES, image, step, within, inside)

        unrolled(knobs.staged[0], x)
        panel = (channel_tile * problem.stages(knobs) + stage) * (knobs.depth * knobs.tile_channels)
        size = blocks * knobs.tile_channels

        def w(i: Expr) -> None:
            slot = thread + i * knobs.threads
            there = below(slot, size, knobs.staged[1] * knobs.threads)
            when(there, lambda: copy4(staged_w, i * LANES, self.weight, panel + slot * LANES))

        unrolled(knobs.staged[1], w)

    def place(self, pixel: Expr) -> tuple[Expr, Expr]:
        """Image and pixel of it, of a pixel of all images."""
        if self.problem.images == 1:
            return 0, pixel
        return pixel // self.problem.pixels, pixel % self.problem.pixels

    def put(self, thread: Expr, memory: Buffer, base: Expr, staged: Buffer, width: int) -> None:
        """The staged values of one operand into shared memory."""
        knobs = self.knobs
        slots = knobs.depth // LANES * width
        count = ceil_div(slots, knobs.threads)

        def one(i: Expr) -> None:
            slot = thread + i * knobs.threads
            there = below(slot, slots, count * knobs.threads)
            when(there, lambda: copy4(memory, base + slot * LANES, staged, i * LANES))

        unrolled(count, one)

    def multiply(self, memory: Buffer, group: Expr, lane: Expr, sums: Buffer) -> None:
        """Add this group's part of one step to the sums."""
        knobs = self.knobs
        rows, columns = knobs.thread_pixels, knobs.thread_channels
        x, w = local(LANES * rows, "x4"), local(columns, "w4")
        first_pixel, first_channel = lane % knobs.pixel_threads, lane // knobs.pixel_threads

        def four(k: Expr) -> None:
            block = k * knobs.split + group

            def pixel(i: Expr) -> None:
                at = block * knobs.tile_pixels + first_pixel + i * knobs.pixel_threads
                copy4(x, i * LANES, memory, at * LANES)

            unrolled(rows, pixel)

            def one(kk: Expr) -> None:
                row = knobs.x_floats + (block * LANES + kk) * knobs.tile_channels

                def channels(j: Expr) -> None:
                    at = (first_channel + j * knobs.channel_threads) * LANES
                    copy4(w, j * LANES, memory, row + at)

                unrolled(columns // LANES, channels)

                def update(i: Expr, j: Expr) -> None:
                    at = i * columns + j
                    T.buffer_store(sums, sums[at] + x[i * LANES + kk] * w[j], [at])

                unrolled(rows, lambda i: unrolled(columns, lambda j: update(i, j)))

            unrolled(LANES, one)

        unrolled(knobs.depth // LANES // knobs.split, four)

    def reduce(self, memory: Buffer, group: Expr, lane: Expr, sums: Buffer) -> None:
        """The groups' sums into shared memory: ``[group][channel block][pixel][4]``."""
        knobs = self.knobs
        first_pixel, first_channel = lane % knobs.pixel_threads, lane // knobs.pixel_threads
        barrier()

        def one(i: Expr, j: Expr) -> None:
            pixel = first_pixel + i * knobs.pixel_threads
            block = first_channel + j * knobs.channel_threads
            at = self.part(group, block, pixel)
            copy4(memory, at, sums, i * knobs.thread_channels + j * LANES)

        blocks = knobs.thread_channels // LANES
        unrolled(knobs.thread_pixels, lambda i: unrolled(blocks, lambda j: one(i, j)))
        barrier()

    def part(self, group: Expr, block: Expr, pixel: Expr) -> Expr:
        """Where a group's four sums of a pixel lie in shared memory."""
        row = group * (self.knobs.tile_channels // LANES) + block
        return (row * (self.knobs.tile_pixels + self.PADDING) + pixel) * LANES

    def finish_split(
        self, memory: Buffer, pixel_tile: Expr, channel_tile: Expr, thread: Expr
    ) -> None:
        """Each thread adds the groups' sums of some outputs and writes these."""
        knobs = self.knobs
        outputs = knobs.tile_pixels * knobs.tile_channels // LANES
        count = ceil_div(outputs, knobs.threads)
        total, part = local(LANES, "total"), local(LANES, "part")

        def one(i: Expr) -> None:
            slot = thread + i * knobs.threads
            pixel, block = slot % knobs.tile_pixels, slot // knobs.tile_pixels

            def output() -> None:
                copy4(total, 0, memory, self.part(0, block, pixel))

                def add(g: Expr) -> None:
                    copy4(part, 0, memory, self.part(g + 1, block, pixel))
                    for lane in range(LANES):
                        T.buffer_store(total, total[lane] + part[lane], [lane])

                unrolled(knobs.split - 1, add)
                self.output(pixel_tile, channel_tile, pixel, block, total, 0)

            when(below(slot, outputs, count * knobs.threads), output)

        unrolled(count, one)

    def finish(self, pixel_tile: Expr, channel_tile: Expr, lane: Expr, sums: Buffer) -> None:
        """Each thread writes its outputs."""
        knobs = self.knobs
        first_pixel, first_channel = lane % knobs.pixel_threads, lane // knobs.pixel_threads

        def one(i: Expr, j: Expr) -> None:
            pixel = first_pixel + i * knobs.pixel_threads
            block = first_channel + j * knobs.channel_threads
            at = i * knobs.thread_channels + j * LANES
            self.output(pixel_tile, channel_tile, pixel, block, sums, at)

        blocks = knobs.thread_channels // LANES
        unrolled(knobs.thread_pixels, lambda i: unrolled(blocks, lambda j: one(i, j)))

    def output(
        self,
        pixel_tile: Expr,
        channel_tile: Expr,
        pixel: Expr,
        block: Expr,
        sums: Buffer,
        at: Expr,
    ) -> None:
        """Bias, residual, activation, and four channels of one pixel to memory."""
        problem, knobs = self.problem, self.knobs
        tiles = problem.tiles(knobs)
        pixel = pixel_tile * knobs.tile_pixels + pixel
        block = channel_tile * (knobs.tile_channels // LANES) + block
        there = both(
            below(pixel, problem.all_pixels, tiles[0] * knobs.tile_pixels),
            below(
                block, ceil_div(problem.channels, LANES), tiles[1] * knobs.tile_channels // LANES
            ),
        )
        image, within = self.place(pixel)
        bias, other, result = (local(LANES, name) for name in ("bias4", "other", "result"))

        def write() -> None:
            load_bias(bias, 0, self.bias, block, problem.channels)
            if self.residual is not None:
                self.residual.load(other, 0, image, block, within)
            for lane in range(LANES):
                value = sums[at + lane] + bias[lane]
                if self.residual is not None:
                    value = value + other[lane]
                T.buffer_store(result, activate(value, self.activation, 1), [lane])
            self.y.store(image, block, within, result, 0)

        when(there, write)
