"""Tables of rows with colours, on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any


class Table:
    """An aligned table with colours, on a terminal and without NO_COLOR."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows
        self._columns: list[tuple[str, list[str], bool]] = []

    def column(self, header: str, key: str, form: str | None = None) -> None:
        """Add a column; one with a format goes to the right."""
        cells = [cell_text(row[key], form) for row in self._rows]
        self._columns.append((header, cells, form is not None))

    def write(self, colours: dict[str, list[str | None]]) -> None:
        """Print it; `colours` gives ANSI codes, one a row, by header."""
        painted = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        finished = []
        for header, cells, right in self._columns:
            width = max(map(len, [header, *cells]))
            padded = [c.rjust(width) if right else c.ljust(width) for c in [header, *cells]]
            if painted and header in colours:
                for i, code in enumerate(colours[header], 1):
                    if code:
                        padded[i] = f"\x1b[{code}m{padded[i]}\x1b[0m"
            finished.append(padded)
        for line in zip(*finished, strict=True):
            sys.stdout.write("  ".join(line).rstrip() + "\n")


def print_rest(top: int | None, rows: int) -> None:
    """Say how many of so many rows `--top` left out."""
    if top and top < rows:
        sys.stdout.write(f"... {rows - top} more\n")


def cell_text(value: Any, form: str | None) -> str:
    """A cell as text: "-" for what is not known, knobs as key=value, lists by spaces."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return " ".join(value) or "-"
    return format(value, form or "")
