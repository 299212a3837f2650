"""`tvm-mobilenet tune`: search the schedules of a model's operators on a device, record winners."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.cli.common import (
    MODEL_HELP,
    add_json,
    add_model_arguments,
    add_precision_argument,
    add_target_argument,
    emit_json,
    gpu_target,
    model_options,
    positive_int,
    print_table,
)
from tvm_mobilenet.errors import UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.tuning.report import Outcome

HELP = (
    "Find the fastest schedule of every operator of a model on a device, and record it for build. "
    "The analytic choice is measured first; what is not faster inside the network, outside noise, "
    "is not kept. Every finished measurement is on the disk at once: the same command goes on "
    "where it was interrupted. Exit code 6: nothing could be measured."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """tune MODEL --target T [--trials N] [--budget 5m] and the options of the model"""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_target_argument(parser)
    add_precision_argument(parser)
    parser.add_argument(
        "--space",
        choices=("template", "sketch"),
        default="template",
        help="template: the knobs of our templates, for every operator that has one; sketch: the "
        "space that MetaSchedule generates, for functions without a template, which 'build' shows "
        "as fallback (default: %(default)s)",
    )
    parser.add_argument(
        "--static",
        action="store_true",
        help="no device: predict by llvm-mca and instruction counts under QEMU what is fastest on "
        "the target's core, for one thread. Records of it are marked, and yield to measured ones",
    )
    parser.add_argument(
        "--trials",
        type=positive_int,
        metavar="N",
        help="measure N candidates in all, those of earlier runs included; with --space sketch "
        "for each function (default there: 32), on a GPU for each operator in the mean",
    )
    parser.add_argument(
        "--budget",
        type=duration,
        metavar="TIME",
        help="for the whole run, as 90s, 5m or 1h (default: 5m without --trials)",
    )
    parser.add_argument(
        "--threads",
        type=positive_int,
        metavar="N",
        help="measure on, and record for, N threads (default: the target's cores, at most this "
        "machine's). Records of one thread apply to builds for one thread, those of several to "
        "builds for several",
    )
    parser.add_argument(
        "--logs",
        type=Path,
        metavar="DIR",
        help="directory of tuning records to read and write instead of the package's own",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="same seed, same candidates (default: %(default)s)"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV as well")
    group = parser.add_argument_group("measuring on other devices")
    group.add_argument(
        "--rpc-tracker",
        metavar="HOST:PORT",
        help="the RPC tracker whose devices measure ('rpc tracker' starts one)",
    )
    group.add_argument(
        "--rpc-key", metavar="KEY", help="which of its devices: all of this key, in parallel"
    )
    add_model_arguments(parser)
    add_json(parser)


def duration(text: str) -> float:
    """argparse type: seconds from 90, 90s, 5m or 1h."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 5m or 1h")
    return seconds


@contextlib.contextmanager
def interrupts_kept() -> Iterator[None]:
    """Ctrl-C inside TVM's C++ comes out as a RuntimeError without a message: say what it was."""
    pressed: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    except RuntimeError as error:
        if pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def run(args: argparse.Namespace) -> int:
    """Print the operators before and after, and the whole network; or one JSON document."""
    with interrupts_kept():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    if args.csv is not None:
        from tvm_mobilenet.profiling.exports import check_writable

        check_writable(args.csv, "--csv")
    args.console.detail("importing the compiler")
    if target := gpu_target(args):
        from tvm_mobilenet.cli import tune_gpu

        return tune_gpu.run(args, target)
    if args.space == "sketch" and not args.static:
        return _sketch(args)
    from tvm_mobilenet.tuning.report import write_csv

    outcome = _static(args) if args.static else _measured(args)
    if args.csv is not None:
        write_csv(outcome, args.csv)
    if args.json:
        emit_json("tune", payload(outcome))
    else:
        threads = outcome.setting.threads
        print_outcome(outcome, f"{threads} thread{'s'[: threads > 1]}")
    return 0


def _measured(args: argparse.Namespace) -> Outcome:
    from tvm_mobilenet.tuning.tune import tune

    return tune(
        args.model, rpc_tracker=args.rpc_tracker, rpc_key=args.rpc_key, **_search_options(args)
    )


def _static(args: argparse.Namespace) -> Outcome:
    from tvm_mobilenet.tuning.static.tune import tune_static

    if args.space == "sketch" or args.rpc_tracker or args.rpc_key:
        raise UsageError("--static is for --space template, and uses no device")
    return tune_static(args.model, **_search_options(args))


def _search_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "target": args.target,
        "trials": args.trials,
        "seconds": args.budget,
        "logs": args.logs,
        "threads": args.threads,
        "seed": args.seed,
        "info": args.console.info,
        "warn": args.console.warn,
        "progress": args.console.progress,
        **model_options(args),
    }


