"""The taps of a network's first convolution on aarch64, from planes of single floats (NCHW).

Idea
----
Output pixels of a row take their inputs from one piece of the input row, which is loaded once for
all kernel columns, four pixels to a register; FMLA multiplies a vector of weights by the lane that
holds the pixel's input: no broadcast loads. 8 pixels x 2 vectors of a 3x3 convolution with stride
2 cost, per input channel and kernel row, 48 FMLA + 2 input loads + 2 weight loads.

With ``early``, for cores that wait for each instruction's operands in program order, every register
is loaded by an instruction of its own among the FMLAs: a kernel row's inputs during the row before,
weights as many vectors ahead as registers are free (5 in 8x2).

Register budget: P*V sums + KW*V weights + ceil(columns / 4) inputs; 8x2 above: 16 + 6 + 5. Early:
twice the inputs, and at least so many weights that eight FMLAs stand before the next one's.

llvm-mca, of the cycles that the FMLAs alone take: 8x2 99 % on Cortex-A72, 98 % on Neoverse N1.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..spec import FLOAT_BYTES
from .assembly import LANES, REGISTERS, VECTOR_BYTES, Assembly, interleave, load, load_apart
from .taps import RowTile

AHEAD = 8  # FMLAs from a weight's load to its first use: A53 waits 4 cycles, of two instructions


@dataclass(frozen=True)
class StemTile(RowTile):
    """All taps of one tile over whole kernel rows; weights are ``[channel][row][column][vector]``.

    Input columns are single floats.
    """

    channels: int
    kernel: tuple[int, int]
    vectors: int
    plane_bytes: int  # from one input channel to the next
    early: bool = False

    @property
    def registers(self) -> int:
        """Vector registers in use, or early: that are needed."""
        pixels = len(self.taps)
        if self.early:
            return pixels * self.vectors + 2 * self.inputs + 1 + -(-AHEAD // pixels)
        return (pixels + self.kernel[1]) * self.vectors + self.inputs

    @property
    def inputs(self) -> int:
        """Registers that a piece of an input row takes."""
        return sum(-(-floats // LANES) for _, floats in self._pieces())

    @property
    def loads(self) -> int:
        """Load instructions per kernel row."""
        if self.early:
            return self.inputs + self.kernel[1] * self.vectors
        return len(self._pieces()) + -(-self.kernel[1] * self.vectors // LANES)

    def assembly(self) -> Assembly:
        """Fixed registers: inputs from v0 (early: of two rows), then weights."""
        if self.early:
            inputs, moved = 2 * self.inputs, 0
            free = REGISTERS - len(self.taps) * self.vectors - inputs
            weights = list(range(inputs, inputs + min(free, self.kernel[1] * self.vectors + 1)))
            lines = self._early(weights)
        else:
            inputs, moved = self.inputs, self._moved()
            weights = list(range(inputs, inputs + self.kernel[1] * self.vectors))
            lines = [line for row in range(self._rows) for line in self._kernel_row(weights, row)]
        rows = self.kernel[0]
        return Assembly(
            name=(
                f"tvm_mobilenet_stem_{self.channels}x{rows}x{self.kernel[1]}x{self.vectors}"
                f"_{self.plane_bytes}_{self.label}{'_early' * self.early}"
            ),
            lines=tuple(lines),
            sums=len(self.taps) * self.vectors,
            fixed=tuple(range(inputs + len(weights))),
            constants=(
                self.row_bytes - moved,
                self.plane_bytes - (rows - 1) * self.row_bytes - moved,
            ),
        )

    @property
    def _rows(self) -> int:
        """Kernel rows of all channels."""
        return self.channels * self.kernel[0]

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

    def _step(self, row: int) -> str:
        """From the row's inputs to the next one's."""
        return "{c0}" if (row + 1) % self.kernel[0] else "{c1}"

    def _kernel_row(self, weights: list[int], row: int) -> list[str]:
        pieces = self._pieces()
        lines = []
        for i, (register, floats) in enumerate(pieces):
            move = self._step(row) if i == len(pieces) - 1 else f"#{FLOAT_BYTES * floats}"
            if floats >= LANES:
                lines += load(range(register, register + floats // LANES), "x", move)
            else:
                shape = "1d" if floats == 2 else "2s"
                one = "" if floats == 2 else "r"
                lines.append(f"ld1{one} {{{{v{register}.{shape}}}}}, [{{x}}], {move}")
        lines += load(weights, "w")
        for i, weight in enumerate(weights):
            lines += self._products(i, weight, 0)
        return lines

    def _early(self, weights: list[int]) -> list[str]:
        """Weights take turns in their registers, and the inputs of two rows in theirs."""
        per_row, ahead = self.kernel[1] * self.vectors, len(weights) - 1
        every = per_row * self._rows

        def load_weight(i: int, row: int = 0) -> list[str]:
            """The i-th of all; the pointer is at those of ``row``."""
            offset = VECTOR_BYTES * (i - row * per_row)
            return load_apart([weights[i % len(weights)]], "w", offset) if i < every else []

        lines = self._load_inputs(0)
        for i in range(ahead):
            lines += load_weight(i)
        for row in range(self._rows):
            products: list[list[str]] = []
            for i in range(row * per_row, (row + 1) * per_row):
                first = row % 2 * self.inputs
                weight = weights[i % len(weights)]
                first_one, *others = self._products(i % per_row, weight, first) or [""]
                products.append([first_one, *load_weight(i + ahead, row), *others])
            following = []
            if row + 1 < self._rows:
                following = [f"add {{x}}, {{x}}, {self._step(row)}", *self._load_inputs(row + 1)]
            *early, last = products  # nothing of the next row right before it
            lines += interleave([line for some in early for line in some], following)
            lines += [*last, f"add {{w}}, {{w}}, #{VECTOR_BYTES * per_row}"]
        return [line for line in lines if line]

    def _load_inputs(self, row: int) -> list[str]:
        """A row's inputs, whose pointer stays at their first."""
        lines, offset, first = [], 0, row % 2 * self.inputs
        for register, floats in self._pieces():
            if floats >= LANES:
                registers = range(first + register, first + register + floats // LANES)
                lines += load_apart(registers, "x", offset)
            else:
                kind = "d" if floats == 2 else "s"
                lines.append(f"ldr {kind}{first + register}, [{{x}}, #{offset}]")
            offset += FLOAT_BYTES * floats
        return lines

    def _products(self, i: int, weight: int, first: int) -> list[str]:
        """The i-th weight vector of a kernel row times its inputs, in registers from ``first``."""
        tap, v = divmod(i, self.vectors)
        lanes = {}  # of each column
        column = self.columns[0]
        for register, floats in self._pieces():
            for lane in range(floats):
                lanes[column] = f"v{first + register + lane // LANES}.s[{lane % LANES}]"
                column += 1
        return [
            f"fmla {{s{p * self.vectors + v}}}.4s, v{weight}.4s, {lanes[self.column(p, tap)]}"
            for p, taps in enumerate(self.taps)
            if tap in taps
        ]
