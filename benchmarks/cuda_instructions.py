"""What NVRTC makes of every CUDA kernel of a network: its machine code's instructions, by kind.

    python benchmarks/cuda_instructions.py [--models "V1 1.0/224",...] [--target cuda-sm90]
        [--batch 1] [--precision float32|tf32|float16]

A row for each kernel: launches of an inference; instructions of the kernel, and of its longest loop
(0: all is unrolled); products (FFMA, HMMA), loads and conversions of what stands in that loop, or
in the whole kernel; moves between registers; branches. Needs nvdisasm (``pip install '.[test]'``
brings it), no GPU. Counts are of the code, not of what is executed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gpu_resources import MODELS, compiled_code

from tvm_mobilenet import targets
from tvm_mobilenet.errors import MissingToolError

_KERNEL = re.compile(r"\s*\.section\s+\.text\.(\w+)")
_LABEL = re.compile(r"(\.L_\w+):")
_INSTRUCTION = re.compile(
    r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)[^;]*?(?:`\((\S+)\))?\s*;"
)
PRODUCTS, LOADS = ("FFMA", "HMMA"), ("LDG", "LDS")
CONVERSIONS, MOVES = ("HADD2", "F2FP"), ("MOV", "PRMT", "SEL")


@dataclass(frozen=True)
class Code:
    """The instructions of a kernel, in order, and its loops as (first, last) of them."""

    instructions: tuple[str, ...]
    loops: tuple[tuple[int, int], ...]

    @property
    def hot(self) -> tuple[str, ...]:
        """Those of the longest loop; of a kernel without one, all."""
        all_of_it = (0, len(self.instructions))
        first, last = max(self.loops, key=lambda loop: loop[1] - loop[0], default=all_of_it)
        return self.instructions[first : last + 1]

    def count(self, *names: str) -> int:
        """Instructions of these names in the whole kernel."""
        return sum(self.instructions.count(name) for name in names)


def disassemble(cubin: bytes) -> dict[str, Code]:
    """The code of each kernel. Raises MissingToolError without nvdisasm."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [nvdisasm(), "-c", file.name], check=True, capture_output=True, text=True
        ).stdout
    found: dict[str, Code] = {}
    sections = _KERNEL.split(text)
    for name, section in zip(sections[1::2], sections[2::2], strict=True):
        found[name] = _code(section)
    return found


def _code(section: str) -> Code:
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in section.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            start = labels.get(found[2] or "", len(instructions))  # a label further up: a loop
            if found[1] == "BRA" and start < len(instructions) - 1:
                loops.append((start, len(instructions)))
            instructions.append(found[1])
    return Code(tuple(instructions), tuple(loops))


def nvdisasm() -> Path:
    """NVIDIA's disassembler, out of its Python package. Raises MissingToolError."""
    import sysconfig

    path = Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin", "nvdisasm")
    if not path.is_file():
        raise MissingToolError("nvdisasm was not found; run: pip install nvidia-cuda-nvdisasm")
    return path


def _row(kernel: str, launches: int, code: Code) -> list[object]:
    hot = Counter(code.hot)
    shares = [
        sum(hot[name] for name in names) / len(code.hot) for names in (PRODUCTS, LOADS, CONVERSIONS)
    ]
    loop = len(code.hot) if code.loops else 0
    return [
        kernel,
        launches,
        len(code.instructions),
        loop,
        *(f"{share:.0%}" for share in shares),
        code.count(*MOVES),
        code.count("BRA") - len(code.loops) - 1,  # the last ends the kernel
    ]


def main() -> int:
    """Compile, disassemble, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=lambda t: t.split(","), default=["V1 1.0/224"])
    parser.add_argument("--target", default="cuda-sm90")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", choices=targets.PRECISIONS, default="float32")
    args = parser.parse_args()
    header = ("KERNEL", "LAUNCHES", "ALL", "LOOP", "PRODUCTS", "LOADS", "CONVERSIONS", "MOVES")
    for model in args.models:
        if model not in MODELS:
            parser.error(f"{model}: no network of this benchmark; choose of {', '.join(MODELS)}")
        code = compiled_code(model, args.target, args.batch, args.precision)
        launches = Counter(launch.kernel for launch in code.launches)
        (image,) = (i for i in code.images if i.arch.startswith("sm_"))
        print(f"{model}, batch {args.batch}, {args.precision}, {image.arch}")
        print("| " + " | ".join([*header, "BRANCHES"]) + " |\n" + "|---" * 9 + "|")
        for kernel, found in disassemble(image.code).items():
            print("| " + " | ".join(map(str, _row(kernel, launches[kernel], found))) + " |")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MissingToolError as error:
        sys.exit(str(error))
