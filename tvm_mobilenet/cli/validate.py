"""`tvm-mobilenet validate`: numerical parity with PyTorch, from end to end."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.cli.common import (
    MODEL_HELP,
    add_json,
    add_model_arguments,
    add_precision_argument,
    add_target_argument,
    add_threads_argument,
    emit_json,
    model_options,
    positive_int,
    print_table,
)

if TYPE_CHECKING:
    from tvm_mobilenet.parity import ParityReport, Verdict
    from tvm_mobilenet.parity.per_layer import PerLayerReport
    from tvm_mobilenet.profiling.remote import Device
    from tvm_mobilenet.targets import TargetSpec

HELP = (
    "Hold a bundle, or a model compiled for the occasion, against PyTorch. The judge is PyTorch at "
    "float64: the error may be at most 3 times that of PyTorch at float32, per output, more where "
    "an output has few values, and 18 float32 roundings of its size always pass. A bundle is "
    "judged on the samples stored in it, and on fresh ones too when --model names the model that "
    "it was built from. Exit code 5 when parity fails. Loading a bundle runs the code in it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """validate BUNDLE|MODEL [--model MODEL] [--target T] [--image FILE ...] ..."""
    parser.add_argument(
        "subject",
        metavar="BUNDLE|MODEL",
        nargs="?",
        help=f"a bundle's directory, or a model: {MODEL_HELP}",
    )
    parser.add_argument(
        "--model",
        "--onnx",
        dest="against",
        metavar="MODEL",
        help="with BUNDLE: the model it was built from, for fresh samples",
    )
    parser.add_argument(
        "--samples",
        type=positive_int,
        default=2,
        metavar="N",
        help="fresh random samples (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of the fresh samples (default: %(default)s)"
    )
    parser.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="also compare on this picture; may be given several times",
    )
    parser.add_argument(
        "--adversarial",
        action="store_true",
        help="also compare on zeros, constants, denormals, large values, NaN, infinity, impulses; "
        "PyTorch's own error counts at least as large, relative to the output, as on samples",
    )
    parser.add_argument(
        "--per-layer",
        action="store_true",
        help="compare every operator's output too: in the running network, and by itself on the "
        "reference's inputs, where PyTorch's error in the running network is what counts; a bundle "
        "needs --model",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="with --per-layer: draw how errors grow through the network (.png or .svg)",
    )
    parser.add_argument(
        "--bisect",
        type=Path,
        metavar="DIR",
        help="when parity fails: find the operator and the compiler's phase that break it, and "
        "write a minimal repro to DIR; where the subject runs: here, under QEMU, over RPC, or by "
        "emulated CUDA kernels; a bundle needs --model",
    )
    parser.add_argument(
        "--self-test",
        action="store_true",
        help="judge the tool: plant seven faults into builds of MODEL (default: MobileNetV1 0.25 "
        "at 64x64) for this CPU, see that each is caught and found in its operator",
    )
    remote = parser.add_argument_group("on a device over RPC (BUNDLE only)")
    remote.add_argument("--rpc-tracker", metavar="HOST:PORT", help="the tracker that knows it")
    remote.add_argument("--rpc-key", metavar="KEY", help="which kind of device")
    remote.add_argument("--rpc", metavar="HOST:PORT", help="a server, without a tracker")
    add_target_argument(parser)
    add_precision_argument(parser)
    add_threads_argument(parser)
    parser.add_argument(
        "--exporter",
        choices=("dynamo", "torchscript"),
        default="dynamo",
        help="how PyTorch models become ONNX (default: %(default)s)",
    )
    add_model_arguments(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report; 5 when parity fails."""
    from tvm_mobilenet import api
    from tvm_mobilenet.errors import InputError, ParityError, UsageError
    from tvm_mobilenet.parity.plot import draw
    from tvm_mobilenet.parity.repro import check_directory
    from tvm_mobilenet.profiling.plot import check
    from tvm_mobilenet.remote.trace import chosen_device

    if args.self_test:
        return _self_test(args)
    if args.subject is None:
        raise UsageError("say what to validate: a bundle, a model, or --self-test")
    if args.plot is not None:
        if not args.per_layer:
            raise UsageError("--plot shows what --per-layer finds: give both")
        check(args.plot)
    device = chosen_device(args.rpc, args.rpc_tracker, args.rpc_key)
    if args.bisect is not None:
        check_directory(args.bisect)
        _target_to_bisect(args, device)
    report = api.validate(
        args.subject,
        target=args.target,
        precision=args.precision,
        against=args.against,
        exporter=args.exporter,
        seed=args.seed,
        count=args.samples,
        images=args.image,
        adversarial=args.adversarial,
        layers=args.per_layer or args.bisect is not None,
        threads=args.threads,
        device=device,
        progress=args.console.info,
        **model_options(args),
    )
    if args.json:
        emit_json("validate", {"subject": args.subject, "parity": report.to_json()})
    elif report.checked:
        _print(report)
        if report.layers is not None:
            _print_layers(report.layers)
    if args.plot is not None and report.layers is not None:
        draw(report.layers, args.plot, args.subject)
        args.console.info(f"wrote {args.plot}")
    if not report.checked:
        raise InputError(f"{args.subject}: {report.summary()}")
    if not report.passed:
        found = "" if args.bisect is None else f"; {_bisect(args, report, device)}"
        raise ParityError(f"{args.subject}: {report.summary()}{found}")
    if args.bisect is not None:
        args.console.info("parity passed: there is nothing to bisect")
    return 0


