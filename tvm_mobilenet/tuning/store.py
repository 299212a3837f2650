"""Measurements on disk: append-only JSON lines that survive whatever ends the program.

``<logs>/<target>/measured.jsonl`` holds one line for each candidate that was tried, also for those
that failed. A line is written, flushed to the disk and only then forgotten by the program, under
an exclusive lock, so that several tuning runs may share a directory. A program that dies while it
writes leaves a line without an end: readers skip it, the next append removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tvm_mobilenet.errors import InputError

SCHEMA_VERSION = 1
MEASURED = "measured.jsonl"
# what reading one line of JSON that is something else may raise
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
PLACEHOLDER_SECONDS = 1e9  # MetaSchedule writes 1e10 s for a candidate that failed


@dataclass(frozen=True)
class Measured:
    """One candidate that was tried. ``seconds`` is None when it failed; ``error`` says why.

    operator: the specification's JSON; rule, knobs, fingerprint: the candidate (`schedules.base`).
    setting: what the time depends on beside the candidate, see `records.Setting.to_json`.
    seconds: lower quartile of the repeats of one cold run; spread: their least and their median.
    """

    operator: str
    rule: str
    knobs: dict[str, Any]
    fingerprint: str
    setting: dict[str, Any]
    seconds: float | None
    spread: tuple[float, float] | None
    error: str | None
    time: str
    seed: int
    space: str


class MeasuredLog:
    """The measured candidates of one target."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / MEASURED

    def read(self) -> tuple[list[Measured], list[str]]:
        """All measurements in order of writing, and a remark for each line that is none.

        The file need not exist; a last line without an end is passed over.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return [], []
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from error
        entries, damaged = [], []
        for number, line in enumerate(data.split(b"\n")[:-1], 1):
            try:
                entries.append(_parsed(line))
            except UNREADABLE as error:
                reason = " ".join(str(error).split())[:120]
                damaged.append(f"{self.path}: line {number} is not a measurement: {reason}")
        return entries, damaged

    def append(self, entries: Sequence[Measured]) -> None:
        """Add entries; when this returns they are on the disk.

        Raises InputError, with nothing of them left in the file, when it cannot be written.
        """
        text = "".join(
            json.dumps({"schema_version": SCHEMA_VERSION, **asdict(entry)}) + "\n"
            for entry in entries
        )
        with os_errors_named(self.path), _locked(self.path) as descriptor:
            start = _end_of_last_line(descriptor)
            os.ftruncate(descriptor, start)  # a line that a killed program left torn
            try:
                write_all(descriptor, text.encode())
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, start)
                raise

    def remove_damaged(self) -> int:
        """Rewrite the log without lines that are no measurements; returns how many there were."""
        if not self.path.exists():
            return 0
        with os_errors_named(self.path), _locked(self.path) as descriptor:
            end = _end_of_last_line(descriptor)
            lines = os.pread(descriptor, end, 0).split(b"\n")[:-1]
            good = [line for line in lines if _is_measurement(line)]
            if len(good) < len(lines):
                # the descriptor's file stays the one that others have open and lock
                kept = b"".join(line + b"\n" for line in good)
                copy = self.path.with_name(f".{self.path.name}.whole")
                write_atomically(copy, kept.decode())  # should the power fail in between
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                write_all(descriptor, kept)
                os.fsync(descriptor)
                copy.unlink()
            return len(lines) - len(good)


@contextlib.contextmanager
def locked_directory(directory: Path) -> Iterator[None]:
    """Hold the directory's exclusive lock; it is made if need be. It ends with the process."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Write a file as a whole or not at all; what was there stays until the new one is on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os_errors_named(path):
        try:
            with temporary.open("wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_all(descriptor: int, data: bytes) -> None:
    """os.write until everything is written."""
    while data:
        data = data[os.write(descriptor, data) :]


@contextlib.contextmanager
def os_errors_named(path: Path, instead: str = "give another --logs DIR") -> Iterator[None]:
    """Turn an OSError into an InputError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{path}: no space left on the device; free some, what was measured is kept"
            ) from error
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); {instead}"
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.lseek(descriptor, 0, os.SEEK_END)
        yield descriptor
    finally:
        os.close(descriptor)


def _end_of_last_line(descriptor: int) -> int:
    """Where to write on: the file's size, or where a torn last line starts."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    position = end
    while position > 0:
        start = max(0, position - 4096)
        newline = os.pread(descriptor, position - start, start).rfind(b"\n")
        if newline >= 0:
            position = start + newline + 1
            break
        position = start
    os.lseek(descriptor, position, os.SEEK_SET)
    return position


def _is_measurement(line: bytes) -> bool:
    try:
        _parsed(line)
    except UNREADABLE:
        return False
    return True


def _parsed(line: bytes) -> Measured:
    data = json.loads(line)
    if data.pop("schema_version") != SCHEMA_VERSION:
        raise ValueError("another schema version")
    spread = data.pop("spread")
    entry = Measured(**data, spread=None if spread is None else tuple(spread))
    check_types(entry)
    if entry.seconds is not None and not 0 < entry.seconds < PLACEHOLDER_SECONDS:
        raise ValueError(f"{entry.seconds} is not a time")
    return entry


def check_types(entry: Any) -> None:
    """ValueError when a field that is a string or whole number by its declaration is none."""
    for field in fields(entry):
        value = getattr(entry, field.name)
        wanted = {"str": str, "int": int}.get(str(field.type))
        if wanted is not None and type(value) is not wanted:
            raise ValueError(f"{field.name} is {value!r}, which is not {wanted.__name__}")
