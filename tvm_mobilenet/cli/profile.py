"""`tvm-mobilenet profile`: where the time goes, operator by operator."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.cli.common import (
    add_json,
    add_threads_argument,
    emit_json,
    positive_int,
)
from tvm_mobilenet.errors import UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.profiling.profile import Phases, Profile, Reconciliation

HELP = (
    "Time every operator of a bundle inside the running network, and compare it with what this "
    "machine can do. TIME is the mean over the quieter half of the runs, in which times add up; "
    "ROOF is the least time possible (FLOPs at the FMA peak, or bytes at the bandwidth of the "
    "memory that keeps them) over TIME, BOUND what sets it. Loading a bundle runs the code in it."
)
_FILES = ("csv", "trace", "html")
_COLOURS = ((0.7, "32"), (0.4, "33"), (0.0, "31"))  # share of the roofline: green, yellow, red


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """profile BUNDLE [--by layer|op|kind] [--html F] ... | profile --compare A B"""
    parser.add_argument(
        "bundles", metavar="BUNDLE", type=Path, nargs="+", help="a bundle's directory"
    )
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
    group = parser.add_argument_group("side by side")
    group.add_argument(
        "--compare",
        action="store_true",
        help="two bundles, run in turns, or two files of 'profile --json': what differs, and "
        "whether chance could have done it",
    )
    group.add_argument(
        "--against",
        choices=("onnxruntime",),
        help="this runtime's own profile of --model beside ours, layer by layer",
    )
    group.add_argument(
        "--model", metavar="FILE", help="with --against: the ONNX file the bundle was built from"
    )
    group = parser.add_argument_group("on another machine, over TVM's RPC")
    group.add_argument("--rpc-tracker", metavar="HOST:PORT", help="the tracker that knows it")
    group.add_argument("--rpc-key", metavar="KEY", help="which kind of device")
    group.add_argument(
        "--rpc", metavar="HOST:PORT", help="a server, without a tracker; wins over --rpc-tracker"
    )
    group = parser.add_argument_group("files to write")
    group.add_argument("--csv", type=Path, metavar="FILE", help="the rows, all columns")
    group.add_argument("--trace", type=Path, metavar="FILE", help="for Perfetto, chrome://tracing")
    group.add_argument("--html", type=Path, metavar="FILE", help="one page with charts and code")
    add_threads_argument(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print a table, or one JSON document; write the files asked for."""
    _check_arguments(args)
    if args.compare:
        return _compare(args)
    if args.against:
        return _against(args)
    from tvm_mobilenet.profiling import exports, html

    if args.html:
        html.check()
    for option in _FILES:
        if path := getattr(args, option):
            exports.check_writable(path, f"--{option}")
    measured = _measure(args)
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
    _print_rest(args.top, len(rows))
    _print_summary(measured)
    return 0


def _measure(args: argparse.Namespace) -> Profile:
    if args.rpc or args.rpc_tracker:
        from tvm_mobilenet.profiling.remote import Device, profile_remotely

        return profile_remotely(
            args.bundles[0],
            Device(args.rpc, None if args.rpc else args.rpc_tracker, args.rpc_key),
            threads=args.threads,
            runs=args.runs,
            progress=args.console.info,
        )
    from tvm_mobilenet.profiling.profile import profile

    return profile(
        args.bundles[0],
        threads=args.threads,
        runs=args.runs,
        limits=not args.no_limits,
        progress=args.console.info,
        on_run=_bar(args),
    )


def _check_arguments(args: argparse.Namespace) -> None:
    wanted = 2 if args.compare else 1
    if len(args.bundles) != wanted:
        raise UsageError(
            "profile takes one BUNDLE"
            if wanted == 1
            else "--compare takes two: bundles, or files of 'profile --json'"
        )
    if (args.against is None) != (args.model is None):
        raise UsageError("--against and --model FILE go together")
    given = [option for option in (*_FILES, "rpc", "rpc_tracker") if getattr(args, option)]
    if args.by != "layer":
        given.append("by")
    if given and (args.compare or args.against):
        flag = given[0].replace("_", "-")
        raise UsageError(f"--{flag} does not go with --compare or --against")
    if args.rpc_tracker and not args.rpc_key and not args.rpc:
        raise UsageError("--rpc-tracker needs --rpc-key KEY; 'rpc devices' lists the keys")
    if args.rpc_key and not args.rpc_tracker and not args.rpc:
        raise UsageError("--rpc-key goes with --rpc-tracker or --rpc HOST:PORT")
    if args.compare and args.against:
        raise UsageError("--compare and --against do not go together")
    files = [path.resolve() for option in _FILES if (path := getattr(args, option))]
    if len(set(files)) < len(files):
        raise UsageError(f"{' and '.join(f'--{option}' for option in _FILES)} need different files")


