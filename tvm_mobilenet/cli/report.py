"""`tvm-mobilenet report`: the paper's questions, answered on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.cli.common import (
    add_json,
    add_target_argument,
    emit_json,
    positive_int,
    print_table,
)

if TYPE_CHECKING:
    from tvm_mobilenet.profiling.report import Report

HELP = (
    "Build and time the networks of the MobileNet paper on this machine, some 20 s each: V1 at all "
    "16 sizes, its full-convolution and shallow baselines, V2 and V3. Mult-Adds against "
    "milliseconds, the Pareto front of accuracy and latency, and how much of the 8 to 9 times "
    "fewer Mult-Adds of separable convolutions becomes time; where ONNX Runtime is installed, also "
    "whether the full convolutions are a fair opponent. Accuracy is the papers' own, not ours."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """report [--quick] [--threads N] [--runs N] [--keep FILE] [--html FILE] [--json]"""
    parser.add_argument("--quick", action="store_true", help="four networks instead of 21")
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", default=1, help="default: %(default)s"
    )
    parser.add_argument(
        "--runs", type=positive_int, default=50, help="timed runs, at least (default: %(default)s)"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="one page with charts")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="the same JSON as --json, written after every network; again with the same FILE "
        "measures only what is missing",
    )
    add_target_argument(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print two tables, or one JSON document; write the page asked for."""
    from tvm_mobilenet.profiling import exports, html
    from tvm_mobilenet.profiling.report import report

    if args.html:
        html.check()
        exports.check_writable(args.html, "--html")
    if args.keep:
        exports.check_writable(args.keep, "--keep")
    found = report(
        threads=args.threads,
        target=args.target,
        runs=args.runs,
        quick=args.quick,
        keep=args.keep,
        progress=args.console.info,
    )
    if args.html:
        html.write_report(found, args.html)
        args.console.info(f"{args.html}: open it in a browser")
    if args.json:
        emit_json("report", found.document())
    else:
        _print(found)
    return 0


def _print(found: Report) -> None:
    header = (
        *("NETWORK", "MULT-ADDS M", "PARAMETERS M", "MEDIAN ms", "P10", "P90", "us/M MULT-ADDS"),
        *("IMAGES/s", "PEAK", "LIBRARY MiB", "MEMORY MiB", "ACCURACY", "FRONT"),
    )
    rows = [
        (
            row["network"],
            round(row["mult_adds"] / 1e6, 1),
            round(row["parameters"] / 1e6, 2),
            round(row["ms"], 3),
            round(row["p10_ms"], 3),
            round(row["p90_ms"], 3),
            round(row["us_per_million_mult_adds"], 2),
            round(row["images_per_s"], 1),
            "-" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}",
            round(row["library_mib"], 1),
            "-" if row["memory_mib"] is None else round(row["memory_mib"], 1),
            "-" if row["accuracy"] is None else f"{row['accuracy']:.1f} %",
            "yes" if row["on_front"] else "-",
        )
        for row in found.rows()
    ]
    print_table(header, rows)
    if found.blocks:
        sys.stdout.write("\n")
        blocks = [
            (
                row["block"],
                round(row["conv_us"], 1),
                round(row["separable_us"], 1),
                round(row["fewer_mult_adds"], 2),
                round(row["less_time"], 2),
                f"{row['kept']:.0%}",
                round(row["conv_gflops"], 1),
                round(row["separable_gflops"], 1),
            )
            for row in (block.row() for block in found.blocks)
        ]
        columns = (
            *("BLOCK", "CONV us", "SEPARABLE us", "FEWER MULT-ADDS", "LESS TIME", "KEPT"),
            *("CONV GFLOP/s", "SEPARABLE GFLOP/s"),
        )
        print_table(columns, blocks)
        whole = found.separable()
        assert whole is not None  # there are blocks
        sys.stdout.write(
            f"\nseparable convolutions need {whole['fewer_mult_adds']:.1f} times fewer Mult-Adds "
            f"and take {whole['less_time']:.1f} times less time: {whole['kept']:.0%} is kept "
            f"(full convolutions run at {whole['conv_gflops']:.0f} GFLOP/s here, separable ones at "
            f"{whole['separable_gflops']:.0f})\n"
        )
    if (networks := found.whole_networks()) is not None:
        sys.stdout.write(_whole(networks))
    for note in found.notes:
        sys.stdout.write(f"note: {note}\n")


def _whole(whole: Mapping[str, float | None]) -> str:
    """The two networks as a whole, and whether the full convolutions are a fair opponent."""
    line = (
        f"as whole networks: {whole['fewer_mult_adds']:.1f} times fewer Mult-Adds, "
        f"{whole['conv_ms']:.2f} ms against {whole['separable_ms']:.2f} ms: "
        f"{whole['less_time']:.1f} times less time"
    )
    if whole["onnxruntime_less_time"] is None:
        return f"{line}; ONNX Runtime was not timed beside them\n"
    return (
        f"{line}; in ONNX Runtime {whole['onnxruntime_conv_ms']:.2f} against "
        f"{whole['onnxruntime_separable_ms']:.2f} ms, {whole['onnxruntime_less_time']:.1f} times: "
        f"our full convolutions are {whole['conv_times_onnxruntime']:.2f} times as fast as its, "
        f"our separable ones {whole['separable_times_onnxruntime']:.2f} times\n"
    )
