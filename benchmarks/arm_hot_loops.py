"""What llvm-mca makes of the code that ours and ncnn execute on ARM, one thread.

    python benchmarks/arm_hot_loops.py --root DIR [--peer ncnn] [NAME ...]

DIR as of `arm_peers.py`. QEMU counts how often each block of code runs in one inference (half the
difference of three inferences and one); llvm-mca gives the cycles of a block when it repeats, its
data in L1. By lane: blocks with FMLA by one lane of a vector, which are matrix products (pointwise
layers, the stem, dense); by vector: the other blocks with FMLA, depthwise layers. For both the
share of the FMLA rate; then million cycles of an inference, of all blocks: a block that llvm-mca
was not asked about, as it is less than a thousandth of the instructions, at the issue width. What
caches and memory add, llvm-mca does not see.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from arm_instructions import NETWORKS
from arm_peers import CORE, PEERS, Guest, guest, install

from tvm_mobilenet import deploy
from tvm_mobilenet.deploy import emulate
from tvm_mobilenet.deploy.emulate import RUNNER, emulator
from tvm_mobilenet.profiling.contestants import contestant
from tvm_mobilenet.profiling.subject import Subject, prepare
from tvm_mobilenet.tuning.static import count, mca

TRIPLE = "aarch64-linux-gnu"
JUDGES = {"cortex-a72": 3, "neoverse-n1": 4}  # llvm-mca's models, instructions they issue a cycle
LEAST_SHARE = 0.001  # of the instructions
NO_ASLR = ("setarch", "--addr-no-randomize")  # blocks of two runs are told apart by address


Counts = dict[tuple[int, int], int]  # executions of a block, by address and bytes


def per_inference(run: Callable[[int], Counts]) -> dict[tuple[int, int], float]:
    """Executions of each block in one inference. run: what that many inferences execute."""
    often, once = run(3), run(1)
    return {key: (n - once.get(key, 0)) / 2 for key, n in often.items() if n > once.get(key, 0)}


@dataclass(frozen=True)
class Block:
    """Instructions without a branch but at the end, and how often an inference executes them."""

    instructions: tuple[str, ...]
    count: float


def ours(bundle: Path) -> list[Block]:
    """Blocks of one inference of a bundle's runner."""
    machine, program = emulator(TRIPLE, CORE), bundle / RUNNER
    options = ("--no-verify", "--samples", bundle / "samples.npz", "--threads", "1", "--only")
    begin, end = 0, 1 << 40  # all of a static program

    def run(times: int) -> Counts:
        command = [program, *options, times]
        return count.executed([*NO_ASLR, *machine], command, begin, end, l1=0)[0]

    return blocks(per_inference(run), program, 0)


def theirs(peer: Guest) -> list[Block]:
    """Blocks of one inference of a peer, of its own library."""
    emulate.run([*NO_ASLR, *peer.machine, *peer.program(1)])
    peer.check()
    library, base, begin, end = peer.code()

    def run(times: int) -> Counts:
        command = [*NO_ASLR, *peer.machine]
        found = count.executed(command, peer.program(times), begin, end, l1=0)[0]
        if peer.code() != (library, base, begin, end):
            raise SystemExit(f"{peer.name}: its library was at another address")
        return found

    return blocks(per_inference(run), library, base)


def blocks(found: dict[tuple[int, int], float], program: Path, base: int) -> list[Block]:
    """Those that matter, disassembled, and one that stands for the rest.

    base: what to take from an address to get the program's own.
    """
    joined: list[tuple[int, int, float]] = []
    for (address, size), executions in sorted(found.items()):
        if joined and (address, executions) == (sum(joined[-1][:2]), joined[-1][2]):
            address, first, executions = joined.pop()  # QEMU cuts what is long
            size += first
        joined.append((address, size, executions))
    total = sum(size // 4 * executions for _, size, executions in joined)
    result = []
    for address, size, executions in joined:
        if size // 4 * executions >= LEAST_SHARE * total:
            begin = address - base
            code = count.disassembled(program, begin, begin + size, TRIPLE)
            result.append(Block(tuple(text for _, text in code), executions))
    rest = total - sum(b.count * len(b.instructions) for b in result)
    return [*result, Block(("nop",), rest)]


def kind(block: Block) -> str:
    """What sort of work a block does, by its FMLAs."""
    if any(re.match(r"fmla v\d+\.4s, v\d+\.4s, v\d+\.s\[", line) for line in block.instructions):
        return "by lane"
    return "by vector" if products(block) else ""


def products(block: Block) -> int:
    """FMLAs of four sums in one execution."""
    return sum(line.startswith("fmla") and ".4s" in line for line in block.instructions)


def judge(found: list[Block], cpu: str, width: int) -> dict[str, float]:
    """Shares of the FMLA rate by `kind`, and million cycles of all blocks, by llvm-mca's model."""
    independent = [f"fmla v{i}.4s, v30.4s, v31.s[0]" for i in range(24)]
    *hot, rest = found
    each = mca.cycles([independent, *(b.instructions for b in hot)], TRIPLE, cpu)
    rate, cycles = len(independent) / each[0], dict(zip(hot, each[1:], strict=True))
    result = {}
    for name in ("by lane", "by vector"):
        some = [b for b in hot if kind(b) == name]
        needed = sum(b.count * products(b) for b in some) / rate
        result[name] = needed / sum(b.count * cycles[b] for b in some)
    result["cycles"] = sum(b.count * cycles[b] for b in hot) + rest.count / width
    return result


def main() -> int:
    """Judge ours and the peer on each network and core; print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--peer", choices=PEERS, default="ncnn")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in NETWORKS]:
        parser.error(f"unknown {unknown[0]}; there are {', '.join(NETWORKS)}")
    root = args.root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    install(root, [args.peer])
    table = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what converters print is not the table
    table.write(f"{'network':10} {'core':12} {'runtime':8} {'by lane':>8} {'by vector':>9}")
    table.write(f" {'M cycles':>9} {'M instructions':>15}\n")
    for name in args.names:
        model, options = NETWORKS[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            bundle = deploy.build(model, target=CORE, output=folder / "bundle", **options).path
            needs_program = contestant(args.peer).from_program
            prepared = prepare(
                Subject(model, **options), folder, bundle=None, program=needs_program
            )
            peer = guest(args.peer, prepared, root, folder)
            found = {"ours": ours(bundle), args.peer: theirs(peer)}
        for runtime, executed in found.items():
            instructions = sum(b.count * len(b.instructions) for b in executed)
            for cpu, width in JUDGES.items():
                shares = judge(executed, cpu, width)
                table.write(f"{name:10} {cpu:12} {runtime:8} {shares['by lane']:8.1%}")
                table.write(f" {shares['by vector']:9.1%} {shares['cycles'] / 1e6:9.2f}")
                table.write(f" {instructions / 1e6:15.2f}\n")
        table.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
