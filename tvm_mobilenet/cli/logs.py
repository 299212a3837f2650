"""`tvm-mobilenet logs`: list, show, merge, check and prune tuning records."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tvm_mobilenet.cli.common import (
    add_json,
    add_target_argument,
    emit_json,
    positive_int,
    print_table,
)
from tvm_mobilenet.errors import ParityError, UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.device import Checker
    from tvm_mobilenet.tuning.gpu_measure import GpuMeasurer
    from tvm_mobilenet.tuning.maintain import Checked
    from tvm_mobilenet.tuning.measure import Measurer
    from tvm_mobilenet.tuning.records import Record

HELP = (
    "Look after tuning records, what tune writes and build applies. list: the targets that have "
    "some; show TARGET: a target's records; merge DIR...: add other directories' records and "
    "measurements, of two records of one operator the one that gained more; check: validate and "
    "measure a sample of the target's records again (exit code 5 when numbers are wrong); prune: "
    "remove the target's records whose kernel has changed, and damaged lines."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """logs list | show TARGET | merge DIR... | check | prune"""
    parser.add_argument(
        "action", choices=("list", "show", "merge", "check", "prune"), help="what to do"
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="show: a name of list, or native; merge: directories",
    )
    parser.add_argument(
        "--logs",
        type=Path,
        metavar="DIR",
        help="directory of tuning records instead of the package's own",
    )
    add_target_argument(parser)
    group = parser.add_argument_group("options of check")
    group.add_argument(
        "--sample",
        type=positive_int,
        default=8,
        metavar="N",
        help="how many records (default: %(default)s)",
    )
    group.add_argument("--seed", type=int, default=0, help="which records (default: %(default)s)")
    group.add_argument(
        "--threads", type=positive_int, metavar="N", help="as for tune (default: all cores)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print what there is or was done."""
    if args.action == "show" and len(args.names) != 1:
        raise UsageError("'logs show' takes one TARGET; 'logs list' has the names")
    if args.action == "merge" and not args.names:
        raise UsageError("'logs merge' takes the directories to add")
    if args.action not in ("show", "merge") and args.names:
        raise UsageError(f"'logs {args.action}' takes no names; --target names the target")
    actions = {"list": _list, "show": _show, "merge": _merge, "check": _check, "prune": _prune}
    return actions[args.action](args)


def _logs(args: argparse.Namespace) -> Path:
    from tvm_mobilenet.tuning.records import SHIPPED

    return args.logs or SHIPPED


def _list(args: argparse.Namespace) -> int:
    from tvm_mobilenet.tuning import maintain

    found = maintain.summaries(_logs(args))
    if args.json:
        emit_json("logs-list", {"directory": _logs(args), "targets": found})
        return 0
    header = ("TARGET", "RECORDS", "THREADS", "NEWEST", "MEASURED", "FAILED", "DEVICES")
    rows = [
        (
            s.target,
            s.records,
            ",".join(map(str, s.threads)) or "-",
            s.newest or "-",
            s.measured,
            s.failed,
            ", ".join(s.devices) or "-",
        )
        for s in found
    ]
    print_table(header, rows)
    for remark in (remark for s in found for remark in s.damaged):
        args.console.warn(f"{remark}; 'logs prune' removes it")
    return 0


def _show(args: argparse.Namespace) -> int:
    from tvm_mobilenet import targets
    from tvm_mobilenet.schedules.spec import from_json
    from tvm_mobilenet.tuning import maintain
    from tvm_mobilenet.tuning.records import RECORDS, directory_of, read_records

    name = args.names[0]
    if name == "native":
        name = directory_of(targets.load(name))
    records = read_records(maintain.directory(_logs(args), name) / RECORDS)
    if args.json:
        emit_json("logs-show", {"target": name, "records": records})
        return 0
    header = ("OPERATOR", "RULE", "KNOBS", "THREADS", "US", "ANALYTIC", "GAIN", "NETWORK", "TIME")
    rows = []
    for record in records:
        spec = from_json(record.operator)
        inside = record.in_network
        rows.append(
            (
                f"{spec.kind} {spec}",
                record.rule,
                _knobs(record),
                record.setting.threads,
                f"{record.seconds * 1e6:.1f}",
                f"{record.baseline_seconds * 1e6:.1f}",
                f"{maintain.speed_up(record):.3f}",
                inside.network if inside else "-",
                record.time[:16],
            )
        )
    print_table(header, rows)
    return 0


