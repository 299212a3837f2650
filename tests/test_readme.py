"""The README's commands work and print what it shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tvm_mobilenet.demo import photographs, steps

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)


def transcripts() -> list[tuple[str, list[str]]]:
    """Each ``$`` command with the output lines shown below it."""
    found: list[tuple[str, list[str]]] = []
    for block in blocks("console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.strip() and line.strip() != "...":
                found[-1][1].append(line)
    return found


def pattern(line: str) -> str:
    """A line without what differs from run to run: its figures and the width of its columns."""
    return " ".join(re.sub(r"\d+(\.\d+)?", "#", line).split())


@pytest.mark.slow
def test_transcripts(tmp_path):
    shutil.copy(next(p for p in photographs() if p.name == "flower.jpg"), tmp_path)
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    commands = transcripts()
    assert len(commands) >= 6
    for command, shown in commands:
        result = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, (command, result.stderr)
        printed = [pattern(line) for line in result.stdout.splitlines()]
        for line in shown:
            assert pattern(line) in printed, (command, line, result.stdout)


@pytest.mark.slow
def test_python_example(tmp_path):
    (example,) = blocks("python")
    command = [sys.executable, "-c", example + "\nassert logits.shape == (1, 1000)\n"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_start_names_make_targets_that_exist():
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.M)
    makefile = (README.parent / "Makefile").read_text("utf-8")
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_demo_runs_the_main_job():
    assert [command[0] for _, command in steps()] == ["export", "build", "validate", "run", "bench"]
