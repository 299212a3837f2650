"""The innermost loop of pointwise and dense layers on aarch64.

Idea
----
Activations are blocked by four channels, so one vector register holds four consecutive input
channels of a pixel, and FMLA multiplies a vector of weights by one lane of it: no broadcast loads.
Per block of four input channels a tile of P pixels x V vectors of output channels costs 4*P*V FMLA,
ceil(P/4) + V loads of up to 64 bytes, and 2 more instructions per ``unroll`` blocks:
7x3: 84 + 5, 8x2: 64 + 4, 5x4: 80 + 6, 1x12 (dense): 48 + 13.

Register budget: P*V sums + P inputs + 4 weights, at most 32.
"""

from __future__ import annotations

from dataclasses import dataclass

from .assembly import LANES, VECTOR_BYTES, Assembly, load


@dataclass(frozen=True)
class PointwiseTile:
    """``sums[p, v] += x[b, p, lane] * w[b, lane, v]`` over all blocks ``b`` and their four lanes.

    Inputs of one block are contiguous over the pixels; from block to block the pointer moves by
    ``block_bytes``. Weights are contiguous.
    """

    pixels: int
    vectors: int
    blocks: int
    block_bytes: int
    unroll: int = 2

    @property
    def registers(self) -> int:
        """Vector registers in use."""
        return self.pixels * self.vectors + self.pixels + LANES

    def assembly(self) -> Assembly:
        """Sums in the order (pixel, vector); fixed registers: inputs from v0, weights v28-v31."""
        inputs, weights = list(range(self.pixels)), [28, 29, 30, 31]
        block = load(inputs, "x", "{c0}")
        # Step 1. four weight vectors at a time; Step 2. each times its lane of every pixel
        for first in range(0, LANES * self.vectors, LANES):
            block += load(weights, "w")
            for i, weight in enumerate(weights):
                lane, v = divmod(first + i, self.vectors)
                block += [
                    f"fmla {{s{p * self.vectors + v}}}.4s, v{weight}.4s, v{inputs[p]}.s[{lane}]"
                    for p in range(self.pixels)
                ]
        loops, rest = divmod(self.blocks, self.unroll)
        if loops <= 1:
            loops, rest = 0, self.blocks
        lines: list[str] = []
        if loops:
            lines += [f"mov {{n}}, #{loops}", "1:", *block * self.unroll]
            lines += ["subs {n}, {n}, #1", "b.ne 1b"]
        loaded = LANES * VECTOR_BYTES * ((self.pixels - 1) // LANES)  # before the block's last load
        return Assembly(
            name=(
                f"tvm_mobilenet_pointwise_{self.pixels}x{self.vectors}"
                f"_{self.blocks}x{self.block_bytes}_{self.unroll}"
            ),
            lines=(*lines, *block * rest),
            sums=self.pixels * self.vectors,
            fixed=(*inputs, *weights),
            constants=(self.block_bytes - loaded,),
        )
