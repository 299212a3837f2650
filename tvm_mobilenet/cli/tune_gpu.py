"""`tune --target cuda-...`: search the knobs of a network's kernels on this machine's GPU."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tvm_mobilenet.cli.common import emit_json, model_options
from tvm_mobilenet.errors import UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

_CPU_ONLY = ("threads", "rpc_tracker", "rpc_key", "static")


def run(args: argparse.Namespace, target: TargetSpec) -> int:
    """Print what `tune` prints of a CPU. Raises as `tuning.gpu.tune`."""
    from tvm_mobilenet import frontend
    from tvm_mobilenet.cli.tune import payload, print_outcome
    from tvm_mobilenet.profiling.gpu_network import check_device
    from tvm_mobilenet.tuning import gpu
    from tvm_mobilenet.tuning.records import SHIPPED
    from tvm_mobilenet.tuning.report import write_csv
    from tvm_mobilenet.tuning.tune import label_of

    for name in _CPU_ONLY:
        if getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} goes with a CPU; {target.name} is a GPU")
    if args.space != "template":
        raise UsageError(f"--space {args.space} goes with a CPU; on a GPU all kernels have knobs")
    check_device(target)
    console = args.console
    console.info(f"importing {args.model}")
    options = model_options(args)
    imported = frontend.load_model(args.model, **options)
    outcome = gpu.tune(
        imported,
        target,
        args.logs or SHIPPED,
        label=f"{label_of(imported.name, options)} {target.precision}",
        trials=args.trials,
        seconds=args.budget,
        seed=args.seed,
        info=console.info,
        warn=console.warn,
        progress=console.progress,
    )
    if args.csv is not None:
        write_csv(outcome, args.csv)
    if args.json:
        emit_json("tune", {**payload(outcome), "precision": target.precision})
    else:
        made_for = f"{outcome.setting.device}, {target.precision}"
        print_outcome(outcome, made_for, digits=2, in_network=False)
    return 0
