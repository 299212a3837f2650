"""What ptxas gives every CUDA kernel of the paper's networks, for every GPU that has a target.

    python benchmarks/gpu_resources.py [--targets cuda-sm90,...] [--batches 1,32]
        [--precision float32|tf32|float16] [-o kernels.json]

Compiles each network for each target with the knobs that this target gets, and prints a row for
each: launches of an inference, the most registers of a thread, bytes spilled, the most shared
memory of a block, theoretical occupancy (least, and the median of the launches), and the share of
the launches that give every multiprocessor a block. Needs no GPU; some 10 s a row. Exit code 1 when
a kernel spills.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.compiler_pass.pipeline import compile_model
from tvm_mobilenet.deploy import cuda
from tvm_mobilenet.profiling.static import StaticKernel, kernels_of
from tvm_mobilenet.runtime.cuda import DIRECTORY

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "V1 1.0/224": ("mobilenet_v1", {}),
    "V1 0.25/128": ("mobilenet_v1", {"alpha": 0.25, "resolution": 128}),
    "V2": ("mobilenet_v2", {}),
    "V3-large": ("mobilenet_v3_large", {}),
}
GPUS = tuple(name for name in targets.names() if targets.load(name).gpu is not None)


@dataclass(frozen=True)
class Resources:
    """The kernels of one network on one GPU."""

    model: str
    target: str
    batch: int
    precision: str
    kernels: tuple[StaticKernel, ...]

    @property
    def spilling(self) -> list[str]:
        """Kernels with spills, or with a local array that is not in registers."""
        return [k.kernel for k in self.kernels if k.spill_bytes or k.stack_bytes]

    def row(self) -> dict[str, str]:
        """Extremes and medians, as the table has them."""
        launched = [k for k in self.kernels for _ in range(k.launches)]
        sms = targets.load(self.target).gpu.sms  # type: ignore[union-attr]
        full = sum(k.blocks >= sms for k in launched) / len(launched)
        return {
            "network": self.model,
            "target": self.target,
            "batch": str(self.batch),
            "precision": self.precision,
            "launches": str(len(launched)),
            "registers": str(max(k.registers for k in launched)),
            "spilled B": str(sum(k.spill_bytes + k.stack_bytes for k in self.kernels)),
            "shared B": str(max(k.shared_bytes for k in launched)),
            "occupancy, least": f"{min(k.occupancy for k in launched):.0%}",
            "median": f"{statistics.median(k.occupancy for k in launched):.0%}",
            "a block for each SM": f"{full:.0%}",
        }


def resources(model: str, target_name: str, batch: int, precision: str = "float32") -> Resources:
    """Compile one of `MODELS` for a target and read what ptxas said; raises as `compiled_code`."""
    code = compiled_code(model, target_name, batch, precision)
    gpu = targets.load(target_name).gpu
    assert gpu is not None
    with tempfile.TemporaryDirectory() as folder:
        code.write(Path(folder) / DIRECTORY)
        document = cuda.read_kernels(Path(folder))
    kernels = kernels_of(document, gpu.arch, gpu)
    return Resources(model, target_name, batch, precision, tuple(kernels))


def compiled_code(model: str, target_name: str, batch: int, precision: str) -> cuda.GpuCode:
    """One of `MODELS` for a target, as `build` would have it, with the target's own machine code.

    Raises as `targets.at_precision` for a precision that the GPU has not.
    """
    target = targets.at_precision(targets.load(target_name), precision)
    assert target.gpu is not None
    with cuda.source_only(target):
        compiled = compile_model(_imported(model, batch), target)
    return cuda.assemble(compiled, (target.gpu.arch,), progress=lambda text: None)


@cache
def _imported(model: str, batch: int) -> frontend.ImportedModel:
    name, options = MODELS[model]
    return frontend.load_model(name, batch=batch, **options)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def main() -> int:
    """Parse, sweep, print the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=_names, default=list(MODELS))
    parser.add_argument("--targets", type=_names, default=list(GPUS))
    parser.add_argument("--batches", type=lambda t: [int(n) for n in _names(t)], default=[1])
    parser.add_argument("--precision", choices=targets.PRECISIONS, default="float32")
    parser.add_argument("-o", "--output", type=Path, help="every kernel, as JSON")
    args = parser.parse_args()
    found = []
    for batch in args.batches:
        for model in args.models:
            for target in args.targets:
                found.append(resources(model, target, batch, args.precision))
                row = found[-1].row()
                if len(found) == 1:
                    print(f"| {' | '.join(row)} |\n{'|---' * len(row)}|")
                print(f"| {' | '.join(row.values())} |", flush=True)
    if args.output:
        rows = [dataclasses.asdict(each) for each in found]
        args.output.write_text(json.dumps({"schema_version": 1, "networks": rows}, indent=1))
    spilling = sorted({f"{f.model} {f.target} {f.batch}: {k}" for f in found for k in f.spilling})
    print("\n".join(spilling) or "no spills", file=sys.stderr)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
