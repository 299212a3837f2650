"""`tune --target cuda-...`: search the knobs of a network's kernels on this machine's GPU."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.cli.common import emit_json, model_options, print_table
from tvm_mobilenet.errors import UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.gpu import GpuOutcome, GpuTask

_CPU_ONLY = ("threads", "rpc_tracker", "rpc_key", "static")
_HEADER = ("OPERATOR", "RULE", "TRIALS", "FAILED", "ANALYTIC us", "BEST us", "KEPT")


def run(args: argparse.Namespace, target: TargetSpec) -> int:
    """Print the operators before and after, and the whole network. Raises as `tuning.gpu.tune`."""
    from tvm_mobilenet import frontend
    from tvm_mobilenet.profiling.gpu_network import check_device
    from tvm_mobilenet.tuning import gpu
    from tvm_mobilenet.tuning.records import SHIPPED
    from tvm_mobilenet.tuning.tune import DEFAULT_SECONDS, make_directory

    for name in _CPU_ONLY:
        if getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} goes with a CPU; {target.name} is a GPU")
    if args.space != "template":
        raise UsageError(f"--space {args.space} goes with a CPU; on a GPU all kernels have knobs")
    check_device(target)
    logs = args.logs or SHIPPED
    make_directory(logs / target.name)
    seconds = args.budget if args.budget or args.trials else DEFAULT_SECONDS
    outcome = gpu.tune(
        frontend.load_model(args.model, **model_options(args)),
        target,
        logs,
        trials=args.trials or gpu.TRIALS_PER_OPERATOR,
        seconds=seconds,
        seed=args.seed,
        progress=args.console.progress,
    )
    if args.csv is not None:
        _write_csv(outcome, args.csv)
    if args.json:
        emit_json(
            "tune-gpu", {f.name: getattr(outcome, f.name) for f in dataclasses.fields(outcome)}
        )
    else:
        _print(outcome)
    return 0


def _row(task: GpuTask) -> tuple[object, ...]:
    best = "-" if task.best_seconds is None else f"{task.best_seconds * 1e6:.2f}"
    kept = "tuned" if task.kept else "analytic"
    before = f"{task.analytic_seconds * 1e6:.2f}"
    return task.symbol, task.rule, task.trials, task.failed, before, best, kept


def _write_csv(outcome: GpuOutcome, path: Path) -> None:
    from tvm_mobilenet.tuning.report import csv_writer

    with csv_writer(path) as writer:
        writer.writerows([_HEADER, *(_row(task) for task in outcome.tasks)])


def _print(outcome: GpuOutcome) -> None:
    print_table(_HEADER, [_row(task) for task in outcome.tasks])
    sys.stdout.write(f"\non {outcome.device}, {outcome.precision}: {outcome.stopped}\n")
    if outcome.network_gain is None:
        sys.stdout.write(f"{outcome.network}: nothing was faster than the analytic choice\n")
    else:
        gain = f"{outcome.network_gain:.3f} times as fast"
        sys.stdout.write(f"{outcome.network} with what was found: {gain}; {outcome.parity}\n")
    sys.stdout.write(f"{outcome.directory}: {outcome.records} records written\n")
