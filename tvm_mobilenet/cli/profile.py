"""`tvm-mobilenet profile`: where the time goes, operator by operator."""

from __future__ import annotations

import argparse
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
from tvm_mobilenet.cli.profile_instructions import run_instructions
from tvm_mobilenet.cli.profile_static import run_static
from tvm_mobilenet.cli.side_by_side import run_against, run_compare
from tvm_mobilenet.cli.table import Table, print_rest
from tvm_mobilenet.errors import UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.profiling.layer_parity import LayerParity
    from tvm_mobilenet.profiling.profile import Phases, Profile
    from tvm_mobilenet.profiling.reconciliation import Reconciliation

HELP = (
    "Time every operator of a bundle inside the running network, and compare it with what this "
    "machine can do. TIME is the mean over the quieter half of the runs, in which times add up; "
    "ROOF is the least time possible (FLOPs at the FMA peak, or bytes at the bandwidth of the "
    "memory that keeps them) over TIME, BOUND what sets it. Calling and returning are Python's and "
    "the runtime's part, whose code the network has driven out of the caches. Cycles, instructions "
    "and cache misses are counted where Linux lets a process read them. Of a bundle for another "
    "kind of machine, executed instructions are counted under QEMU instead, with --instructions of "
    "one for this machine too, by single-stepping. Loading a bundle runs the code in it."
)
_FILES = ("csv", "trace", "html")
_RATES = (  # where the processor's counters can be read; misses per 1000 instructions
    *(("IPC", "ipc"), ("L1 MISS/K", "l1d_mpki"), ("L2 MISS/K", "l2_mpki")),
    ("LLC MISS/K", "llc_mpki"),
)
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
    parser.add_argument(
        "--static",
        action="store_true",
        help="of a bundle for a GPU, without one: registers, spills, shared memory, theoretical "
        "occupancy of each kernel, launches; runs nothing",
    )
    parser.add_argument(
        "--instructions",
        action="store_true",
        help="count the instructions that each operator executes on one thread, in place of times: "
        "on x86-64 Linux, steps through one inference, which may take minutes (it says how many)",
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
    group.add_argument(
        "--logs",
        type=Path,
        metavar="DIR",
        help="with --html: the tuning records that the bundle was built with, if not the shipped "
        "ones; the page shows how they were found",
    )
    group.add_argument(
        "--parity",
        type=Path,
        metavar="FILE",
        help="with --html: what 'validate BUNDLE --model MODEL --per-layer --json' printed; the "
        "page shows how errors grow from operator to operator",
    )
    add_threads_argument(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print a table, or one JSON document; write the files asked for."""
    if args.static:
        return run_static(args)
    _check_arguments(args)
    if args.compare:
        return run_compare(args)
    if args.against:
        return run_against(args)
    from tvm_mobilenet.profiling import exports, html

    if args.html:
        html.check()
    for option in _FILES:
        if path := getattr(args, option):
            exports.check_writable(path, f"--{option}")
    if args.instructions or _only_counted(args):
        return run_instructions(args)
    parity = _parity(args)
    measured = _measure(args)
    if args.csv:
        exports.write_csv(measured, args.csv, args.by)
        args.console.info(f"{args.csv}: {len(measured.rows(args.by))} rows")
    if args.trace:
        exports.write_trace(measured, args.trace)
        args.console.info(f"{args.trace}: open it in ui.perfetto.dev or chrome://tracing")
    if args.html:
        html.write_html(measured, args.html, args.logs, parity)
        args.console.info(f"{args.html}: open it in a browser")
    if args.json:
        emit_json("profile", exports.document(measured))
        return 0
    rows = measured.rows(args.by)
    _print_rows(rows[: args.top], by=args.by, wide=args.wide)
    print_rest(args.top, len(rows))
    _print_summary(measured)
    return 0


def _only_counted(args: argparse.Namespace) -> bool:
    """Whether the bundle is for another kind of machine and no device was named."""
    from tvm_mobilenet.runtime import host, manifest

    architecture = manifest.read(args.bundles[0]).architecture
    return not (args.rpc or args.rpc_tracker) and architecture != host.architecture()


def _parity(args: argparse.Namespace) -> LayerParity | None:
    """What --parity names, read before anything is measured."""
    from tvm_mobilenet.profiling.layer_parity import read_parity
    from tvm_mobilenet.runtime import manifest

    if args.parity is None:
        return None
    document = manifest.read(manifest.choose(args.bundles[0])).document
    return read_parity(args.parity, [str(entry["symbol"]) for entry in document["operators"]])


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
        on_run=args.console.bar("runs"),
    )


def _check_arguments(args: argparse.Namespace) -> None:
    wanted = 2 if args.compare else 1
    if len(args.bundles) != wanted:
        raise UsageError(
            "profile takes one BUNDLE"
            if wanted == 1
            else "--compare takes two: bundles, or files of 'profile --json'"
        )
    if args.logs and not args.html:
        raise UsageError("--logs goes with --html, which shows what tuning measured")
    if args.parity and not args.html:
        raise UsageError("--parity goes with --html, which shows it layer by layer")
    if (args.against is None) != (args.model is None):
        raise UsageError("--against and --model FILE go together")
    if args.instructions and (args.rpc or args.rpc_tracker or (args.threads or 1) > 1):
        raise UsageError("--instructions counts on one thread of this machine, or under QEMU")
    options = (*_FILES, "instructions", "rpc", "rpc_tracker")
    given = [option for option in options if getattr(args, option)]
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


def _print_rows(rows: Sequence[dict[str, Any]], *, by: str, wide: bool) -> None:
    from tvm_mobilenet.profiling import counters

    table = Table(rows)
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
    counted = [column for column in _RATES if any(row[column[1]] is not None for row in rows)]
    for column in counted:
        table.column(*column, ".2f")
    table.column("THREADS", "threads", "d")
    table.column("SCHEDULE", "schedule")
    table.column("SOURCE", "source")
    if wide:
        for event in counters.events():
            if any(row[event.name] is not None for row in rows):
                table.column(event.title.upper(), event.name, ".0f")
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


def _print_summary(measured: Profile) -> None:
    whole, phases = measured.reconciliation, measured.phases
    lines = [
        "",
        _sum(whole),
        f"without instruments {whole.plain:.1f} us: difference {whole.difference:+.1f} us, "
        f"{whole.difference / whole.plain:+.1%}{_instruments(whole)}",
        f"{_before(phases)}{measured.runs} runs: "
        f"p10 {phases.p10_ms:.3f}, p50 {phases.p50_ms:.3f}, p90 {phases.p90_ms:.3f} ms",
    ]
    if measured.limits:
        lines.append(f"this machine on {measured.limits}")
    if counts := measured.samples.counted.counts:
        listed = ", ".join(f"{name} {count / 1e6:.3f} M" for name, count in counts.items())
        lines.append(f"counted in the operators of an inference: {listed}")
    lines += [f"note: {note}" for note in measured.notes]
    sys.stdout.write("\n".join(lines) + "\n")


def _sum(whole: Reconciliation) -> str:
    """The parts and what they add up to."""
    parts = whole.parts
    if len(parts) == 1:
        return f"operators {whole.operators:.1f} us"
    listed = [f"{name} {us:.1f} us ({us / whole.timed:.1%})" for name, us in parts.items()]
    return f"{' + '.join(listed)} = {whole.timed:.1f} us from end to end"


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