def _bisect(args: argparse.Namespace, report: ParityReport, device: Device | None) -> str:
    """The finding in a line, with where its repro lies."""
    from tvm_mobilenet import frontend
    from tvm_mobilenet.parity.bisect import bisect
    from tvm_mobilenet.parity.repro import write_repro
    from tvm_mobilenet.tuning.records import applicable

    layers = report.layers
    if layers is None or layers.passed:
        return "no operator is at fault: the entry that was traced is right"
    target = _target_to_bisect(args, device)
    imported = frontend.load_model(
        args.against or args.subject, exporter=args.exporter, **model_options(args)
    )
    records = applicable(target, args.threads or target.cores)
    finding = bisect(
        imported, target, layers, records=records, device=device, progress=args.console.info
    )
    path = write_repro(
        finding, target, args.bisect, model=imported.name, records=records, device=device
    )
    return f"{finding.summary()}; see {path}/README.md"


def _target_to_bisect(args: argparse.Namespace, device: Device | None) -> TargetSpec:
    """What the subject is for; raises as `bisect.check_target`."""
    from tvm_mobilenet import targets
    from tvm_mobilenet.parity.bisect import check_target
    from tvm_mobilenet.parity.cut import target_of
    from tvm_mobilenet.runtime import manifest

    target = targets.load(args.target)
    if (bundle := Path(args.subject)).is_dir():
        target = target_of(manifest.read(bundle).document["target"])
    check_target(target, device)
    return target


def _self_test(args: argparse.Namespace) -> int:
    from tvm_mobilenet import frontend, targets
    from tvm_mobilenet.errors import ParityError, UsageError
    from tvm_mobilenet.parity.self_test import check_target, self_test

    others = (
        "against",
        "image",
        "adversarial",
        "per_layer",
        "bisect",
        "plot",
        "rpc",
        "rpc_tracker",
    )
    if given := [name for name in others if getattr(args, name)]:
        raise UsageError(f"--{given[0].replace('_', '-')} has no place in --self-test")
    target = targets.load(args.target)
    check_target(target)  # before any work
    options = model_options(args)
    if args.subject is None:
        options |= {"alpha": 0.25, "resolution": 64}
    imported = frontend.load_model(
        args.subject or "mobilenet_v1", exporter=args.exporter, **options
    )
    report = self_test(imported, target, progress=args.console.info)
    if args.json:
        emit_json("self-test", {"model": imported.name, "self_test": report.to_json()})
    else:
        print_table(
            ("FAULT", "AFTER", "PLANTED INTO", "RATIO", "CAUGHT", "FOUND IN", "VERDICT"),
            [
                (
                    trial.fault or "(none)",
                    trial.phase or "-",
                    trial.planted or "-",
                    f"{trial.ratio:.3g}",
                    "yes" if trial.caught else "no",
                    trial.found or "-",
                    "passed" if trial.passed else "FAILED",
                )
                for trial in report.trials
            ],
        )
    if not report.passed:
        raise ParityError(report.summary())
    if not args.json:
        sys.stdout.write(f"\n{report.summary()}\n")
    return 0


