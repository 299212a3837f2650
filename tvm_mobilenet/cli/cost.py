"""`tvm-mobilenet cost`: mult-adds and parameters, the paper's tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.cli.common import (
    MODEL_HELP,
    add_json,
    add_model_arguments,
    emit_json,
    model_options,
    print_table,
)
from tvm_mobilenet.errors import UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.models.cost import Cost

HELP = (
    "Count multiply-accumulates and parameters by layer kind, as the MobileNet papers do: "
    "convolutions and fully connected layers, without biases, batch norm and activations. "
    "Nothing is compiled or run."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """cost MODEL [model options] [--per-layer] [--json]"""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_model_arguments(parser)
    parser.add_argument("--per-layer", action="store_true", help="also list every layer")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print tables or one JSON document on stdout."""
    cost = _cost(args)
    paper = _paper_mult_adds(args)
    if args.json:
        payload: dict[str, Any] = {
            "model": args.model,
            "mult_adds": cost.mult_adds,
            "parameters": cost.parameters,
            "all_parameters": cost.all_parameters,
            "kinds": cost.kinds,
        }
        if paper is not None:
            payload["paper_mult_adds"] = paper
        if args.per_layer:
            payload["layers"] = cost.layers
        emit_json("cost", payload)
        return 0
    if args.per_layer:
        _print_layers(cost)
        sys.stdout.write("\n")
    _print_kinds(cost)
    sys.stdout.write(
        f"\n{cost.mult_adds / 1e6:.2f} M mult-adds, {cost.parameters / 1e6:.2f} M parameters "
        f"({cost.all_parameters / 1e6:.2f} M with biases and batch norm)\n"
    )
    if paper is not None and paper != cost.mult_adds:
        sys.stdout.write(
            f"{paper / 1e6:.2f} M mult-adds as the paper scales them: those at 224 pixels times "
            f"({args.resolution}/224)^2, the fully connected layer too\n"
        )
    return 0


def _cost(args: argparse.Namespace) -> Cost:
    from tvm_mobilenet import models
    from tvm_mobilenet.models.cost import cost, cost_of_onnx

    options = model_options(args)
    built_in = args.model in models.BUILTIN
    if not built_in and (args.model.endswith(".onnx") or Path(args.model).is_file()):
        from tvm_mobilenet.frontend.read import read_file

        for option, default in (("alpha", 1.0), ("classes", 1000), ("weights", None)):
            if options[option] != default:
                raise UsageError(f"--{option} cannot be applied to {args.model}, an ONNX file")
        batch = None if args.batch == 1 else args.batch
        resolution = None if args.resolution == 224 else args.resolution
        return cost_of_onnx(read_file(Path(args.model)), batch=batch, resolution=resolution)
    if built_in and args.weights is None:
        # Shapes suffice: the module stays on the meta device.
        module = models.architecture(
            args.model, alpha=args.alpha, resolution=args.resolution, classes=args.classes
        )
        return cost(module, module.input_shape(args.batch))

    from tvm_mobilenet.frontend import load_module

    loaded = load_module(args.model, **options)
    return cost(loaded.module, loaded.input_shape)


def _paper_mult_adds(args: argparse.Namespace) -> float | None:
    """What the paper's resolution rule gives for a network of the MobileNetV1 paper."""
    from tvm_mobilenet import models
    from tvm_mobilenet.models.cost import by_resolution_rule, cost

    if not args.model.startswith("mobilenet_v1") or args.model not in models.BUILTIN:
        return None
    at_224 = models.architecture(args.model, alpha=args.alpha, classes=args.classes)
    shape = at_224.input_shape(args.batch)
    return by_resolution_rule(cost(at_224, shape), args.resolution)


class _Percent(float):
    """A share that prints as the paper prints it."""

    def __str__(self) -> str:
        return f"{100 * self:.2f}"


def _print_kinds(cost: Cost) -> None:
    rows: list[tuple[object, ...]] = [
        (
            row.kind,
            row.layers,
            row.mult_adds,
            _Percent(row.mult_adds_share),
            row.parameters,
            _Percent(row.parameters_share),
        )
        for row in cost.kinds
    ]
    whole = _Percent(1.0)
    rows.append(("total", len(cost.layers), cost.mult_adds, whole, cost.parameters, whole))
    print_table(("KIND", "LAYERS", "MULT-ADDS", "%", "PARAMETERS", "%"), rows)


def _print_layers(cost: Cost) -> None:
    rows = [
        (
            layer.name,
            layer.kind,
            _shape(layer.input_shape),
            _shape(layer.weight_shape),
            _shape(layer.output_shape),
            layer.mult_adds,
            layer.parameters,
        )
        for layer in cost.layers
    ]
    print_table(("LAYER", "KIND", "INPUT", "WEIGHT", "OUTPUT", "MULT-ADDS", "PARAMETERS"), rows)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
