"""`tvm-mobilenet bench`: latency against other runtimes, interleaved in one run."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.cli.common import (
    MODEL_HELP,
    add_json,
    add_logs_argument,
    add_precision_argument,
    add_target_argument,
    emit_json,
    gpu_target,
    positive_int,
    print_table,
)
from tvm_mobilenet.errors import TvmMobilenetError

if TYPE_CHECKING:
    from tvm_mobilenet.profiling.bench import Cell, Measurement, Summary

HELP = (
    "Time our build of a model against other runtimes: outputs checked against PyTorch first, one "
    "process each, pinned alike, short blocks in turns. SPEED-UP is the best peer's median over "
    "this one's, with its 95 % interval; PEAK is the share of the FMA peak measured in the same "
    "run. Peers: onnxruntime, openvino, litert (XNNPACK), ncnn, mnn, torch, torch-compile. With a "
    "GPU as target, on that GPU: against PyTorch eager, under a CUDA graph, and compiled."
)

_HEADER = (
    "MODEL",
    "THREADS",
    "BATCH",
    "CONTESTANT",
    "MEDIAN ms",
    "P10",
    "P90",
    "SPEED-UP",
    "INTERVAL",
    "GFLOP/s",
    "PEAK",
    "MEMORY MiB",
    "MODEL MiB",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """bench MODEL... [--against PEERS] [--threads 1,2] [--batch 1,8] [--grid] ..."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--against",
        type=_names,
        metavar="PEERS",
        default=("onnxruntime", "torch"),
        help="comma-separated peers (default: onnxruntime,torch)",
    )
    parser.add_argument(
        "--threads", type=_numbers, metavar="N,...", default=(1,), help="default: 1"
    )
    parser.add_argument(
        "--runs",
        type=positive_int,
        default=50,
        help="timed runs of each contestant, at least (default: %(default)s)",
    )
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="time this bundle instead of building one"
    )
    parser.add_argument("--peers-only", action="store_true", help="build nothing, time the peers")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="picture of latency against mult-adds (.png or .svg; needs matplotlib)",
    )
    group = parser.add_argument_group("model options")
    group.add_argument(
        "--grid",
        action="store_true",
        help="all 16 sizes of the paper: alpha 1, 0.75, 0.5, 0.25; resolution 224, 192, 160, 128",
    )
    group.add_argument("--alpha", type=float, default=1.0, help="width multiplier (default: 1.0)")
    group.add_argument(
        "--resolution", type=int, default=224, help="input height and width (default: 224)"
    )
    group.add_argument(
        "--batch", type=_numbers, metavar="N,...", default=(1,), help="batch sizes (default: 1)"
    )
    group.add_argument("--classes", type=int, default=1000, help="number of classes (default 1000)")
    group.add_argument("--weights", type=Path, metavar="FILE", help="state dict or safetensors")
    add_target_argument(parser)
    add_precision_argument(parser)
    add_logs_argument(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print a table or one JSON document; 0 when ours was timed in every cell (or not asked)."""
    if target := gpu_target(args):
        from tvm_mobilenet.cli import bench_gpu

        return bench_gpu.run(args, target)
    from tvm_mobilenet.profiling.bench import bench

    if args.plot is not None:
        from tvm_mobilenet.profiling import plot

        plot.check(args.plot)
    finished: list[Cell] = []
    try:
        report = bench(
            args.models,
            args.against,
            args.threads,
            args.batch,
            alpha=args.alpha,
            resolution=args.resolution,
            classes=args.classes,
            weights=args.weights,
            grid=args.grid,
            runs=args.runs,
            bundle=args.bundle,
            target=args.target,
            logs=args.logs,
            ours=not args.peers_only,
            on_cell=_collector(finished, args.console.info),
            progress=args.console.info,
        )
    except (KeyboardInterrupt, TvmMobilenetError):
        if finished and not args.json:  # what was measured until now is not thrown away
            _print(finished, ())
        raise
    if args.json:
        emit_json("bench", {f.name: getattr(report, f.name) for f in dataclasses.fields(report)})
    else:
        _print(report.cells, report.summaries)
    if args.plot is not None:
        args.console.info(f"picture: {plot.draw(report, args.plot)}")
    return _exit_code(report.cells)


def _exit_code(cells: Sequence[Cell]) -> int:
    from tvm_mobilenet.profiling.contestants import OURS

    left = (entry for cell in cells for entry in cell.left_out)
    return next((entry.exit_code for entry in left if entry.contestant == OURS), 0)


def _collector(finished: list[Cell], say: Callable[[str], None]) -> Callable[[Cell], None]:
    def collect(cell: Cell) -> None:
        finished.append(cell)
        times = ", ".join(f"{m.contestant} {m.ms.median:.3f} ms" for m in cell.measurements)
        say(f"{_where(cell)}: {times or 'nobody was timed'}")

    return collect


def _print(cells: Sequence[Cell], summaries: Sequence[Summary]) -> None:
    print_table(_HEADER, [_row(cell, m) for cell in cells for m in cell.measurements])
    for cell in cells:
        where = _where(cell)
        for entry in cell.left_out:
            fix = f"; to install: {entry.install}" if entry.install else ""
            sys.stdout.write(f"not timed: {where}: {entry.contestant}: {entry.reason}{fix}\n")
        for note in cell.notes:
            sys.stdout.write(f"note: {where}: {note}\n")
    for summary in summaries:
        sys.stdout.write(
            f"speed-up over the best peer, {_count(summary.threads, 'thread')}, "
            f"batch {summary.batch}: geometric mean {summary.geometric_mean:.3f} "
            f"over {_count(summary.cells, 'cell')}, "
            f"least {summary.worst:.3f} ({summary.worst_model})\n"
        )


def _row(cell: Cell, m: Measurement) -> tuple[object, ...]:
    ratio = m.speed_up
    return (
        cell.model,
        cell.threads,
        cell.batch,
        m.contestant,
        f"{m.ms.median:.3f}",
        f"{m.ms.p10:.3f}",
        f"{m.ms.p90:.3f}",
        f"{ratio.value:.3f}" if ratio else "-",
        f"{ratio.low:.3f}-{ratio.high:.3f}" if ratio else "-",
        f"{m.gflops:.1f}",
        f"{m.share_of_peak:.1%}" if m.share_of_peak is not None else "-",
        f"{m.session_memory_mib:.1f}" if m.session_memory_mib is not None else "-",
        f"{m.model_mib:.1f}",
    )


def _where(cell: Cell) -> str:
    return f"{cell.model}, batch {cell.batch}, {_count(cell.threads, 'thread')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(positive_int(part.strip()) for part in text.split(",")))


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
