"""The taps of a network's first convolution on aarch64, from planes of single floats (NCHW).

Idea
----
Output pixels of a row take their inputs from one piece of the input row, which is loaded once for
all kernel columns, four pixels to a register; FMLA multiplies a vector of weights by the lane that
holds the pixel's input: no broadcast loads. 8 pixels x 2 vectors of a 3x3 convolution with stride
2 cost, per input channel and kernel row, 48 FMLA + 2 input loads + 2 weight loads.

Register budget: P*V sums + KW*V weights + ceil(columns / 4) inputs; 8x2 above: 16 + 6 + 5.

llvm-mca, of the cycles that the FMLAs alone take: 8x2 99 % on Cortex-A72, 98 % on Neoverse N1.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..spec import FLOAT_BYTES
from .assembly import LANES, Assembly, load
from .taps import RowTile


@dataclass(frozen=True)
class StemTile(RowTile):
    """All taps of one tile over whole kernel rows; weights are ``[channel][row][column][vector]``.

    Input columns are single floats.
    """

    channels: int
    kernel: tuple[int, int]
    vectors: int
    plane_bytes: int  # from one input channel to the next

    @property
    def registers(self) -> int:
        """Vector registers in use."""
        return (len(self.taps) + self.kernel[1]) * self.vectors + self.inputs

    @property
    def inputs(self) -> int:
        """Registers that a piece of an input row takes."""
        return sum(-(-floats // LANES) for _, floats in self._pieces())

    @property
    def loads(self) -> int:
        """Load instructions per kernel row."""
        return len(self._pieces()) + -(-self.kernel[1] * self.vectors // LANES)

    def assembly(self) -> Assembly:
        """Fixed registers: inputs from v0, then the weights of a kernel row."""
        weights = list(range(self.inputs, self.inputs + self.kernel[1] * self.vectors))
        rows = self.kernel[0]
        lines: list[str] = []
        for _ in range(self.channels):
            for kh in range(rows):
                lines += self._kernel_row(weights, "{c1}" if kh == rows - 1 else "{c0}")
        moved = self._moved()
        return Assembly(
            name=(
                f"tvm_mobilenet_stem_{self.channels}x{rows}x{self.kernel[1]}x{self.vectors}"
                f"_{self.plane_bytes}_{self.label}"
            ),
            lines=tuple(lines),
            sums=len(self.taps) * self.vectors,
            fixed=tuple(range(self.inputs + len(weights))),
            constants=(
                self.row_bytes - moved,
                self.plane_bytes - (rows - 1) * self.row_bytes - moved,
            ),
        )

    def _pieces(self) -> list[tuple[int, int]]:
        """Loads of an input row as (first register, floats): no float beyond the last is read."""
        count, pieces, register = len(self.columns), [], 0
        while count:
            some = next(n for n in (16, 12, 8, 4, 2, 1) if n <= count)
            pieces.append((register, some))
            register += -(-some // LANES)
            count -= some
        return pieces

    def _moved(self) -> int:
        """Bytes by which the pointer has moved before the last load of a row."""
        return sum(FLOAT_BYTES * floats for _, floats in self._pieces()[:-1])

    def _kernel_row(self, weights: list[int], step: str) -> list[str]:
        pieces = self._pieces()
        lines = []
        for i, (register, floats) in enumerate(pieces):
            move = step if i == len(pieces) - 1 else f"#{FLOAT_BYTES * floats}"
            if floats >= LANES:
                lines += load(range(register, register + floats // LANES), "x", move)
            else:
                shape = "1d" if floats == 2 else "2s"
                one = "" if floats == 2 else "r"
                lines.append(f"ld1{one} {{{{v{register}.{shape}}}}}, [{{x}}], {move}")
        lines += load(weights, "w")
        starts = {}  # lane of each column
        column = self.columns[0]
        for register, floats in pieces:
            for i in range(floats):
                starts[column] = f"v{register + i // LANES}.s[{i % LANES}]"
                column += 1
        for tap in range(self.kernel[1]):
            for v in range(self.vectors):
                weight = weights[tap * self.vectors + v]
                lines += [
                    f"fmla {{s{p * self.vectors + v}}}.4s, v{weight}.4s, "
                    + starts[self.column(p, tap)]
                    for p, taps in enumerate(self.taps)
                    if tap in taps
                ]
        return lines