def _sketch(args: argparse.Namespace) -> int:
    from tvm_mobilenet.tuning.report import sketch_fields, write_sketch_csv
    from tvm_mobilenet.tuning.tune import tune_sketch

    outcomes, speed_up = tune_sketch(
        args.model,
        target=args.target,
        trials=args.trials,
        seconds=args.budget,
        logs=args.logs,
        threads=args.threads,
        rpc_tracker=args.rpc_tracker,
        rpc_key=args.rpc_key,
        seed=args.seed,
        info=args.console.info,
        warn=args.console.warn,
        progress=args.console.progress,
        **model_options(args),
    )
    if args.csv is not None:
        write_sketch_csv(outcomes, args.csv)
    if args.json:
        functions = [sketch_fields(outcome) for outcome in outcomes]
        emit_json("tune-sketch", {"functions": functions, "speed_up": speed_up})
        return 0
    header = ("FUNCTION", "TRIALS", "REUSED", "FAILED", "FALLBACK us", "BEST us", "KEPT")
    rows = []
    for o in outcomes:
        best = "-" if o.best_seconds is None else f"{o.best_seconds * 1e6:.1f}"
        kept = "sketch" if o.tuned else o.fault or "fallback"
        before = f"{o.baseline_seconds * 1e6:.1f}"
        rows.append((o.function, o.trials, o.reused, o.failed, before, best, kept))
    print_table(header, rows)
    for o in outcomes:
        if o.first_failure:
            sys.stdout.write(f"failed: {o.function}: {o.failed}, first: {o.first_failure}\n")
    if speed_up is not None:
        interval = f"{speed_up.low:.3f}-{speed_up.high:.3f}"
        sys.stdout.write(f"\nend to end {speed_up.value:.3f} times as fast ({interval})\n")
    if not outcomes:
        sys.stdout.write("every operator has a template: --space template tunes those\n")
    return 0


def payload(outcome: Outcome) -> dict[str, object]:
    """The outcome for `--json`."""
    fields = {f.name: getattr(outcome, f.name) for f in dataclasses.fields(outcome)}
    return fields | {
        "predicted_before_seconds": outcome.predicted("baseline"),
        "predicted_after_seconds": outcome.predicted("best"),
        "trials_per_minute": outcome.trials_per_minute,
    }


_HEADER = (
    "COUNT",
    "OPERATOR",
    "SHAPE",
    "SHARE",
    "TRIALS",
    "FAILED",
    "ANALYTIC us",
    "BEST us",
    "IN NETWORK us",
    "TUNED us",
    "KEPT",
)
_IN_NETWORK = ("IN NETWORK us", "TUNED us")


def print_outcome(
    outcome: Outcome, made_for: str, *, digits: int = 1, in_network: bool = True
) -> None:
    """The table and what is to be said of the whole. made_for: what the records are for.

    digits: of microseconds behind the point. in_network: whether operators were timed there.
    """
    from tvm_mobilenet.tuning.report import rows

    columns = [c for c in _HEADER if in_network or c not in _IN_NETWORK]
    table = []
    for row in rows(outcome):
        kind, shape, count, share, trials, failed, *times, tuned = row
        shown = [f"{us:.{digits}f}" if us is not None else "-" for us in times]
        kept = "tuned" if tuned else "analytic"
        cells = (count, kind, shape, f"{share:.1%}", trials, failed, *shown, kept)
        table.append([dict(zip(_HEADER, cells, strict=True))[column] for column in columns])
    print_table(columns, table)
    write = sys.stdout.write
    for task in outcome.tasks:
        if task.first_failure:
            write(f"failed: {task.kind} {task.shape}: {task.failed}, first: {task.first_failure}\n")
    write(
        f"\n{outcome.trials} trials ({outcome.reused} of earlier runs) in {outcome.seconds:.0f} s"
        f": {outcome.stopped}\n"
    )
    if outcome.trials_per_minute is not None:
        spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in outcome.spent.items())
        write(f"{outcome.trials_per_minute:.0f} trials a minute of searching; {spent}\n")
    before, after = (outcome.predicted(which) * 1e3 for which in ("baseline", "best"))
    write(f"sum of the operators alone: analytic {before:.3f} ms, best {after:.3f} ms\n")
    if outcome.speed_up is not None and outcome.before_seconds and outcome.after_seconds:
        ratio = outcome.speed_up
        write(
            f"{outcome.network} end to end: analytic {outcome.before_seconds * 1e3:.3f} ms, tuned "
            f"{outcome.after_seconds * 1e3:.3f} ms: {ratio.value:.3f} times as fast "
            f"({ratio.low:.3f}-{ratio.high:.3f})\n"
        )
    elif not outcome.records:
        write(f"{outcome.network}: nothing was faster than the analytic choice\n")
    if outcome.parity is not None:
        write(f"with what was found: {outcome.parity}\n")
    write(f"{outcome.directory}: {outcome.records} records written, for {made_for}\n")
