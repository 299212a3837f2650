"""Measurements survive what ends a program, and several programs at once."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.tuning import store
from tvm_mobilenet.tuning.store import Measured, MeasuredLog, write_atomically

ENTRY = Measured(
    operator='{"spec": "PoolSpec"}',
    rule="pool",
    knobs={"parallel": False},
    fingerprint="0" * 16,
    setting={"threads": 1},
    seconds=1e-5,
    spread=(0.9e-5, 1.1e-5),
    error=None,
    time="2026-01-01T00:00:00+00:00",
    seed=0,
    space="template",
)


def numbered(number: int) -> Measured:
    return dataclasses.replace(ENTRY, seed=number)


def test_what_is_appended_is_read(tmp_path):
    log = MeasuredLog(tmp_path / "new" / "target")
    assert log.read() == ([], [])
    failed = dataclasses.replace(ENTRY, seconds=None, spread=None, error="crashed")
    log.append([numbered(0), failed])
    log.append([numbered(1)])
    assert log.read() == ([numbered(0), failed, numbered(1)], [])


def test_every_torn_last_line_is_passed_over_and_healed(tmp_path):
    """A program killed at any byte of its write costs that entry alone."""
    log = MeasuredLog(tmp_path)
    log.append([numbered(0)])
    whole = log.path.read_bytes()
    log.append([numbered(1)])
    torn = log.path.read_bytes()[len(whole) :]
    for length in (1, 40, len(torn) // 2, len(torn) - 1):
        log.path.write_bytes(whole + torn[:length])
        assert log.read() == ([numbered(0)], [])
        log.append([numbered(2)])
        assert log.read() == ([numbered(0), numbered(2)], [])


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[1, 2]",
        json.dumps({"schema_version": 99, **dataclasses.asdict(ENTRY)}),
        json.dumps({"schema_version": 1, **dataclasses.asdict(ENTRY), "seconds": 1e10}),
        json.dumps({"schema_version": 1, **dataclasses.asdict(ENTRY), "seconds": -1.0}),
        json.dumps({"schema_version": 1, "operator": "x"}),
    ],
)
def test_a_damaged_line_is_named_and_can_be_removed(tmp_path, line):
    """Also MetaSchedule's placeholder of 1e10 s for a candidate that failed."""
    log = MeasuredLog(tmp_path)
    log.append([numbered(0)])
    with log.path.open("a") as file:
        file.write(line + "\n")
    log.append([numbered(1)])
    entries, damaged = log.read()
    assert entries == [numbered(0), numbered(1)]
    assert len(damaged) == 1 and f"{log.path}: line 2" in damaged[0]
    assert log.remove_damaged() == 1
    assert log.read() == ([numbered(0), numbered(1)], [])
    assert [path.name for path in tmp_path.iterdir()] == [store.MEASURED]


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    log = MeasuredLog(tmp_path)
    log.append([numbered(0)])
    before = log.path.read_bytes()
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) <= 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(InputError, match="no space left"):
        log.append([numbered(1)])
    monkeypatch.undo()
    assert log.path.read_bytes() == before


def test_programs_that_append_at_once_lose_nothing(tmp_path):
    script = (
        "import dataclasses, sys; from pathlib import Path; sys.path.insert(0, sys.argv[3])\n"
        "from tvm_mobilenet.tuning.store import Measured, MeasuredLog\n"
        "import json; entry = Measured(**json.loads(sys.argv[4]))\n"
        "for i in range(40):\n"
        "    number = 1000 * int(sys.argv[2]) + i\n"
        "    MeasuredLog(Path(sys.argv[1])).append([dataclasses.replace(entry, seed=number)])\n"
    )
    fields = json.dumps(dataclasses.asdict(ENTRY))
    command = [sys.executable, "-c", script, str(tmp_path)]
    running = [subprocess.Popen([*command, str(n), str(Path.cwd()), fields]) for n in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    entries, damaged = MeasuredLog(tmp_path).read()
    assert damaged == []
    assert {entry.seed for entry in entries} == {1000 * n + i for n in range(3) for i in range(40)}


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "records"
    write_atomically(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="no space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
