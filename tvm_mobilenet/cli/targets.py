"""`tvm-mobilenet targets`: the devices it builds for, and this machine's own description."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from tvm_mobilenet import targets
from tvm_mobilenet.cli.common import add_json, emit_json, print_table
from tvm_mobilenet.errors import UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.profiling.limits import Limits

HELP = (
    "List the devices that come with the package, show one, or describe this machine. "
    "show and detect print the TOML text that --target takes as a file; detect adds, as comments, "
    "the limits of this machine that 'profile' measured."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """targets [list | show NAME | detect] [--json]"""
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "show", "detect"),
        default="list",
        help="what to print (default: %(default)s)",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="with show: a name or .toml file")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="with detect: measure the FMA peak and the bandwidth of each level of memory anew",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print devices on stdout: a table, TOML, or one JSON document."""
    if (args.action == "show") != (args.name is not None):
        raise UsageError("'targets show' takes one NAME; 'targets' and 'targets detect' take none")
    if args.measure and args.action != "detect":
        raise UsageError("--measure goes with 'targets detect'")
    if args.action == "list":
        _print_all(as_json=args.json)
        return 0
    if args.action == "detect":
        return _detect(args)
    spec = targets.load(args.name)
    if args.json:
        emit_json("target", {"target": spec})
    else:
        sys.stdout.write(spec.to_toml(defaults=False))
    return 0


def _detect(args: argparse.Namespace) -> int:
    from tvm_mobilenet.profiling import limits

    spec = targets.detect()
    if args.measure:
        for threads in sorted({1, spec.cores}):
            limits.limits(threads, anew=True, progress=args.console.info)
    found = limits.all_known()
    if args.json:
        emit_json("target", {"target": spec, "limits": found})
        return 0
    sys.stdout.write(spec.to_toml(defaults=False))
    for entry in found:
        _print_limits(entry)
    if not found:
        sys.stdout.write("# limits not measured yet: 'targets detect --measure' does\n")
    return 0


def _print_limits(found: Limits) -> None:
    """As comments, so that the text is still a target's file."""
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    busy = "" if found.quiet else ", on a busy machine: measured again when next asked for"
    lines = [f"limits on {threads}, float32, measured {found.measured_on}{busy}"]
    lines.append(f"  FMA peak  {found.gflops:7.1f} GFLOP/s")
    for level in found.levels:
        room = f", {level.kib} KiB a core" if level.kib else ""
        lines.append(f"  {level.name:8}  {level.gb_per_s:7.1f} GB/s{room}")
    sys.stdout.write("".join(f"# {line}\n" for line in lines))


def _print_all(*, as_json: bool) -> None:
    specs = [targets.load(name) for name in targets.names()]
    if as_json:
        emit_json("targets", {"targets": specs})
        return
    rows = [
        (
            s.name,
            _processor(s),
            s.cores,
            s.vector_bits,
            s.fma_units,
            s.l1d_kib,
            s.l2_kib,
            s.description,
        )
        for s in specs
    ]
    header = ("NAME", "CPU", "CORES", "VECTOR", "FMA", "L1D KiB", "L2 KiB", "DESCRIPTION")
    print_table(header, rows)
    sys.stdout.write("\nnative is this machine: 'tvm-mobilenet targets detect' describes it\n")


def _processor(spec: targets.TargetSpec) -> str:
    return f"{spec.gpu.arch}, host {spec.mcpu}" if spec.gpu else spec.mcpu