def _bar(args: argparse.Namespace) -> Callable[[int, int], None]:
    return lambda done, total: args.console.progress(done, total, "runs")


def _compare(args: argparse.Namespace) -> int:
    from tvm_mobilenet.profiling.compare import compare

    found = compare(*args.bundles, threads=args.threads, runs=args.runs, on_run=_bar(args))
    if args.json:
        whole, sides = found.whole, {"a": found.a, "b": found.b}
        rest = {"only_a": found.only_a, "only_b": found.only_b, "notes": found.notes}
        emit_json("profile-compare", {**sides, "whole": whole, "operators": found.rows(), **rest})
        return 0
    rows = found.rows()[: args.top]
    table = _Table(rows)
    table.column("LAYER", "name")
    table.column("KIND", "kind")
    table.column("A us", "a_us", ".1f")
    table.column("B us", "b_us", ".1f")
    table.column("B - A", "difference_us", "+.1f")
    table.column("A / B", "ratio", ".3f")
    table.column("FROM", "ratio_low", ".3f")
    table.column("TO", "ratio_high", ".3f")
    table.column("P", "p", ".3f")
    table.column("B IS", "verdict")
    colour = {"faster": "32", "slower": "31"}
    table.write({"B IS": [colour.get(row["verdict"]) for row in rows]})
    _print_rest(args.top, len(found.operators))
    whole = found.whole
    lines = [
        "",
        f"A is {found.a}, B is {found.b}",
        f"from end to end: A {whole.a_us:.1f} us, B {whole.b_us:.1f} us, A / B "
        f"{whole.ratio.value:.3f} ({whole.ratio.low:.3f}-{whole.ratio.high:.3f}): "
        f"B is {'the same' if whole.verdict == 'same' else whole.verdict}",
    ]
    lines += [f"only in A: {name}" for name in found.only_a]
    lines += [f"only in B: {name}" for name in found.only_b]
    lines += [f"note: {note}" for note in found.notes]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _against(args: argparse.Namespace) -> int:
    from tvm_mobilenet.profiling.peer_nodes import beside_onnxruntime

    args.console.info(f"profiling {args.bundles[0]} and {args.against} in turns")
    found = beside_onnxruntime(
        args.bundles[0], args.model, threads=args.threads, runs=args.runs, on_run=_bar(args)
    )
    if args.json:
        fields = dataclasses.fields(found)
        document = {f.name: getattr(found, f.name) for f in fields if f.name != "layers"}
        emit_json("profile-against", {**document, "layers": found.rows()})
        return 0
    rows = found.rows()
    table = _Table(rows[: args.top])
    table.column("LAYER", "name")
    table.column("KIND", "kind")
    table.column("OURS us", "ours_us", ".1f")
    table.column(f"{found.peer.upper()} us", "theirs_us", ".1f")
    table.column("RATIO", "ratio", ".2f")
    if args.wide:
        table.column("THEIR NODES", "their_nodes")
    table.write({"RATIO": [_ratio_colour(row["ratio"]) for row in rows[: args.top]]})
    _print_rest(args.top, len(rows))
    sys.stdout.write(
        f"\nfrom end to end, without instruments: ours {found.ours_whole_us:.1f} us, "
        f"{found.peer} {found.version} {found.theirs_whole_us:.1f} us; its nodes sum up to "
        f"{found.theirs_profiled_us:.1f} us by its own profiler, which counts whole microseconds\n"
    )
    return 0


