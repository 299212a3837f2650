"""The loop nest of the matrix product on tensor cores; `tensor_core` says what it is and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm.backend.cuda.op import cuda_func_call
from tvm.tirx.script import builder as T

from ..emit import Buffer, Expr, constant, vector
from .gemm_kernel import Kernel
from .ir import (
    LANES,
    WARP,
    at_most,
    barrier,
    below,
    copy4,
    local,
    serial,
    shared,
    unrolled,
)
from .tensor_core_knobs import FOURS, PADDING, TILE, TensorKnobs

# Values of a 16x16 tile that a lane holds: of two pixels four steps of the reduction, or of two
# channels, or of each product's 16x8 sums four.
HELD = TILE * TILE // WARP

# Both factors lie in memory as a lane needs them (see `tensor_core`). A tile is one product of
# float16, two where the reduction of one is 8 steps: before sm_80, and in tf32.
PRODUCT = {
    "float16": """
__device__ __forceinline__ void multiply_f16(float* sums, const half* x_values,
                                             const half* w_values) {
  const unsigned* x = (const unsigned*)x_values;
  const unsigned* w = (const unsigned*)w_values;
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(x[0]), "r"(x[2]), "r"(x[1]), "r"(x[3]), "r"(w[0]), "r"(w[1]));
#else
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
               "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(x[0]), "r"(x[2]), "r"(w[0]));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
               "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(x[1]), "r"(x[3]), "r"(w[1]));
#endif
}
""",
    "tf32": """
