"""The trained example, made small: one epoch, this machine and a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tvm_mobilenet as tm
from tvm_mobilenet.runtime import cuda

ONE = os.environ | {"OMP_NUM_THREADS": "1"}
SCRIPT = Path(__file__).parents[2] / "examples/digits/digits.py"


@pytest.mark.slow
@pytest.mark.needs_cpu("avx2", "fma")
def test_compiled_digits_are_read_as_pytorch_reads_them(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "-o", tmp_path, "--epochs", "1", "--targets"]
    command += ["x86-64-v3", "cuda-sm90"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=ONE
    )
    assert done.returncode == 0, done.stderr
    header, row, on_gpu, last = done.stdout.splitlines()
    assert header.split() == ["TARGET", "RAN", "ON", "PYTORCH", "COMPILED", "AGREE", "RATIO"]
    target, *_, before, after, agree, ratio = row.split()
    assert (target, agree) == ("x86-64-v3", "360/360")
    assert before == after and float(ratio) <= 3
    target, *where, before, after, agree, ratio = on_gpu.split()
    assert (target, agree) == ("cuda-sm90", "60/60")
    assert before == after and float(ratio) <= 3
    assert cuda.why_not_here() is None or "kernels" in where
    assert "digits.safetensors" in last
    with tm.load(tmp_path / "x86-64-v3") as bundle:
        assert bundle.outputs[0].shape == (1, 10)