def _print_rows(rows: Sequence[dict[str, Any]], *, by: str, wide: bool) -> None:
    table = _Table(rows)
    table.column({"layer": "LAYER", "op": "OPERATOR", "kind": "KIND"}[by], "name")
    if by != "kind":
        table.column("KIND", "kind")
    if by != "layer":
        table.column("CALLS", "calls", "d")
    table.column("TIME us", "time_us", ".1f")
    table.column("SHARE", "share", ".1%")
    table.column("SUM", "cumulative_share", ".1%")
    table.column("P50", "p50_us", ".1f")
    table.column("P90", "p90_us", ".1f")
    table.column("FIRST", "first_us", ".1f")
    table.column("GFLOP/s", "gflops", ".1f")
    table.column("GB/s", "gb_per_s", ".1f")
    table.column("FLOP/B", "intensity", ".1f")
    table.column("ROOF", "roof_share", ".0%")
    table.column("BOUND", "bound")
    table.column("THREADS", "threads", "d")
    table.column("SCHEDULE", "schedule")
    table.column("SOURCE", "source")
    if wide:
        table.column("MEAN", "mean_us", ".1f")
        if by != "kind":
            table.column("SHAPE", "shape")
            table.column("KNOBS", "knobs")
        table.column("ONNX NODES", "onnx_nodes")
    table.write({"ROOF": [_roof_colour(row["roof_share"]) for row in rows]})


def _roof_colour(share: float | None) -> str | None:
    if share is None:
        return None
    return next(code for least, code in _COLOURS if share >= least)


def _ratio_colour(ratio: float | None) -> str | None:
    return None if ratio is None else "32" if ratio >= 1 else "31"


class _Table:
    """An aligned table with colours, on a terminal and without NO_COLOR."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows
        self._columns: list[tuple[str, list[str], bool]] = []

    def column(self, header: str, key: str, form: str | None = None) -> None:
        """Add a column; one with a format goes to the right."""
        cells = [_cell(row[key], form) for row in self._rows]
        self._columns.append((header, cells, form is not None))

    def write(self, colours: dict[str, list[str | None]]) -> None:
        """Print it; `colours` gives ANSI codes, one a row, by header."""
        painted = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        finished = []
        for header, cells, right in self._columns:
            width = max(map(len, [header, *cells]))
            padded = [c.rjust(width) if right else c.ljust(width) for c in [header, *cells]]
            if painted and header in colours:
                for i, code in enumerate(colours[header], 1):
                    if code:
                        padded[i] = f"\x1b[{code}m{padded[i]}\x1b[0m"
            finished.append(padded)
        for line in zip(*finished, strict=True):
            sys.stdout.write("  ".join(line).rstrip() + "\n")


def _cell(value: Any, form: str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return " ".join(value) or "-"
    return format(value, form or "")


def _print_rest(top: int | None, rows: int) -> None:
    if top and top < rows:
        sys.stdout.write(f"... {rows - top} more\n")


def _print_summary(measured: Profile) -> None:
    whole, phases = measured.reconciliation, measured.phases
    lines = [
        "",
        f"operators {whole.operators:.1f} us"
        if whole.overhead is None
        else f"operators {whole.operators:.1f} us + overhead {whole.overhead:.1f} us = "
        f"{whole.timed:.1f} us from end to end; operators explain {whole.explained:.1%}",
        f"without instruments {whole.plain:.1f} us: difference {whole.difference:+.1f} us, "
        f"{whole.difference / whole.plain:+.1%}{_instruments(whole)}",
        f"{_before(phases)}{measured.runs} runs: "
        f"p10 {phases.p10_ms:.3f}, p50 {phases.p50_ms:.3f}, p90 {phases.p90_ms:.3f} ms",
    ]
    if measured.limits:
        lines.append(f"this machine on {measured.limits}")
    if counts := measured.samples.counted.counts:
        listed = ", ".join(f"{name} {count / 1e6:.3f} M" for name, count in counts.items())
        lines.append(f"counted in an inference: {listed}")
    lines += [f"note: {note}" for note in measured.notes]
    sys.stdout.write("\n".join(lines) + "\n")


def _instruments(whole: Reconciliation) -> str:
    if whole.instruments is None:
        return ""
    share = whole.instruments / whole.plain
    return f"; the instruments cost {whole.instruments:.1f} us, {share:.1%}"


def _before(phases: Phases) -> str:
    """What came before steady state, as far as it is known."""
    load = "" if phases.load_seconds is None else f"load {1e3 * phases.load_seconds:.0f} ms, "
    if phases.first_ms is None:
        return load
    return f"{load}first run {phases.first_ms:.3f} ms, {phases.warm_up_runs} warm-up runs, then "
