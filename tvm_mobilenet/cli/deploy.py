"""`tvm-mobilenet deploy`: a bundle on another machine, proven and timed there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.cli.common import (
    add_json,
    add_threads_argument,
    emit_json,
    positive_int,
    print_table,
)

if TYPE_CHECKING:
    from tvm_mobilenet.remote.deploy import Deployment

HELP = (
    "Upload a bundle's compiled module to a device over TVM's RPC, run the bundle's samples there, "
    "hold the outputs against PyTorch's by the bundle's own rule, measure the latency, both at "
    "every batch size with kernels of its own, and remove what was uploaded. The device needs only "
    "a server of TVM's runtime: 'tvm-mobilenet rpc server' or 'python -m tvm.exec.rpc_server'. "
    "Exit code 5 when parity fails, 6 when the device fails. This runs the bundle's code there."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """deploy BUNDLE (--rpc-tracker H:P --rpc-key K | --rpc H:P) [--threads N] [--runs N] ..."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle's directory")
    parser.add_argument(
        "--rpc-tracker", metavar="HOST:PORT", help="the tracker that knows the device"
    )
    parser.add_argument(
        "--rpc-key", metavar="KEY", help="which kind of device, as its server was started with"
    )
    parser.add_argument(
        "--rpc", metavar="HOST:PORT", help="a server, without a tracker; wins over --rpc-tracker"
    )
    add_threads_argument(parser)
    parser.add_argument(
        "--runs",
        type=positive_int,
        metavar="N",
        help="timed runs at each batch size (default: as many as fill three seconds, 5 to 1000)",
    )
    parser.add_argument(
        "--wait",
        type=positive_int,
        default=60,
        metavar="SECONDS",
        help="how long to wait for a free device (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=positive_int,
        default=600,
        metavar="SECONDS",
        help="how long the device may take in all (default: %(default)s)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print parity and latency; 5 when parity fails."""
    from tvm_mobilenet.errors import ParityError, UsageError
    from tvm_mobilenet.remote.deploy import deploy

    if args.rpc is None and not (args.rpc_tracker and args.rpc_key):
        raise UsageError(
            "say where: --rpc-tracker HOST:PORT --rpc-key KEY, or --rpc HOST:PORT; "
            "see 'tvm-mobilenet deploy --help'"
        )
    deployment = deploy(
        args.bundle,
        tracker=None if args.rpc else args.rpc_tracker,
        key=args.rpc_key,
        rpc=args.rpc,
        threads=args.threads,
        runs=args.runs,
        wait_sec=args.wait,
        timeout_sec=args.timeout,
        progress=args.console.info,
    )
    if args.json:
        emit_json("deploy", deployment.to_json())
    else:
        _print(deployment)
    if not deployment.parity.passed:
        raise ParityError(f"{args.bundle} on {deployment.device}: {deployment.parity.summary()}")
    return 0


def _print(deployment: Deployment) -> None:
    heads = ("DEVICE", "TARGET", "THREADS", "BATCH", "MEDIAN ms", "MIN ms", "P95 ms", "RUNS")
    print_table(
        (*heads, "PARITY"),
        [
            (
                deployment.device,
                deployment.target,
                deployment.threads,
                timing.batch,
                *(
                    f"{1e3 * value:.4g}"
                    for value in (timing.median_seconds, min(timing.seconds), timing.p95_seconds)
                ),
                len(timing.seconds),
                "passed" if timing.passed else "FAILED",
            )
            for timing in deployment.timings
        ],
    )
    if deployment.parity.passed:
        sys.stdout.write(f"\n{deployment.parity.summary()}\n")
