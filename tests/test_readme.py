"""The commands of the README and of docs/ work and print what is shown."""

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
DOCS = README.parent / "docs"
# What a page's commands need, besides this package.
TOOLS = {
    "cross-compile.md": [
        pytest.mark.needs_tool("qemu-aarch64", "qemu-user"),
        pytest.mark.needs_tool("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu"),
    ],
    "embed.md": [pytest.mark.needs_tool("cmake", "cmake")],
}


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def transcripts(page: Path = README) -> list[tuple[str, list[str]]]:
    """Each ``$`` command with the output lines shown below it."""
    found: list[tuple[str, list[str]]] = []
    for block in blocks("console", page):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.strip() and line.strip() != "...":
                found[-1][1].append(line)
    return found


def pattern(line: str) -> str:
    """A line without what differs from run to run: its figures and the width of its columns."""
    return " ".join(re.sub(r"(?<!\S)-?\d+(\.\d+)?|\d+(\.\d+)?", "#", line).split())


def run_page(page: Path, place: Path) -> None:
    """Run a page's commands in order in an empty directory and compare what they print."""
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for command, shown in transcripts(page):
        result = subprocess.run(
            command, shell=True, cwd=place, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, (command, result.stderr)
        printed = [pattern(line) for line in result.stdout.splitlines()]
        for line in shown:
            assert pattern(line) in printed, (command, line, result.stdout)


@pytest.mark.slow
def test_transcripts(tmp_path):
    shutil.copy(next(p for p in photographs() if p.name == "flower.jpg"), tmp_path)
    assert len(transcripts()) >= 6
    run_page(README, tmp_path)


def test_every_job_has_a_page():
    pages = {page.name for page in DOCS.glob("*.md")}
    assert {"tune.md", "cross-compile.md", "parity.md", "profile.md", "embed.md"} < pages
    for page in (README, *DOCS.glob("*.md")):
        for link in re.findall(r"\]\(([\w./-]+\.md)\)", page.read_text("utf-8")):
            assert (page.parent / link).is_file(), (page, link)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=TOOLS.get(page.name, []))
        for page in sorted(DOCS.glob("*.md"))
        if transcripts(page)
    ],
)
def test_pages(page, tmp_path):
    """A Python block that begins with ``# NAME.py`` is that file; any other runs at the end."""
    examples = []
    for block in blocks("python", page):
        name = re.match(r"# (\w+\.py)\n", block)
        if name:
            (tmp_path / name[1]).write_text(block, encoding="utf-8")
        else:
            examples.append(block)
    run_page(page, tmp_path)
    for example in examples:
        command = [sys.executable, "-c", example]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_python_example(tmp_path):
    (example,) = blocks("python")
    command = [sys.executable, "-c", example + "\nassert logits.shape == (1, 1000)\n"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_api_reference_is_fresh():
    command = [sys.executable, "-c", "import make_api; print(make_api.page(), end='')"]
    environment = {**os.environ, "PYTHONPATH": str(DOCS), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    written = (DOCS / "api.md").read_text("utf-8")
    assert done.stdout == written, "run `make docs`: docs/api.md is older than the code"


def test_start_names_make_targets_that_exist():
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.M)
    makefile = (README.parent / "Makefile").read_text("utf-8")
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_demo_runs_the_main_job():
    assert [command[0] for _, command in steps()] == ["export", "build", "validate", "run", "bench"]
