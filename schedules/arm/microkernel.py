"""The innermost loop of a NEON convolution, in assembly: register tile += inputs x weights.

Idea
----
Activations are blocked by four channels, so one vector register holds four consecutive input
channels of a pixel, and FMLA multiplies a vector of weights by one lane of it: no broadcast loads.
``LD1`` with four registers and post-increment loads 64 bytes and moves the pointer in a single
instruction, which LLVM does not form from plain vector code: it takes LDP and additions. Per block
of four input channels a tile of P pixels x V vectors of output channels costs 4*P*V FMLA,
ceil(P/4) + V loads, and 2 more instructions per ``unroll`` blocks: 7x3: 84 + 5, 8x2: 64 + 4.

Register budget: P*V sums + P inputs + 4 weights, at most 32.
"""

from __future__ import annotations

from dataclasses import dataclass

LANES = 4
VECTOR_BYTES = 16


@dataclass(frozen=True)
class Microkernel:
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
    def name(self) -> str:
        return (
            f"tvm_mobilenet_neon_{self.pixels}x{self.vectors}"
            f"_{self.blocks}x{self.block_bytes}_{self.unroll}"
        )

    @property
    def registers(self) -> int:
        """Vector registers in use."""
        return self.pixels * self.vectors + self.pixels + 4

    def assembly(self) -> list[str]:
        """Instructions; ``$0...`` are the sums, then x, weights, counter and x's step."""
        n_sums = self.pixels * self.vectors
        x, w, counter, step = (f"${n_sums + i}" for i in range(4))
        loops, rest = divmod(self.blocks, self.unroll)
        if loops <= 1:
            loops, rest = 0, self.blocks
        block = self._block(x, w, step)
        lines = []
        if loops:
            lines += [f"mov {counter}, #{loops}", "1:", *block * self.unroll]
            lines += [f"subs {counter}, {counter}, #1", "b.ne 1b"]
        return lines + block * rest

    def _block(self, x: str, w: str, step: str) -> list[str]:
        """One block of four input channels."""
        inputs = [f"v{p}" for p in range(self.pixels)]
        weights = [f"v{i}" for i in range(28, 32)]
        lines = []
        for start in range(0, self.pixels, 4):
            some = inputs[start : start + 4]
            last = start + 4 >= self.pixels
            lines.append(f"ld1 {_list(some)}, [{x}], {step if last else '#64'}")
        # Step 1. four weight vectors at a time; Step 2. each times its lane of every pixel
        for first in range(0, 4 * self.vectors, 4):
            lines.append(f"ld1 {_list(weights)}, [{w}], #64")
            for i, weight in enumerate(weights):
                lane, v = divmod(first + i, self.vectors)
                lines += [
                    f"fmla ${p * self.vectors + v}.4s, {weight}.4s, {inputs[p]}.s[{lane}]"
                    for p in range(self.pixels)
                ]
        return lines

    def llvm(self) -> str:
        """LLVM IR of a function ``void(x, weights, sums...)`` of pointers, to be inlined."""
        n_sums = self.pixels * self.vectors
        step = self.block_bytes - VECTOR_BYTES * 4 * ((self.pixels - 1) // 4)
        fixed = [*range(self.pixels), *range(28, 32)]
        parameters = ", ".join(["ptr %x", "ptr %w", *(f"ptr %p{i}" for i in range(n_sums))])
        result = ", ".join(["<4 x float>"] * n_sums + ["ptr", "ptr", "i64"])
        constraints = ",".join(
            [
                *["=w"] * n_sums,
                *["=&r"] * 3,
                "r",
                *(str(i) for i in range(n_sums + 2)),
                "~{memory}",
                "~{cc}",
                *(f"~{{v{i}}}" for i in fixed),
            ]
        )
        arguments = [f"i64 {step}", *(f"<4 x float> %s{i}" for i in range(n_sums))]
        arguments += ["ptr %x", "ptr %w"]
        text = "\\0A".join(self.assembly())
        lines = [f"define void @{self.name}({parameters}) {{"]
        lines += [f"  %s{i} = load <4 x float>, ptr %p{i}, align 16" for i in range(n_sums)]
        lines.append(
            f'  %r = call {{{result}}} asm "{text}", "{constraints}"({", ".join(arguments)})'
        )
        for i in range(n_sums):
            lines.append(f"  %e{i} = extractvalue {{{result}}} %r, {i}")
            lines.append(f"  store <4 x float> %e{i}, ptr %p{i}, align 16")
        return "\n".join([*lines, "  ret void", "}"])


def _list(registers: list[str]) -> str:
    return "{" + ", ".join(f"{r}.4s" for r in registers) + "}"
