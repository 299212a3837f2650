"""A kernel executed once under QEMU: how often each block of its code runs, and the lines it moves.

The program is static, without TVM's runtime, and its caches start empty: as inside a network, where
other operators ran in between (`measure` says more).
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.deploy import emulate, toolchain
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.tuning.static.mca import llvm_tool

if TYPE_CHECKING:
    from tvm import tirx

    from tvm_mobilenet.targets import TargetSpec

L1_WAYS, L2_WAYS = 8, 16  # where the target does not say
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Block:
    """Instructions without a branch but at the end, and how often they were executed."""

    instructions: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class Counts:
    """What a kernel executes. l1_lines, l2_lines: lines of 64 bytes that missed L1, and L2."""

    blocks: tuple[Block, ...]
    l1_lines: int
    l2_lines: int

    @property
    def instructions(self) -> int:
        """Executed, in all."""
        return sum(block.count * len(block.instructions) for block in self.blocks)


def counts(kernel: tirx.PrimFunc, target: TargetSpec) -> Counts:
    """Compile for one thread of the target and execute. Raises InputError, MissingToolError.

    ``kernel`` must have no parallel loop: there is no thread pool.
    """
    import tvm

    machine = emulate.emulator(target.mtriple, target.qemu_cpu or "max")
    compiler = toolchain.find(target) if toolchain.is_cross(target) else toolchain.own()
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as temporary:
        folder = Path(temporary)
        main = kernel.with_attr("global_symbol", "main")
        compiled = tvm.compile(tvm.IRModule({"main": main}), target=target.tvm_target())
        compiled.mod.write_to_file(str(folder / "kernel.o"), "o")
        shapes = [[int(n) for n in p.ty.shape] for p in kernel.params]
        rows = ", ".join(f"{{{', '.join(map(str, (len(s), *s)))}}}" for s in shapes)
        (folder / "shapes.h").write_text(
            f"#define N_ARGUMENTS {len(shapes)}\n#define SHAPES {{{rows}}}\n"
        )
        ffi = toolchain.installed("tvm_ffi/include")
        program = folder / "program"
        compiler.run(
            *("-x", "c", "-O1", "-w", f"-I{folder}", f"-I{ffi}", _HERE / "kernel.c"),
            *("-x", "none", folder / "kernel.o", "-lm", "-o", program),
            *("-static", "-no-pie"),
            static=True,
        )
        begin, end = _place(folder / "kernel.o", program)
        found, lines = executed(
            machine,
            [program],
            begin,
            end,
            l1=target.l1d_kib,
            l1ways=target.l1d_ways or L1_WAYS,
            l2=target.l2_kib,
            l2ways=L2_WAYS,
        )
        code = disassembled(program, begin, end, target.mtriple)
        blocks = []
        for (address, size), count in found.items():
            inside = [text for at, text in code if address <= at < address + size]
            blocks.append(Block(tuple(inside), count))
        return Counts(tuple(blocks), *lines)


def executed(
    machine: Sequence[object], program: Sequence[object], begin: int, end: int, **caches: int
) -> tuple[dict[tuple[int, int], int], tuple[int, int]]:
    """How often blocks between two addresses run, by (address, bytes), and lines missed.

    machine: QEMU's command. program: with its arguments. caches: see blocks.c; l1=0 counts no
    lines.
    """
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        notes = Path(folder) / "notes"
        options = {"out": notes, "begin": begin, "end": end, **caches}
        arguments = ",".join(f"{name}={value}" for name, value in options.items())
        emulate.run([*machine, "-plugin", f"{_plugin()[0]},{arguments}", *program])
        *lines, last = notes.read_text().splitlines()
    rows = (tuple(map(int, line.split()[1:])) for line in lines)
    found = {(address, size): count for address, size, count in rows}
    l1_lines, l2_lines = map(int, last.split()[1:])
    return found, (l1_lines, l2_lines)


@functools.cache
def _plugin() -> tuple[Path, tempfile.TemporaryDirectory[str]]:
    """The plugin, compiled once, and the directory that goes with the process."""
    folder = tempfile.TemporaryDirectory(prefix="tvm-mobilenet-")
    emulate.compile_plugin(Path(folder.name) / "blocks.so", _HERE / "blocks.c")
    return Path(folder.name) / "blocks.so", folder


def _place(part: Path, program: Path) -> tuple[int, int]:
    """First and last address, in a program, of what came from an object file."""

    def symbols(file: Path) -> dict[str, tuple[int, int]]:
        command = [llvm_tool("llvm-nm"), "--defined-only", "--print-size", str(file)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = re.findall(r"^([0-9a-f]+) ([0-9a-f]+) [tTwW] (\S+)$", text, re.MULTILINE)
        return {name: (int(at, 16), int(at, 16) + int(size, 16)) for at, size, name in found}

    linked = symbols(program)
    spans = [linked[name] for name in symbols(part) if name in linked]
    if not spans:
        raise InputError("the compiled kernel has no code")
    return min(start for start, _ in spans), max(end for _, end in spans)


def disassembled(program: Path, begin: int, end: int, triple: str) -> list[tuple[int, str]]:
    """(address, instruction as the assembler takes it) of a range."""
    command = [llvm_tool("llvm-objdump"), "-d", "--no-show-raw-insn", f"--triple={triple}"]
    command += ["--mattr=+all"] if triple.startswith("aarch64") else []
    command += [f"--start-address={begin}", f"--stop-address={end}", str(program)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = []
    for at, instruction in re.findall(r"^\s*([0-9a-f]+):\s+(.*?)\s*$", text, re.MULTILINE):
        plain = re.sub(r"\s*<[^>]*>.*$|\s+(?:#|//|@)\s.*$", "", instruction).replace("\t", " ")
        if not triple.startswith("x86"):  # any target of a branch will do, if it can be encoded
            plain = re.sub(r"(?<![#\w-])0x[0-9a-f]+$", "#4096", plain)
        found.append((int(at, 16), plain))
    return found