def _print(report: ParityReport) -> None:
    from tvm_mobilenet.parity.judge import SAMPLES

    rows = []
    for row in report.outputs:
        tops = {top.k: f"{top.agreed}/{top.compared}" for top in row.top}
        rows.append(
            (
                row.output,
                row.inputs,
                f"{row.max_abs:.3g}",
                f"{row.torch_max_abs:.3g}",
                f"{row.relative_l2:.3g}",
                f"{row.torch_relative_l2:.3g}",
                "-"
                if row.onnxruntime_relative_l2 is None
                else f"{row.onnxruntime_relative_l2:.3g}",
                f"{row.snr_db:.1f}",
                _ulps(row),
                f"{row.ratio:.2f}",
                f"{row.special_values}",
                tops.get(1, "-"),
                tops.get(5, "-"),
                "passed" if row.passed else "FAILED",
            )
        )
    print_table(
        (
            "OUTPUT",
            "INPUTS",
            "MAX ERROR",
            "PYTORCH'S",
            "RELATIVE L2",
            "PYTORCH'S",
            "ORT'S",
            "SNR dB",
            "ULP P50/P99",
            "RATIO",
            "NAN/INF",
            "TOP-1",
            "TOP-5",
            "VERDICT",
        ),
        rows,
    )
    if any(row.inputs != SAMPLES for row in report.outputs):
        sys.stdout.write(
            "\non other inputs than samples PyTorch's own error counts at least as large, relative "
            "to the output, as on samples\n"
        )
    if report.passed:
        sys.stdout.write(f"\n{report.summary()}, over {report.samples} samples\n")


def _ulps(row: Verdict) -> str:
    """The bins that half and 99 in a hundred of the values' distances reach, in float32 numbers."""
    import numpy as np

    from tvm_mobilenet.parity.judge import ULP_BOUNDS

    reached = np.cumsum(row.ulps)
    if not len(reached) or not reached[-1]:
        return "-"
    names = [*map(str, ULP_BOUNDS), f">{ULP_BOUNDS[-1]}"]
    places = [int(np.searchsorted(reached, share * reached[-1])) for share in (0.5, 0.99)]
    return "/".join(names[place] for place in places)


def _print_layers(layers: PerLayerReport) -> None:
    rows = []
    for operator in layers.operators:
        figures = ["-"] * 4
        if operator.propagated is not None and operator.isolated is not None:
            figures = [
                text
                for verdict in (operator.propagated, operator.isolated)
                for text in (f"{verdict.snr_db:.1f}", f"{verdict.ratio:.2f}")
            ]
        rows.append(
            (
                operator.index,
                operator.symbol,
                operator.shape,
                operator.tensor or "-",
                *figures,
                operator.verdict,
            )
        )
    sys.stdout.write("\n")
    print_table(
        (
            "#",
            "OPERATOR",
            "SHAPE",
            "TENSOR",
            "SNR dB",
            "RATIO",
            "ALONE dB",
            "RATIO",
            "VERDICT",
        ),
        rows,
    )
    if layers.passed:
        sys.stdout.write(f"\n{layers.summary()}\n")
