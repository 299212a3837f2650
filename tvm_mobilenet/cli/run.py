"""`tvm-mobilenet run`: classify images with a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

from tvm_mobilenet.cli.common import (
    add_json,
    add_threads_argument,
    emit_json,
    positive_int,
    print_table,
)

HELP = (
    "Classify images with a bundle and print the best classes. Pictures are resized, cropped and "
    "normalised as the model was trained; .npy and .npz files are fed as they are. Loading a "
    "bundle runs the code in it: use only bundles whose origin you trust."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """run BUNDLE INPUT... [--top-k K] [--labels FILE] [--threads N] [--json]"""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle's directory")
    parser.add_argument(
        "inputs", metavar="INPUT", type=Path, nargs="+", help="images, .npy or .npz files"
    )
    parser.add_argument(
        "--top-k",
        type=positive_int,
        default=5,
        metavar="K",
        help="classes to print for each input (default: %(default)s)",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="class names, one a line in the order of the classes (default: class numbers)",
    )
    add_threads_argument(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the best classes of every input, or one JSON document."""
    from tvm_mobilenet.runtime import Bundle
    from tvm_mobilenet.runtime.classify import classify, read_labels

    labels = None if args.labels is None else read_labels(args.labels)
    with Bundle.load(args.bundle, threads=args.threads) as bundle:
        rankings = classify(bundle, args.inputs, top_k=args.top_k, labels=labels)
    if args.json:
        emit_json("run", {"bundle": args.bundle, "inputs": rankings})
        return 0
    header = ("INPUT", "ROW", "RANK", "CLASS", "PROBABILITY") + ("LABEL",) * (labels is not None)
    rows: list[tuple[object, ...]] = []
    for ranking in rankings:
        for rank, entry in enumerate(ranking.classes, 1):
            row = (ranking.path, ranking.row, rank, entry.number, f"{entry.probability:.4f}")
            rows.append(row if labels is None else (*row, entry.label))
    print_table(header, rows)
    return 0
