"""`bench --target cuda-...`: a network on this machine's GPU beside PyTorch, at any precision."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from tvm_mobilenet.cli.common import emit_json, print_table
from tvm_mobilenet.errors import UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.profiling.gpu_bench import GpuCell
    from tvm_mobilenet.targets import TargetSpec

_HEADER = (
    "MODEL",
    "BATCH",
    "PRECISION",
    "CONTESTANT",
    "MEDIAN us",
    "P10",
    "P90",
    "SINGLE us",
    "SPEED-UP",
)
_CPU_ONLY = {"against": ("onnxruntime", "torch"), "threads": (1,), "runs": 50, "bundle": None}
_CPU_ONLY |= {"peers_only": False, "plot": None}


def run(args: argparse.Namespace, target: TargetSpec) -> int:
    """Print a table or one JSON document. Raises as `gpu_bench.bench`."""
    from tvm_mobilenet.profiling.gpu_bench import bench
    from tvm_mobilenet.profiling.subject import subjects

    for name, default in _CPU_ONLY.items():
        if getattr(args, name) != default:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} goes with a CPU; on {target.name} PyTorch is the peer")
    todo = subjects(
        args.models,
        alpha=args.alpha,
        resolution=args.resolution,
        classes=args.classes,
        weights=args.weights,
        batches=args.batch,
        grid=args.grid,
    )
    finished: list[GpuCell] = []
    try:
        report = bench(
            todo, target, logs=args.logs, on_cell=finished.append, progress=args.console.info
        )
    finally:
        if finished and not args.json:  # what was measured until an error, too
            _print(finished)
    if args.json:
        emit_json(
            "bench-gpu", {f.name: getattr(report, f.name) for f in dataclasses.fields(report)}
        )
    else:
        sys.stdout.write(f"on {report.device}\n")
    return 0


def _print(cells: list[GpuCell]) -> None:
    rows = []
    for cell in cells:
        found = cell.comparison
        best = min(
            (t.p50_us for name, t in found.back_to_back.items() if name != "ours"), default=None
        )
        for name, timing in found.back_to_back.items():
            times = (timing.p50_us, timing.p10_us, timing.p90_us, found.single[name].p50_us)
            ratio = f"{best / timing.p50_us:.3f}" if best else "-"
            shown = (f"{us:.1f}" for us in times)
            rows.append((cell.model, cell.batch, cell.precision, name, *shown, ratio))
    print_table(_HEADER, rows)
    for cell in cells:
        where = f"{cell.model}, batch {cell.batch}"
        sys.stdout.write(f"{where}: {cell.comparison.launches} launches; {cell.parity}\n")
        for name, why in cell.comparison.not_measured.items():
            sys.stdout.write(f"not timed: {where}: {name}: {why}\n")