def _merge(args: argparse.Namespace) -> int:
    from tvm_mobilenet.tuning import maintain

    into = _logs(args)
    added = maintain.merge([Path(name) for name in args.names], into)
    if args.json:
        payload = {t: {"records": r, "measured": m} for t, (r, m) in added.items()}
        emit_json("logs-merge", {"directory": into, "added": payload})
        return 0
    for target, (records, measured) in added.items():
        sys.stdout.write(
            f"{into / target}: {records} records and {measured} measurements were added\n"
        )
    return 0


def _check(args: argparse.Namespace) -> int:
    import dataclasses

    from tvm_mobilenet import targets
    from tvm_mobilenet.tuning import maintain
    from tvm_mobilenet.tuning.records import directory_of

    target = targets.load(args.target)
    here = _on_cpu(args) if target.gpu is None else _on_gpu(args, target)
    path = maintain.directory(_logs(args), directory_of(here.target))
    with closing(here.measurer) as measurer:
        results = maintain.check(
            path,
            here.target,
            measurer,
            here.checker,
            threads=here.target.cores,
            sample=args.sample,
            seed=args.seed,
            info=args.console.info,
        )
    if args.json:
        rows = [{f.name: getattr(r, f.name) for f in dataclasses.fields(r)} for r in results]
        emit_json("logs-check", {"directory": path, **here.name, "records": rows})
    else:
        print_table(
            ("OPERATOR", "KERNEL", "NUMBERS", "GAIN NOW, ALONE", "GAIN RECORDED"),
            [_checked(result) for result in results],
        )
    if wrong := [result for result in results if result.fault is not None]:
        raise ParityError(f"{len(wrong)} of {len(results)} records are wrong: {wrong[0].fault}")
    return 0


class _Here(NamedTuple):
    """What measures and checks records on this machine; its name, as `--json` tells it."""

    target: TargetSpec
    measurer: Measurer | GpuMeasurer
    checker: Checker
    name: dict[str, str]


def _on_cpu(args: argparse.Namespace) -> _Here:
    from tvm_mobilenet.profiling import machine
    from tvm_mobilenet.tuning.device import Local
    from tvm_mobilenet.tuning.tune import local_measurer, local_target

    target, cpus = local_target(args.target, args.threads)
    name = {"cpu": machine.cpu_name()}
    return _Here(target, local_measurer(target, cpus), Local(cpus), name)


def _on_gpu(args: argparse.Namespace, target: TargetSpec) -> _Here:
    from tvm_mobilenet.profiling import gpu_network
    from tvm_mobilenet.tuning.gpu import local_measurer

    if args.threads:
        raise UsageError(f"--threads goes with a CPU; {target.name} is a GPU")
    gpu_network.check_device(target)
    measurer = local_measurer(target)
    return _Here(target, measurer, measurer, {"gpu": gpu_network.device_name()})


def _checked(result: Checked) -> tuple[object, ...]:
    from tvm_mobilenet.schedules.spec import from_json

    spec = from_json(result.record.operator)
    return (
        f"{spec.kind} {spec}",
        "current" if result.current else "changed since",
        "-" if not result.current else result.fault or "right",
        "-" if result.speed_up is None else f"{result.speed_up:.3f}",
        f"{result.recorded_speed_up:.3f}",
    )


def _prune(args: argparse.Namespace) -> int:
    from tvm_mobilenet import targets
    from tvm_mobilenet.tuning import maintain
    from tvm_mobilenet.tuning.records import directory_of

    target = targets.load(args.target)
    path = maintain.directory(_logs(args), directory_of(target))
    stale, damaged = maintain.prune(path, target)
    if args.json:
        emit_json("logs-prune", {"directory": path, "stale": stale, "damaged": damaged})
    else:
        sys.stdout.write(f"{path}: {stale} stale records and {damaged} damaged lines removed\n")
    return 0


def _knobs(record: Record) -> str:
    if record.rule == "sketch":
        return record.rule
    knobs = json.dumps(record.knobs).translate(str.maketrans("", "", '{}"')).replace(": ", "=")
    return f"{knobs} (static)" if record.space == "static" else knobs
