"""What the commands share: options, tables and JSON on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tvm_mobilenet.json_values import plain

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

SCHEMA_VERSION = 1

MODEL_HELP = (
    "a built-in name (mobilenet_v1, mobilenet_v1_conv, mobilenet_v1_shallow, mobilenet_v2, "
    "mobilenet_v3_small, mobilenet_v3_large), an .onnx file, or package.module:function that "
    "returns a torch.nn.Module"
)


def positive_int(text: str) -> int:
    """argparse type: a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a built-in model; `model_options` turns them into keywords."""
    group = parser.add_argument_group("model options")
    group.add_argument(
        "--alpha", type=float, default=1.0, help="width multiplier (default: %(default)s)"
    )
    group.add_argument(
        "--resolution", type=int, default=224, help="input height and width (default: %(default)s)"
    )
    group.add_argument("--batch", type=int, default=1, help="batch size (default: %(default)s)")
    group.add_argument(
        "--classes", type=int, default=1000, help="number of classes (default: %(default)s)"
    )
    group.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="state dict (.pth) or safetensors; torchvision's key names work for V2 and V3",
    )


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """The values of `add_model_arguments` as keyword arguments of `frontend.load_model`."""
    return {name: getattr(args, name) for name in _MODEL_OPTIONS}


_MODEL_OPTIONS = ("alpha", "resolution", "batch", "classes", "weights")


def add_target_argument(parser: argparse.ArgumentParser) -> None:
    """`--target`: what `tvm_mobilenet.targets.load` takes."""
    parser.add_argument(
        "--target",
        default="native",
        help="a name from 'targets', a .toml file, or native: this machine (default: %(default)s)",
    )


def add_precision_argument(parser: argparse.ArgumentParser) -> None:
    """`--precision`: what `tvm_mobilenet.targets.at_precision` takes."""
    parser.add_argument(
        "--precision",
        choices=("float32", "tf32", "float16"),
        default="float32",
        help="of a GPU's arithmetic: float32 is exact; tf32 rounds the factors of matrix products, "
        "float16 also activations and weights; both use tensor cores (default: %(default)s)",
    )


def gpu_target(args: argparse.Namespace) -> TargetSpec | None:
    """The target of `--target` and `--precision` where it is a GPU, None for a CPU.

    Raises UsageError for a CPU at another precision than float32, and as `targets.load`.
    """
    from tvm_mobilenet import targets

    target = targets.at_precision(targets.load(args.target), args.precision)
    return target if target.gpu is not None else None


def add_threads_argument(parser: argparse.ArgumentParser, what: str = "threads") -> None:
    """`--threads N`; None when not given: one for each core."""
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help=f"{what} (default: one for each core)"
    )


def add_logs_argument(parser: argparse.ArgumentParser) -> None:
    """`--logs DIR` of a command that builds; None when not given: the shipped tuning records."""
    parser.add_argument(
        "--logs",
        type=Path,
        metavar="DIR",
        help="tuning records instead of those that come with the package; an empty DIR: none",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`: the command prints one document with `emit_json` and nothing else on stdout."""
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")


def emit_json(kind: str, payload: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout: `schema_version`, `kind` and the payload.

    The payload's values are what `json_values.plain` takes.
    """
    document = {"schema_version": SCHEMA_VERSION, "kind": kind, **plain(payload)}
    json.dump(document, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print an aligned table on stdout; columns whose every value is a number go to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    columns = range(len(header))
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in columns]
    numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in columns]
    for line in [list(header), *cells]:
        aligned = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        sys.stdout.write("  ".join(aligned).rstrip() + "\n")


class Console:
    """Progress and remarks on stderr; the commands find theirs in `args.console`.

    Colour and the moving progress bar appear on a terminal only, colour not with NO_COLOR set.
    """

    def __init__(self, verbose: int = 0, stream: TextIO | None = None) -> None:
        self.verbose = verbose
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._colour = self._terminal and not os.environ.get("NO_COLOR")
        self._bar_shown = False

    def info(self, message: str) -> None:
        """One line of what is being done."""
        self._line(message)

    def detail(self, message: str) -> None:
        """One line, only with -v."""
        if self.verbose:
            self._line(self._painted(message, "2"))

    def warn(self, message: str) -> None:
        """One line that should not be overlooked."""
        self._line(self._painted("warning: ", "33") + message)

    def progress(self, done: int, total: int, label: str) -> None:
        """Redraw the progress bar; nothing without a terminal. `done == total` ends it."""
        if not self._terminal:
            return
        filled = 30 * done // max(total, 1)
        bar = "#" * filled + "." * (30 - filled)
        self._stream.write(f"\r\x1b[K[{bar}] {done}/{total} {label}")
        self._bar_shown = done < total
        if not self._bar_shown:
            self._stream.write("\n")
        self._stream.flush()

    def bar(self, label: str) -> Callable[[int, int], None]:
        """A callback (done, total) that redraws the progress bar."""
        return lambda done, total: self.progress(done, total, label)

    def _line(self, text: str) -> None:
        clear = "\r\x1b[K" if self._bar_shown else ""
        self._bar_shown = False
        self._stream.write(f"{clear}{text}\n")
        self._stream.flush()

    def _painted(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text
