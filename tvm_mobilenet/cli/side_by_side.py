"""`tvm-mobilenet profile --compare` and `--against`: two profiles in one table."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from tvm_mobilenet.cli.common import emit_json
from tvm_mobilenet.cli.table import Table, print_rest


def run_compare(args: argparse.Namespace) -> int:
    """Print what differs between two bundles, or two profiles kept as JSON."""
    from tvm_mobilenet.profiling.compare import compare

    found = compare(
        *args.bundles, threads=args.threads, runs=args.runs, on_run=args.console.bar("runs")
    )
    if args.json:
        whole, sides = found.whole, {"a": found.a, "b": found.b}
        rest = {"only_a": found.only_a, "only_b": found.only_b, "notes": found.notes}
        emit_json("profile-compare", {**sides, "whole": whole, "operators": found.rows(), **rest})
        return 0
    rows = found.rows()[: args.top]
    table = Table(rows)
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
    print_rest(args.top, len(found.operators))
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


def run_against(args: argparse.Namespace) -> int:
    """Print another runtime's own profile beside ours."""
    from tvm_mobilenet.profiling.peer_nodes import beside_onnxruntime

    args.console.info(f"profiling {args.bundles[0]} and {args.against} in turns")
    found = beside_onnxruntime(
        args.bundles[0],
        args.model,
        threads=args.threads,
        runs=args.runs,
        on_run=args.console.bar("runs"),
    )
    if args.json:
        fields = dataclasses.fields(found)
        document = {f.name: getattr(found, f.name) for f in fields if f.name != "layers"}
        emit_json("profile-against", {**document, "layers": found.rows()})
        return 0
    rows = found.rows()
    table = Table(rows[: args.top])
    table.column("LAYER", "name")
    table.column("KIND", "kind")
    table.column("OURS us", "ours_us", ".1f")
    table.column(f"{found.peer.upper()} us", "theirs_us", ".1f")
    table.column("RATIO", "ratio", ".2f")
    if args.wide:
        table.column("THEIR NODES", "their_nodes")
    table.write({"RATIO": [_ratio_colour(row["ratio"]) for row in rows[: args.top]]})
    print_rest(args.top, len(rows))
    sys.stdout.write(
        f"\nfrom end to end, without instruments: ours {found.ours_whole_us:.1f} us, "
        f"{found.peer} {found.version} {found.theirs_whole_us:.1f} us; its nodes sum up to "
        f"{found.theirs_profiled_us:.1f} us by its own profiler, which counts whole microseconds\n"
    )
    return 0


def _ratio_colour(ratio: float | None) -> str | None:
    return None if ratio is None else "32" if ratio >= 1 else "31"
