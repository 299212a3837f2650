"""`tvm-mobilenet export`: a PyTorch model as a checked ONNX file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tvm_mobilenet.cli.common import (
    add_json,
    add_model_arguments,
    emit_json,
    model_options,
    positive_int,
)

HELP = (
    "Export a built-in network or your own torch.nn.Module to ONNX, with a static input named "
    "'input' and an output named 'logits'. The file is written whole or not at all."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """export MODEL -o FILE [--exporter dynamo|torchscript] [--opset N] and the model options"""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a built-in name, or package.module:function that returns a torch.nn.Module",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the .onnx file to write"
    )
    parser.add_argument(
        "--exporter",
        choices=("dynamo", "torchscript"),
        default="dynamo",
        help="PyTorch's torch.export-based exporter, or the older one (default: %(default)s)",
    )
    parser.add_argument(
        "--opset",
        type=positive_int,
        metavar="N",
        help="ONNX operator set version (default: the exporter's own)",
    )
    add_model_arguments(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Write the file; print what is in it."""
    args.console.detail("importing PyTorch")
    from tvm_mobilenet.frontend import export_onnx, load_module
    from tvm_mobilenet.frontend.read import opset_of

    loaded = load_module(args.model, **model_options(args))
    args.console.info(f"exporting {loaded.name} with the {args.exporter} exporter")
    model = export_onnx(
        loaded.module, loaded.input_shape, args.output, exporter=args.exporter, opset=args.opset
    )
    size, opset, nodes = args.output.stat().st_size, opset_of(model), len(model.graph.node)
    if args.json:
        summary = {"path": args.output, "model": loaded.source, "exporter": args.exporter}
        summary |= {"opset": opset, "nodes": nodes, "bytes": size}
        emit_json("export", {**summary, "input_shape": loaded.input_shape})
    else:
        shape = "x".join(map(str, loaded.input_shape))
        sys.stdout.write(
            f"{args.output}: {loaded.name}, input {shape}, opset {opset}, {nodes} nodes, "
            f"{size / 1e6:.1f} MB\n"
        )
    return 0
