"""The file in which a `report` keeps what it measured, to go on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.profiling.report import Network, Report
from tvm_mobilenet.profiling.separable import Block

SCHEMA_VERSION = 1


def write(report: Report, path: Path) -> None:
    """As `--json` prints it; what was there stays until the new file is whole."""
    from tvm_mobilenet.json_values import plain

    document = {"schema_version": SCHEMA_VERSION, "kind": "report", **plain(report.document())}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", "utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, wanted: Report) -> Report:
    """The report in a file, which must have been measured as `wanted` says."""
    try:
        document = json.loads(path.read_bytes())
        if (document["schema_version"], document["kind"]) != (SCHEMA_VERSION, "report"):
            raise ValueError("another kind of document")
        networks = tuple(_from_row(Network, row) for row in document["networks"])
        blocks = tuple(
            _from_row(Block, {**row, "name": row["block"]}) for row in document["blocks"]
        )
        found = replace(
            wanted,
            **{key: document[key] for key in ("cpu", "target", "threads", "runs")},
            networks=networks,
            blocks=blocks,
            blocks_note=str(document["blocks_note"]),
        )
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: is no report of this release ({error!r}); name another file"
        ) from error
    for key in ("cpu", "target", "threads", "runs"):
        if getattr(found, key) != getattr(wanted, key):
            raise InputError(
                f"{path}: was measured with {key} {getattr(found, key)}, not "
                f"{getattr(wanted, key)}; name another file"
            )
    return found


def _from_row(kind: type[Any], row: Mapping[str, Any]) -> Any:
    values = {field.name: row[field.name] for field in fields(kind)}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
