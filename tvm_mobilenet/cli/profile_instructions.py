"""`tvm-mobilenet profile` without times: the instructions that each operator executes."""

from __future__ import annotations

import argparse
import sys

from tvm_mobilenet.cli.common import emit_json
from tvm_mobilenet.cli.table import Table, print_rest
from tvm_mobilenet.errors import UsageError


def run_instructions(args: argparse.Namespace) -> int:
    """Print what each operator executes, or one JSON document; write --csv and --html."""
    from tvm_mobilenet.profiling import exports, html
    from tvm_mobilenet.profiling.instructions import profile_instructions

    if args.trace:
        where = "leave out --instructions" if args.instructions else "name a device with --rpc"
        raise UsageError(f"--trace is of times: {where}")
    if args.parity:
        raise UsageError("--parity goes with the page of times: leave out --instructions")
    counted = profile_instructions(
        args.bundles[0],
        progress=args.console.info,
        on_operator=args.console.bar("operators"),
    )
    rows = counted.rows(args.by)
    if args.csv:
        exports.write_csv(counted, args.csv, args.by)
        args.console.info(f"{args.csv}: {len(rows)} rows")
    if args.html:
        html.write_instructions(counted, args.html)
        args.console.info(f"{args.html}: open it in a browser")
    if args.json:
        emit_json("profile-instructions", counted.document())
        return 0
    table = Table(rows[: args.top])
    table.column({"layer": "LAYER", "op": "OPERATOR", "kind": "KIND"}[args.by], "name")
    if args.by != "kind":
        table.column("KIND", "kind")
    if args.by != "layer":
        table.column("CALLS", "calls", "d")
    table.column("INSTRUCTIONS", "instructions", "d")
    table.column("SHARE", "share", ".1%")
    table.column("SUM", "cumulative_share", ".1%")
    table.column("FLOOR", "floor", ".0f")
    table.column("TIMES", "over_floor", ".2f")
    table.column("SCHEDULE", "schedule")
    table.column("SOURCE", "source")
    if args.wide:
        if args.by != "kind":
            table.column("SHAPE", "shape")
            table.column("KNOBS", "knobs")
        table.column("ONNX NODES", "onnx_nodes")
    table.write({})
    print_rest(args.top, len(rows))
    lines = [
        "",
        f"{counted.total} instructions an inference on one thread, under {counted.machine}: "
        f"operators {counted.total - counted.rest}, between them {counted.rest}",
        "FLOOR: the operator's Mult-Adds as vector instructions and nothing else",
    ]
    lines += [f"note: {note}" for note in counted.notes]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
