"""Assembly as an LLVM function that TVM's code generator inlines.

Why assembly at all: LLVM does not form ``LD1`` of four registers with post-increment from vector
code, hoists and unrolls loads until sums spill, and so executes 10 to 35 % more instructions in
the loops below; here a tile's registers and order are what its schedule says. Everything around
the innermost loop (other loops, edges, bias, activation, stores) stays TensorIR.

Each function is alwaysinline, so sums pass through it in registers: TVM's stack buffers hold them
before and after, and LLVM's promotion of stack slots removes the slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tvm import tirx
from tvm.tirx.script import builder as T

from ..emit import Expr, Registers

LANES = 4
VECTOR_BYTES = 16
REGISTERS = 32


@dataclass(frozen=True)
class Assembly:
    """Instructions over operands ``{s0}``... (sums), ``{x}``, ``{w}``, ``{n}`` and ``{c0}``...

    x and w: pointers, moved as the instructions like. n: a free counter. c0...: ``constants`` in
    general registers. Vector registers named in the text must be listed in ``fixed``.
    """

    name: str
    lines: tuple[str, ...]
    sums: int
    fixed: tuple[int, ...]
    constants: tuple[int, ...] = ()

    @cached_property
    def _operands(self) -> dict[str, str]:
        names = [*(f"s{i}" for i in range(self.sums)), "x", "w", "n"]
        names += [f"c{i}" for i in range(len(self.constants))]
        return {name: f"${i}" for i, name in enumerate(names)}

    def llvm(self) -> str:
        """LLVM IR of ``void(ptr x, ptr w, ptr sum 0, ...)``."""
        sums = range(self.sums)
        text = "\\0A".join(self.lines).replace("{{", "\0").replace("}}", "\1")
        for name, operand in self._operands.items():
            text = text.replace(f"{{{name}}}", operand)
        text = text.replace("\0", "{").replace("\1", "}")
        result = ", ".join([*(["<4 x float>"] * self.sums), "ptr", "ptr", "i64"])
        constraints = [
            *["=&w"] * self.sums,
            *["=&r"] * 3,
            *["r"] * len(self.constants),
            *(str(i) for i in range(self.sums + 2)),  # sums, x and w come in where they go out
            "~{memory}",
            "~{cc}",
            *(f"~{{v{i}}}" for i in self.fixed),
        ]
        arguments = [
            *(f"i64 {value}" for value in self.constants),
            *(f"<4 x float> %s{i}" for i in sums),
            "ptr %x",
            "ptr %w",
        ]
        call = f'asm "{text}", "{",".join(constraints)}"({", ".join(arguments)})'
        lines = [
            f"define void @{self.name}(ptr %x, ptr %w{''.join(f', ptr %p{i}' for i in sums)}) {{",
            *(f"%s{i} = load <4 x float>, ptr %p{i}, align 16" for i in sums),
            f"%r = call {{{result}}} {call}",
        ]
        for i in sums:
            lines.append(f"%e{i} = extractvalue {{{result}}} %r, {i}")
            lines.append(f"store <4 x float> %e{i}, ptr %p{i}, align 16")
        return "\n".join([*lines, "ret void", "}"])

    def emit(self, x: Expr, w: Expr, sums: Registers) -> None:
        """Call it in the PrimFunc under construction. x, w: the first elements that it loads."""
        pointers = (T.address_of(x), T.address_of(w), *map(sums.address, sums))
        with T.attr(tirx.const(0, "int32"), "pragma_import_llvm", self.llvm()):
            T.evaluate(T.call_extern("void", self.name, *pointers))


def load(registers: Sequence[int], pointer: str, step: str = "") -> list[str]:
    """``LD1`` of consecutive registers, at most four at a time, from consecutive memory.

    The pointer moves along; after the last load it moves by ``step`` (a register or ``#bytes``;
    by default by the bytes loaded).
    """
    lines = []
    for start in range(0, len(registers), 4):
        some = registers[start : start + 4]
        last = start + 4 >= len(registers)
        move = step if step and last else f"#{VECTOR_BYTES * len(some)}"
        names = ", ".join(f"v{r}.4s" for r in some)
        lines.append(f"ld1 {{{{{names}}}}}, [{{{pointer}}}], {move}")
    return lines


def load_apart(registers: Sequence[int], pointer: str, offset: int = 0) -> list[str]:
    """As `load`, but an instruction for each register, to stand between others.

    The pointer stays: a load that moves it would make the next one wait.
    """
    return [
        f"ldr q{r}, [{{{pointer}}}, #{offset + VECTOR_BYTES * i}]" for i, r in enumerate(registers)
    ]


def interleave(work: Sequence[str], loads: Sequence[str]) -> list[str]:
    """``loads`` spread evenly over ``work``, none before its first instruction."""
    if not work:
        return list(loads)
    lines = []
    for i, line in enumerate(work):
        share = slice(len(loads) * i // len(work), len(loads) * (i + 1) // len(work))
        lines += [line, *loads[share]]
    return lines
