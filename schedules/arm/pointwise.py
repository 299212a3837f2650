"""The innermost loop of pointwise and dense layers on aarch64.

Idea
----
Activations are blocked by four channels, so one vector register holds four consecutive input
channels of a pixel, and FMLA multiplies a vector of weights by one lane of it: no broadcast loads.
Per block of four input channels a tile of P pixels x V vectors of output channels costs 4*P*V FMLA,
ceil(P/4) + V loads of up to 64 bytes, and 2 more instructions per ``unroll`` blocks:
7x3: 84 + 5, 8x2: 64 + 4, 5x4: 80 + 6, 1x12 (dense): 48 + 13.

With ``early``, for cores that wait for each instruction's operands in program order, every register
is loaded by an instruction of its own among the FMLAs before those that use it: weights as many
vectors ahead as registers are free (3 in 7x3, 15 in 1x12), the next block's inputs as soon as the
last lane of each register is used. Addresses are offsets: one ADD a pointer and block.

Register budget: P*V sums + P inputs + 4 weights, at most 32.

llvm-mca, of the cycles that the FMLAs alone take: 7x3, 8x2 and 5x4 100 % on Cortex-A72 and Neoverse
N1; 1x12 (dense) 98 and 96 %.
"""

from __future__ import annotations

from dataclasses import dataclass

from .assembly import LANES, VECTOR_BYTES, Assembly, interleave, load, load_apart


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
    early: bool = False

    @property
    def registers(self) -> int:
        """Vector registers in use."""
        return self.pixels * self.vectors + self.pixels + LANES

    def assembly(self) -> Assembly:
        """Sums in the order (pixel, vector); fixed registers: inputs from v0, weights v28-v31."""
        before, block, last = self._early() if self.early else ([], self._block(), [])
        loops, rest = divmod(self.blocks - bool(last), self.unroll)
        if loops <= 1:
            loops, rest = 0, self.blocks - bool(last)
        lines = [*before, *block * rest]
        if loops:
            lines += [f"mov {{n}}, #{loops}", "1:", *block * self.unroll]
            lines += ["subs {n}, {n}, #1", "b.ne 1b"]
        moved = LANES * VECTOR_BYTES * ((self.pixels - 1) // LANES)  # before a block's last load
        return Assembly(
            name=(
                f"tvm_mobilenet_pointwise_{self.pixels}x{self.vectors}"
                f"_{self.blocks}x{self.block_bytes}_{self.unroll}{'_early' * self.early}"
            ),
            lines=(*lines, *last),
            sums=self.pixels * self.vectors,
            fixed=(*self._inputs, *self._weights),
            constants=(self.block_bytes - (0 if self.early else moved),),
        )

    @property
    def _inputs(self) -> list[int]:
        return list(range(self.pixels))

    @property
    def _weights(self) -> list[int]:
        """Registers of weights, which take turns in equal parts of a block."""
        free = 32 - self.pixels * self.vectors - self.pixels
        per_block = LANES * self.vectors
        number = max(n for n in range(LANES, max(free, LANES) + 1) if per_block % n == 0)
        return list(range(32 - (number if self.early else LANES), 32))

    def _products(self, i: int) -> list[str]:
        """The i-th weight vector of a block, times its lane of every pixel."""
        lane, v = divmod(i, self.vectors)
        weight = self._weights[i % len(self._weights)]
        return [
            f"fmla {{s{p * self.vectors + v}}}.4s, v{weight}.4s, v{p}.s[{lane}]"
            for p in self._inputs
        ]

    def _block(self) -> list[str]:
        """One block of four input channels: inputs, then four weight vectors at a time."""
        lines = load(self._inputs, "x", "{c0}")
        for first in range(0, LANES * self.vectors, LANES):
            lines += load(self._weights, "w")
            for i in range(first, first + LANES):
                lines += self._products(i)
        return lines

    def _early(self) -> tuple[list[str], list[str], list[str]]:
        """What stands before the first block, a block, and the last, which loads nothing ahead."""
        weights = self._weights
        n, ahead = LANES * self.vectors, len(weights) - 1
        inputs = load_apart(self._inputs, "x")
        next_inputs = "add {x}, {x}, {c0}"
        block: list[str] = []
        last: list[str] = []
        for i in range(n):
            weight = load_apart(
                [weights[(i + ahead) % len(weights)]], "w", VECTOR_BYTES * (i + ahead)
            )
            first, *others = self._products(i)
            if i < n - 1:
                block += [first, *weight, *others]
            else:  # an input register is free once its last product is issued
                block += [*interleave([first, *others], inputs), *weight]
            last += [first, *(weight if i + ahead < n else []), *others]
        block += [next_inputs, f"add {{w}}, {{w}}, #{VECTOR_BYTES * n}"]
        return [*inputs, next_inputs, *load_apart(weights[:ahead], "w")], block, last
