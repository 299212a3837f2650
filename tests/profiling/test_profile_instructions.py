"""Executed instructions in the place of times: rows, files, command; most counts are made up.

tests/deploy/test_emulate.py counts for real under QEMU; the last tests here by single-stepping.
"""

from __future__ import annotations

import csv
import json
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tvm_mobilenet import targets
from tvm_mobilenet.cli import main
from tvm_mobilenet.deploy import emulate
from tvm_mobilenet.deploy.emulate import Instructions
from tvm_mobilenet.profiling import singlestep
from tvm_mobilenet.profiling.instructions import InstructionProfile, profile_instructions
from tvm_mobilenet.runtime import host

COUNTS = (900, 300, 500, 10, 40)  # stem, depthwise, pointwise, pool, dense


@pytest.fixture
def foreign(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[Path]]:
    """A bundle that is not for this machine, and what was run under QEMU."""
    path = Path(shutil.copytree(small_bundle, tmp_path / "foreign"))
    monkeypatch.setattr(host, "architecture", lambda machine=None: "aarch64")
    counted: list[Path] = []

    def count(bundle: Path) -> Instructions:
        counted.append(bundle)
        return Instructions(sum(COUNTS) + 50, COUNTS)

    monkeypatch.setattr(emulate, "count_instructions", count)
    monkeypatch.setattr(emulate, "emulator", lambda *core: ("qemu-aarch64", "-cpu", "core"))
    return path, counted


@pytest.fixture
def counted(foreign: tuple[Path, list[Path]]) -> InstructionProfile:
    return profile_instructions(foreign[0])


def test_operators_and_the_rest_add_up(counted: InstructionProfile) -> None:
    assert counted.rest == 50 and counted.machine == "qemu-aarch64 -cpu core"
    rows = counted.rows()
    assert [row["instructions"] for row in rows] == sorted(COUNTS, reverse=True)
    assert sum(row["share"] for row in rows) == pytest.approx(1 - 50 / counted.total)
    assert rows[-1]["cumulative_share"] == pytest.approx(1 - 50 / counted.total)


def test_the_floor_is_mult_adds_by_vector(counted: InstructionProfile) -> None:
    lanes = targets.detect().lanes
    kinds = {row["name"]: row for row in counted.rows("kind")}
    stem = kinds["stem"]
    assert stem["floor"] == 16 * 16 * 16 * 27 / lanes
    assert stem["over_floor"] == pytest.approx(900 / stem["floor"])
    assert kinds["pool"]["over_floor"] is None, "nothing to multiply"


def test_the_command_counts_what_it_cannot_time(
    foreign: tuple[Path, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, ran = foreign
    files = {name: tmp_path / f"a.{name}" for name in ("csv", "html")}
    options = [text for name, file in files.items() for text in (f"--{name}", str(file))]
    assert main(["profile", str(path), "--top", "2", *options]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split()[:3] == ["LAYER", "KIND", "INSTRUCTIONS"]
    assert lines[1].split()[:3] == ["Conv_0", "stem", "900"] and lines[3] == "... 3 more"
    assert lines[5].startswith("1800 instructions an inference on one thread, under qemu-aarch64")
    assert "under qemu-aarch64 -cpu core" in captured.err
    with files["csv"].open(newline="") as file:
        assert [int(row["instructions"]) for row in csv.DictReader(file)][:2] == [900, 500]
    data = re.search(r'id="data">(.*?)</script>', files["html"].read_text("utf-8"), re.S)
    assert data and json.loads(data[1])["instructions"] == 1800

    assert main(["profile", str(path), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["kind"] == "profile-instructions" and len(document["layers"]) == 5
    assert document["outside_operators"] == 50
    assert ran == [path, path]


def test_there_is_no_trace_of_counts(
    foreign: tuple[Path, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", str(foreign[0]), "--trace", str(tmp_path / "a")]) == 2
    assert "--rpc" in capsys.readouterr().err and foreign[1] == []


@pytest.mark.slow
@pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64"),
    reason="hardware: steps through x86-64",
)
def test_stepping_through_this_machines_own_code(
    small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    for _ in range(2):
        assert main(["profile", str(small_bundle), "--instructions", "--json"]) == 0
        captured = capsys.readouterr()
        runs.append(json.loads(captured.out))
    first, second = ({row["index"]: row for row in run["layers"]} for run in runs)
    assert sorted(first) == [0, 1, 2, 3, 4] and "us a step" in captured.err
    for index, row in first.items():
        assert row["instructions"] == second[index]["instructions"] > row["floor"]
        assert row["instructions"] < 10 * row["floor"] + 5000
    assert 0 < runs[0]["outside_operators"] < runs[0]["instructions"]


def test_stepping_needs_a_compiler_and_one_thread(
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["profile", str(small_bundle), "--instructions"]
    assert main([*command, "--threads", "2"]) == 2
    assert "one thread" in capsys.readouterr().err
    monkeypatch.setattr(singlestep, "check", lambda bundle: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert main(command) == 4
    assert "apt-get install gcc" in capsys.readouterr().err
