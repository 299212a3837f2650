"""TOML files read so that every complaint can say file, line and key."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_mobilenet.errors import InputError


@dataclass(frozen=True)
class TomlFile:
    """A parsed TOML file: its path, text and table."""

    path: Path
    text: str
    table: dict[str, Any]

    def error(self, key: str, problem: str, table: str = "") -> InputError:
        """The error for a key of a table, with the line that sets it when there is one."""
        line = self.line_of(key, table)
        where = f"{self.path}:{line}" if line else str(self.path)
        return InputError(f"{where}: {key}: {problem}")

    def line_of(self, key: str, table: str = "") -> int | None:
        """The 1-based line that sets `key` in `[table]`, or opens `[table.key]`; or None."""
        full = f"{table}.{key}" if table else key
        current = ""
        for number, line in enumerate(self.text.splitlines(), start=1):
            bare = line.replace('"', "").replace("'", "")
            if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", bare):
                current = header[1]
                if current == full:
                    return number
            elif current == table and re.match(rf"\s*{re.escape(key)}\s*=", bare):
                return number
        return None


def read_toml(path: Path) -> TomlFile:
    """Read a TOML file; InputError (file, line) when it is missing, unreadable or not TOML."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"{path}: cannot be read: {reason}") from error
    try:
        return TomlFile(path, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        # tomllib puts the place at the end of its message: "... (at line 3, column 7)".
        place = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        line = place[1] if place else str(len(text.splitlines()) or 1)
        problem = str(error)[: place.start()] if place else str(error)
        raise InputError(f"{path}:{line}: not valid TOML: {problem}") from error
