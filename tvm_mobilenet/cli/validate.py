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
    add_target_argument,
    add_threads_argument,
    emit_json,
    model_options,
    positive_int,
    print_table,
)

if TYPE_CHECKING:
    from tvm_mobilenet.parity import ParityReport

HELP = (
    "Hold a bundle, or a model compiled for the occasion, against PyTorch. The judge is PyTorch at "
    "float64: the error may be at most 3 times that of PyTorch at float32, per output. A bundle is "
    "judged on the samples stored in it, and on fresh ones too when --model names the model that "
    "it was built from. Exit code 5 when parity fails. Loading a bundle runs the code in it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """validate BUNDLE|MODEL [--model MODEL] [--target T] [--image FILE ...] ..."""
    parser.add_argument(
        "subject", metavar="BUNDLE|MODEL", help=f"a bundle's directory, or a model: {MODEL_HELP}"
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
    add_target_argument(parser)
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
    from tvm_mobilenet.errors import InputError, ParityError

    report = api.validate(
        args.subject,
        target=args.target,
        against=args.against,
        exporter=args.exporter,
        seed=args.seed,
        count=args.samples,
        images=args.image,
        threads=args.threads,
        progress=args.console.info,
        **model_options(args),
    )
    if args.json:
        emit_json("validate", {"subject": args.subject, "parity": report.to_json()})
    elif report.checked:
        _print(report)
    if not report.checked:
        raise InputError(f"{args.subject}: {report.summary()}")
    if not report.passed:
        raise ParityError(f"{args.subject}: {report.summary()}")
    return 0


def _print(report: ParityReport) -> None:
    rows = []
    for row in report.outputs:
        tops = {top.k: f"{top.agreed}/{top.compared}" for top in row.top}
        rows.append(
            (
                row.output,
                f"{row.max_abs:.3g}",
                f"{row.torch_max_abs:.3g}",
                f"{row.relative_l2:.3g}",
                f"{row.torch_relative_l2:.3g}",
                f"{row.snr_db:.1f}",
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
            "MAX ERROR",
            "PYTORCH'S",
            "RELATIVE L2",
            "PYTORCH'S",
            "SNR dB",
            "RATIO",
            "NAN/INF",
            "TOP-1",
            "TOP-5",
            "VERDICT",
        ),
        rows,
    )
    if report.passed:
        sys.stdout.write(f"\n{report.summary()}, over {report.samples} samples\n")
