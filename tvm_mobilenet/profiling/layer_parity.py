"""What `validate --json` found of a bundle, and of each operator where it has that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_mobilenet.errors import InputError

_FIGURES = ("relative_l2", "torch_relative_l2", "snr_db", "ratio", "passed")


@dataclass(frozen=True)
class LayerParity:
    """A kept verdict: `whole` is that of the outputs, `layers` one flat row an operator, in order.

    A row's figures are None where the operator computes no tensor of the model; `propagated_*` are
    those in the running network, `isolated_*` those on the reference's own inputs.
    """

    whole: dict[str, Any]
    layers: tuple[dict[str, Any], ...]


def read_parity(path: Path, symbols: Sequence[str]) -> LayerParity:
    """A file of `validate --json`; `symbols`: the functions of the profiled bundle, in order.

    Raises InputError for another file, or one of another bundle.
    """
    try:
        document = json.loads(path.read_bytes())
        if document["kind"] != "validate":
            raise ValueError(f"its kind is {document['kind']!r}")
        whole = dict(document["parity"])
        operators = (whole.pop("layers", None) or {"operators": []})["operators"]
        rows = tuple(_row(operator) for operator in operators)
    except OSError as error:
        raise InputError(f"--parity {path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"--parity {path}: is no output of 'validate --json' ({error}); make it with "
            "'validate BUNDLE --model MODEL --per-layer --json'"
        ) from error
    if rows and [row["symbol"] for row in rows] != list(symbols):
        raise InputError(f"--parity {path}: is of another bundle, its operators are not these")
    return LayerParity(whole, rows)


def _row(operator: dict[str, Any]) -> dict[str, Any]:
    row = {key: operator[key] for key in ("index", "symbol", "kind", "shape", "tensor", "note")}
    row["name"] = next(iter(operator["onnx_nodes"]), row["symbol"])
    for way in ("propagated", "isolated"):
        verdict = operator[way] or {}
        row |= {f"{way}_{figure}": verdict.get(figure) for figure in _FIGURES}
    fine = (row["isolated_passed"], row["propagated_passed"])
    row["verdict"] = {None: "–", False: "AT FAULT"}.get(fine[0], "passed" if fine[1] else "FAILED")
    return row
