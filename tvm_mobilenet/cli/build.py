"""`tvm-mobilenet build`: compile a model, prove it equal to PyTorch, write a bundle."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.cli.common import (
    MODEL_HELP,
    add_json,
    add_logs_argument,
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
    from tvm_mobilenet.compiler_pass.operator_reports import OperatorReport
    from tvm_mobilenet.deploy import Built

HELP = (
    "Compile a model for a target, prove the compiled code equal to PyTorch, and write a bundle: "
    "library, manifest, samples with PyTorch's outputs, and a C++ runner. When parity fails (exit "
    "code 5) nothing is written. An older bundle in the same place is replaced in one step; "
    "anything else there is never touched."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """build MODEL --target T -o DIR and the options of model, compiler and pre-processing"""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="the bundle to write"
    )
    add_target_argument(parser)
    add_threads_argument(parser, "threads to schedule for, and to run on unless told otherwise")
    add_logs_argument(parser)
    parser.add_argument(
        "--dump-ir",
        type=Path,
        metavar="DIR",
        help="write the IR after each phase of the compiler into DIR",
    )
    parser.add_argument(
        "--cc",
        metavar="COMMAND",
        help="C++ compiler that links for the target (default for another kind of machine: "
        "Debian's cross compiler, the ziglang package, the Android NDK)",
    )
    parser.add_argument(
        "--c-library",
        action="store_true",
        help="for another kind of machine: also write lib/libtvm_mobilenet.so, the network for C "
        "programs of your own",
    )
    parser.add_argument(
        "--arch",
        type=names,
        metavar="SM,SM",
        help="GPU architectures to compile for, such as sm_80,sm_90 (default: the target's own); "
        "newer ones get code from their driver",
    )
    add_precision_argument(parser)
    parser.add_argument(
        "--batches",
        type=sizes,
        default=(),
        metavar="N,N",
        help="other batch sizes that the bundle shall take, multiples of --batch; each gets "
        "kernels of its own on the same weights (a GPU runs it in parts), and each is proven",
    )
    parser.add_argument(
        "--exporter",
        choices=("dynamo", "torchscript"),
        default="dynamo",
        help="how PyTorch models become ONNX (default: %(default)s)",
    )
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}",
            type=numbers,
            metavar="R,G,B",
            help=f"{name} of pictures scaled to [0, 1], one value or one a channel (default: "
            "[-1, 1] for mobilenet_v1, ImageNet's for others)",
        )
    add_model_arguments(parser)
    add_json(parser)


def numbers(text: str) -> tuple[float, ...]:
    """argparse type: numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas") from None


def sizes(text: str) -> tuple[int, ...]:
    """argparse type: whole numbers of at least 1 with commas between them."""
    return tuple(positive_int(part.strip()) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """argparse type: names with commas between them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def run(args: argparse.Namespace) -> int:
    """Print the operators by source of schedule, the verdict and the bundle's path."""
    args.console.detail("importing the compiler")
    from tvm_mobilenet import deploy

    built = deploy.build(
        args.model,
        target=args.target,
        output=args.output,
        exporter=args.exporter,
        threads=args.threads,
        logs=args.logs,
        dump_ir=args.dump_ir,
        mean=args.mean,
        std=args.std,
        cc=args.cc,
        batches=args.batches,
        arch=args.arch,
        precision=args.precision,
        c_library=args.c_library,
        progress=args.console.info,
        **model_options(args),
    )
    if built.preprocessing is not None and built.preprocessing.assumed:
        args.console.warn(
            "the model does not tell how pictures were normalised; assuming "
            f"mean {_listed(built.preprocessing.mean)}, std {_listed(built.preprocessing.std)} "
            "(--mean and --std change that)"
        )
    if args.json:
        emit_json("build", _payload(built, args.output))
    else:
        _print(built, args.output)
    return 0


def _payload(built: Built, output: Path) -> dict[str, object]:
    operators = built.compiled.operators
    return {
        "bundle": output,
        "model": built.compiled.imported.name,
        "target": built.compiled.target.name,
        "precision": built.compiled.target.precision,
        "sources": Counter(operator.source for operator in operators),
        "records": {"applicable": len(built.records), "directories": built.records.places},
        "operators": operators,
        "parity": built.parity.to_json(),
        "preprocessing": built.preprocessing,
        "compile_seconds": built.compiled.seconds,
        "seconds": built.seconds,
    }


def _print(built: Built, output: Path) -> None:
    operators = built.compiled.operators
    alike = Counter((o.kind, o.shape, o.schedule, _knobs(o), o.source) for o in operators)
    print_table(
        ("COUNT", "OPERATOR", "SHAPE", "SCHEDULE", "KNOBS", "SOURCE"),
        [(count, *row) for row, count in alike.items()],
    )
    counts = Counter(operator.source for operator in operators)
    listed = ", ".join(f"{count} {source}" for source, count in sorted(counts.items()))
    size = sum(file.stat().st_size for file in built.path.rglob("*") if file.is_file())
    chosen = built.compiled.target.precision
    precision = "" if chosen == "float32" else f" in {chosen}"
    sys.stdout.write(
        f"\n{len(operators)} operators by source of schedule: {listed}\n"
        f"{_records(built)}\n"
        f"{built.parity.summary()}\n"
        f"{output}: {built.compiled.imported.name} for {built.compiled.target.name}{precision}, "
        f"{size / 1e6:.1f} MB, built in {built.seconds:.1f} s\n"
    )


def _records(built: Built) -> str:
    """Which tuning records there were, and how many were not applied."""
    records, operators = built.records, built.compiled.operators
    places = ", ".join(map(str, records.places))
    text = f"tuning records: {len(records)} for this target in {places}"
    if records.unfit:
        text += f"; {records.unfit} more for other hardware or numbers of threads"
    notes = Counter(operator.note for operator in operators if operator.note)
    return text + "".join(f"\n{count} operators: {note}" for note, count in notes.items())


def _knobs(operator: OperatorReport) -> str:
    return " ".join(f"{name}={value}" for name, value in operator.knobs.items()) or "-"


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
