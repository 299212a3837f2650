"""A library built for a level holds no instruction of a higher one, whatever the build machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.compiler_pass.pipeline import compile_model
from tvm_mobilenet.deploy.library import export_library

AVX512 = re.compile(r"%zmm|\{%k[0-7]\}|%[xy]mm(1[6-9]|2\d|3[01])\b")
AVX = re.compile(r"%[yz]mm|\tv[a-z0-9]+ +[^\n]*%xmm")


@pytest.mark.slow
@pytest.mark.needs_tool("objdump", "binutils")
@pytest.mark.parametrize(
    ("target", "expected", "forbidden"),
    [
        ("x86-64-v4", r"%zmm", None),
        ("x86-64-v3", r"vfmadd[^\n]*%ymm", AVX512),
        ("x86-64-v2", r"mulps", AVX),
    ],
)
@pytest.mark.parametrize("model", ["mobilenet_v1", "mobilenet_v3_small"])
def test_library_has_only_its_levels_instructions(
    model: str, target: str, expected: str, forbidden: re.Pattern[str] | None, tmp_path: Path
) -> None:
    imported = frontend.load_model(
        model, alpha=0.5, resolution=64, classes=10, exporter="torchscript"
    )
    library = tmp_path / "model.so"
    export_library(compile_model(imported, targets.load(target)), library)
    command = ["objdump", "-d", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(expected, text)
    if forbidden is not None:
        found = forbidden.search(text)
        assert found is None, text[found.start() - 100 : found.end() + 40]
