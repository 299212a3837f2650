"""`tvm-mobilenet profile --static`: a GPU's kernels without a GPU."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from tvm_mobilenet.cli.common import emit_json
from tvm_mobilenet.cli.table import Table, print_rest
from tvm_mobilenet.errors import UsageError

_OTHERS = ("compare", "against", "model", "rpc", "rpc_tracker", "rpc_key", "trace", "html", "wide")


def run_static(args: argparse.Namespace) -> int:
    """Print a row for each kernel and architecture, or one JSON document; write --csv."""
    for option in _OTHERS:
        if getattr(args, option):
            raise UsageError(f"--{option.replace('_', '-')} does not go with --static")
    if len(args.bundles) != 1:
        raise UsageError("profile --static takes one BUNDLE")
    from tvm_mobilenet.profiling.static import profile_static, write_csv

    found = profile_static(args.bundles[0])
    if args.csv:
        write_csv(found, args.csv)
        args.console.info(f"{args.csv}: {len(found.kernels)} rows")
    if args.json:
        emit_json("profile-static", asdict(found))
        return 0
    rows = [asdict(kernel) for kernel in found.kernels]
    table = Table(rows[: args.top])
    table.column("ARCH", "arch")
    table.column("KERNEL", "kernel")
    table.column("LAUNCHES", "launches", "d")
    table.column("BLOCKS", "blocks", "d")
    table.column("THREADS", "threads", "d")
    table.column("REGISTERS", "registers", "d")
    table.column("SPILLS B", "spill_bytes", "d")
    table.column("STACK B", "stack_bytes", "d")
    table.column("SHARED B", "shared_bytes", "d")
    table.column("BLOCKS/SM", "blocks_per_sm", "d")
    table.column("OCCUPANCY", "occupancy", ".0%")
    table.column("LIMIT", "limit")
    table.column("WAVES", "waves", ".2f")
    table.write({})
    print_rest(args.top, len(rows))
    spilling = sorted({row["kernel"] for row in rows if row["spill_bytes"]})
    sys.stdout.write(
        f"\n{found.model} for {found.target}, {found.precision}: {found.launches} launches an "
        f"inference{', as a CUDA graph' if found.cuda_graph else ''}; "
        f"{'spills in ' + ', '.join(spilling) if spilling else 'no spills'}\n"
        "occupancy is theoretical, and nothing here was measured\n"
    )
    return 0
