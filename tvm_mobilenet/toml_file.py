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

    def error(self, key: str, problem: str) -> InputError:
        """The error for `key`, with the line that sets it when there is one."""
        line = self.line_of(key)
        where = f"{self.path}:{line}" if line else str(self.path)
        return InputError(f"{where}: {key}: {problem}")

    def line_of(self, key: str) -> int | None:
        """The 1-based line that sets `key` or opens the table of that name; None if no line does."""
        name = rf"""["']?{re.escape(key)}["']?"""
        sets_key = re.compile(rf"\s*(?:{name}\s*=|\[(?:[^\]]*\.)?\s*{name}\s*\])")
        for number, line in enumerate(self.text.splitlines(), start=1):
            if sets_key.match(line):
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
