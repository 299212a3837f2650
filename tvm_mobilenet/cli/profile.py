"""`tvm-mobilenet profile`: where the time goes, operator by operator."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.cli.common import (
    add_json,
    add_threads_argument,
    emit_json,
    positive_int,
)

if TYPE_CHECKING:
    from tvm_mobilenet.profiling.profile import Profile

HELP = (
    "Time every operator of a bundle inside the running network, and compare it with what this "
    "machine can do. TIME is the mean over the quieter half of the runs, in which times add up; "
    "ROOF is the least time possible (FLOPs at the FMA peak, or bytes at the bandwidth of the "
    "memory that keeps them) over TIME, BOUND what sets it. Loading a bundle runs the code in it."
)
_COLOURS = ((0.7, "32"), (0.4, "33"), (0.0, "31"))  # share of the roofline: green, yellow, red


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """profile BUNDLE [--by layer|op|kind] [--top N] [--csv F] [--trace F] ..."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle's directory")
    parser.add_argument(
        "--by",
        choices=("layer", "op", "kind"),
        default="layer",
        help="a row for each layer, each compiled function, or each kind (default: %(default)s)",
    )
    parser.add_argument("--top", type=positive_int, metavar="N", help="print the N slowest only")
    parser.add_argument("--wide", action="store_true", help="also shape, mean, knobs, ONNX nodes")
    parser.add_argument(
        "--runs",
        type=positive_int,
        default=200,
        help="runs with and as many without instruments, in turns (default: %(default)s)",
    )
    parser.add_argument(
        "--no-limits",
        action="store_true",
        help="do not compare with this machine's limits (measured the first time, for seconds)",
    )
    group = parser.add_argument_group("files to write")
    group.add_argument("--csv", type=Path, metavar="FILE", help="the rows, all columns")
    group.add_argument("--trace", type=Path, metavar="FILE", help="for Perfetto, chrome://tracing")
    group.add_argument("--html", type=Path, metavar="FILE", help="one page with charts and code")
    add_threads_argument(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print a table, or one JSON document; write the files asked for."""
    from tvm_mobilenet.profiling import exports, html
    from tvm_mobilenet.profiling.profile import profile

    if args.html:
        html.check()
    for option in ("csv", "trace", "html"):
        if path := getattr(args, option):
            exports.check_writable(path, f"--{option}")
    measured = profile(
        args.bundle,
        threads=args.threads,
        runs=args.runs,
        limits=not args.no_limits,
        progress=args.console.info,
        on_run=lambda done, total: args.console.progress(done, total, "runs"),
    )
    if args.csv:
        exports.write_csv(measured, args.csv, args.by)
        args.console.info(f"{args.csv}: {len(measured.rows(args.by))} rows")
    if args.trace:
        exports.write_trace(measured, args.trace)
        args.console.info(f"{args.trace}: open it in ui.perfetto.dev or chrome://tracing")
    if args.html:
        html.write_html(measured, args.html)
        args.console.info(f"{args.html}: open it in a browser")
    if args.json:
        emit_json("profile", exports.document(measured))
        return 0
    rows = measured.rows(args.by)
    _print_rows(rows[: args.top], by=args.by, wide=args.wide)
    if args.top and args.top < len(rows):
        sys.stdout.write(f"... {len(rows) - args.top} more\n")
    _print_summary(measured)
    return 0


def _print_rows(rows: Sequence[dict[str, Any]], *, by: str, wide: bool) -> None:
    columns: list[tuple[str, list[str], bool]] = []

    def column(header: str, key: str, form: str | None = None) -> None:
        cells = [_cell(row[key], form) for row in rows]
        columns.append((header, cells, form is not None))

    column({"layer": "LAYER", "op": "OPERATOR", "kind": "KIND"}[by], "name")
    if by != "kind":
        column("KIND", "kind")
    if by != "layer":
        column("CALLS", "calls", "d")
    column("TIME us", "time_us", ".1f")
    column("SHARE", "share", ".1%")
    column("SUM", "cumulative_share", ".1%")
    column("P50", "p50_us", ".1f")
    column("P90", "p90_us", ".1f")
    column("FIRST", "first_us", ".1f")
    column("GFLOP/s", "gflops", ".1f")
    column("GB/s", "gb_per_s", ".1f")
    column("FLOP/B", "intensity", ".1f")
    column("ROOF", "roof_share", ".0%")
    column("BOUND", "bound")
    column("THREADS", "threads", "d")
    column("SCHEDULE", "schedule")
    column("SOURCE", "source")
    if wide:
        column("MEAN", "mean_us", ".1f")
        if by != "kind":
            column("SHAPE", "shape")
            column("KNOBS", "knobs")
        column("ONNX NODES", "onnx_nodes")
    roofs = [row["roof_share"] for row in rows]
    _print_columns(columns, {"ROOF": [_colour(roof) for roof in roofs]})


def _cell(value: Any, form: str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return " ".join(value) or "-"
    return format(value, form or "")


def _colour(share: float | None) -> str | None:
    if share is None:
        return None
    return next(code for least, code in _COLOURS if share >= least)


def _print_columns(
    columns: Sequence[tuple[str, list[str], bool]], colours: dict[str, list[str | None]]
) -> None:
    """An aligned table; `colours` gives ANSI codes by header, for a terminal without NO_COLOR."""
    painted = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    finished = []
    for header, cells, right in columns:
        width = max(map(len, [header, *cells]))
        padded = [c.rjust(width) if right else c.ljust(width) for c in [header, *cells]]
        if painted and header in colours:
            for i, code in enumerate(colours[header], 1):
                if code:
                    padded[i] = f"\x1b[{code}m{padded[i]}\x1b[0m"
        finished.append(padded)
    for line in zip(*finished, strict=True):
        sys.stdout.write("  ".join(line).rstrip() + "\n")


def _print_summary(measured: Profile) -> None:
    whole, phases = measured.reconciliation, measured.phases
    lines = [
        "",
        f"operators {whole.operators:.1f} us + overhead {whole.overhead:.1f} us = "
        f"{whole.timed:.1f} us from end to end; operators explain {whole.explained:.1%}",
        f"without instruments {whole.plain:.1f} us: difference {whole.difference:+.1f} us, "
        f"{whole.difference / whole.plain:+.1%}",
        f"{_load(phases.load_seconds)}first run {phases.first_ms:.3f} ms, "
        f"{phases.warm_up_runs} warm-up runs, then {measured.runs} runs: "
        f"p10 {phases.p10_ms:.3f}, p50 {phases.p50_ms:.3f}, p90 {phases.p90_ms:.3f} ms",
    ]
    if measured.limits:
        levels = ", ".join(f"{v.name} {v.gb_per_s:.0f}" for v in measured.limits.levels)
        lines.append(
            f"this machine on {_count(measured.threads)}: {measured.limits.gflops:.0f} GFLOP/s; "
            f"GB/s: {levels}"
        )
    lines += [f"note: {note}" for note in measured.notes]
    sys.stdout.write("\n".join(lines) + "\n")


def _load(seconds: float | None) -> str:
    return "" if seconds is None else f"load {1e3 * seconds:.0f} ms, "


def _count(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"