__device__ __forceinline__ void multiply_tf32(float* sums, const float* x_values,
                                              const float* w_values) {
  const unsigned* x = (const unsigned*)x_values;
  const unsigned* w = (const unsigned*)w_values;
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(x[0]), "r"(x[4]), "r"(x[1]), "r"(x[5]), "r"(w[0]), "r"(w[1]));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(x[2]), "r"(x[6]), "r"(x[3]), "r"(x[7]), "r"(w[2]), "r"(w[3]));
}
""",
}
# Tensor cores cut the lower bits off, which errs twice as much as rounding.
ROUND = """
__device__ __forceinline__ float round_to_tf32(float value) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
}
"""


@dataclass(frozen=True)
class TensorKernel(Kernel):
    """Emits one product on tensor cores."""

    PADDING: ClassVar[int] = PADDING
    knobs: TensorKnobs  # type: ignore[assignment]

    @property
    def tf32(self) -> bool:
        return bool(self.weight.dtype == "float32")

    def block(self, pixel_tile: Expr, channel_tile: Expr, thread: Expr) -> None:
        knobs, stages = self.knobs, self.knobs.stages(self.problem)
        dtype = self.weight.dtype
        names = ("even", "odd")[: min(2, stages)]
        maps = [local(knobs.depth * knobs.pixels * HELD, f"x_{n}", dtype) for n in names]
        weights = [local(knobs.depth * knobs.channels * HELD, f"w_{n}", dtype) for n in names]
        sums = local(knobs.sums, "sums")
        unrolled(knobs.sums, lambda i: T.buffer_store(sums, constant(0.0), [i]))
        warp, lane = thread // WARP, thread % WARP
        group, within = warp // knobs.group, warp % knobs.group
        first_pixel = within % knobs.pixel_warps * knobs.pixels  # in tiles
        first_channel = within // knobs.pixel_warps * knobs.channels

        def fetch(stage: Expr, half: int) -> None:
            def one(d: Expr) -> None:
                step = (stage * knobs.depth + d) * knobs.split + group
                self.fetch_x(maps[half], d, step, pixel_tile, first_pixel, lane)
                self.fetch_w(weights[half], d, step, channel_tile, first_channel, lane)

            unrolled(knobs.depth, one)

        def step(stage: Expr, half: int) -> None:
            fetch(stage + 1, 1 - half)
            self.products(maps[half], weights[half], sums)

        fetch(0, 0)

        def two(pair: Expr) -> None:
            step(pair * 2, 0)
            step(pair * 2 + 1, 1)

        pairs, odd = divmod(stages - 1, 2)
        if pairs:
            serial(pairs, two)
        if odd:
            step(pairs * 2, 0)
        self.products(maps[odd], weights[odd], sums)
        if knobs.split == 1:
            self.results(
                first_pixel,
                first_channel,
                lane,
                sums,
                lambda pixel, block, four: self.output(
                    pixel_tile, channel_tile, pixel, block, four, 0
                ),
            )
            return
        memory = shared(knobs.shared_floats, "parts")

        def put(pixel: Expr, block: Expr, four: Buffer) -> None:
            copy4(memory, self.part(group, block, pixel), four, 0)

        self.results(first_pixel, first_channel, lane, sums, put)
        barrier()
        self.finish_split(memory, pixel_tile, channel_tile, thread)

    def fetch_x(
        self, to: Buffer, d: Expr, step: Expr, pixel_tile: Expr, first: Expr, lane: Expr
    ) -> None:
        """A lane's values of the map for one step: of pixels 8 apart, four of the reduction."""
        problem, knobs = self.problem, self.knobs
        reach = problem.tiles(knobs)[0] * knobs.tile_pixels
        four = step * FOURS + lane % FOURS

        def one(i: Expr, half: Expr) -> None:
            pixel = self.pixel(first, i, half, lane) + pixel_tile * knobs.tile_pixels
            inside = below(four, problem.steps, knobs.steps(problem) * FOURS)
            # of pixels past the last nothing is written: reading that one again needs no predicates
            image, within = self.place(at_most(pixel, problem.all_pixels - 1, reach))
            at = (d * knobs.pixels + i) * HELD + half * LANES
            self.operand.load(self.inputs, to, at, image, four, within, inside)

        unrolled(knobs.pixels, lambda i: unrolled(2, lambda half: one(i, half)))

    def fetch_w(
        self, to: Buffer, d: Expr, step: Expr, channel_tile: Expr, first: Expr, lane: Expr
    ) -> None:
        """A lane's weights for one step: 16 bytes a load, a warp's in a row."""
        knobs = self.knobs
        width = LANES if self.tf32 else 2 * LANES
        tiles = knobs.channels * knobs.channel_warps
        panel = (channel_tile * knobs.steps(self.problem) + step) * tiles + first

        def one(j: Expr, part: Expr) -> None:
            at = (d * knobs.channels + j) * HELD + part * width
            index = (panel + j) * (TILE * TILE) + (part * WARP + lane) * width
            T.buffer_store(to, self.weight[vector(index, width)], [vector(at, width)])

        parts = HELD // width
        unrolled(knobs.channels, lambda j: unrolled(parts, lambda part: one(j, part)))

    def products(self, x: Buffer, w: Buffer, sums: Buffer) -> None:
        """Add one stage to the sums."""
        knobs = self.knobs
        precision = "tf32" if self.tf32 else "float16"
        name = "multiply_tf32" if self.tf32 else "multiply_f16"

        def rounded(i: Expr) -> None:
            value = cuda_func_call("round_to_tf32", x[i], source_code=ROUND, return_type="float32")
            T.buffer_store(x, value, [i])

        def product(d: Expr, i: Expr, j: Expr, half: Expr) -> None:
            T.evaluate(
                cuda_func_call(
                    name,
                    T.address_of(sums[((i * knobs.channels + j) * 2 + half) * LANES]),
                    T.address_of(x[(d * knobs.pixels + i) * HELD]),
                    T.address_of(w[(d * knobs.channels + j) * HELD + half * LANES]),
                    source_code=PRODUCT[precision],
                )
            )

        def tile(d: Expr, i: Expr, j: Expr) -> None:
            unrolled(2, lambda half: product(d, i, j, half))

        def row(d: Expr, i: Expr) -> None:
            unrolled(knobs.channels, lambda j: tile(d, i, j))

        if self.tf32:
            unrolled(knobs.depth * knobs.pixels * HELD, rounded)
        unrolled(knobs.depth, lambda d: unrolled(knobs.pixels, lambda i: row(d, i)))

    @staticmethod
    def pixel(first: Expr, i: Expr, half: Expr, lane: Expr) -> Expr:
        """The block's pixel of a lane's half of the warp's tile ``i``."""
        return (first + i) * TILE + half * (TILE // 2) + lane // FOURS

    def results(
        self, first_pixel: Expr, first_channel: Expr, lane: Expr, sums: Buffer, use: Any
    ) -> None:
        """``use(pixel, channel block, buffer of four)`` for all that a lane has sums of."""
        knobs = self.knobs
        four = local(LANES, "four")

        def one(i: Expr, j: Expr, half: Expr) -> None:
            for product in range(2):
                for column in range(2):
                    at = ((i * knobs.channels + j) * 2 + product) * LANES + half * 2 + column
                    T.buffer_store(four, sums[at], [product * 2 + column])
            block = (first_channel + j) * FOURS + lane % FOURS
            use(self.pixel(first_pixel, i, half, lane), block, four)

        def row(i: Expr, j: Expr) -> None:
            unrolled(2, lambda half: one(i, j, half))

        unrolled(knobs.pixels, lambda i: unrolled(knobs.channels, lambda j: row(i, j)))
