"""The C++ runner of the bundle: built with CMake, it proves parity and measures without Python."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvm_mobilenet.parity import judge
from tvm_mobilenet.parity.samples import Sample, load_samples, save_samples
from tvm_mobilenet.runtime import Bundle, manifest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs_tool("cmake", "cmake"),
    pytest.mark.needs_tool("g++", "g++"),
]
Runner = Callable[..., "subprocess.CompletedProcess[str]"]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(argument) for argument in arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def runner(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Runs the built runner: runner("--repeat", 5)."""
    place = tmp_path_factory.mktemp("cmake")
    python = f"-DPython_EXECUTABLE={sys.executable}"
    for step in (
        ("-S", built / "runner", "-B", place, python, "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"),
        ("--build", place),
    ):
        done = command("cmake", *step)
        assert done.returncode == 0, done.stdout + done.stderr
    return lambda *arguments: command(place / "runner", *arguments)


def test_it_proves_parity_of_its_own_bundle(runner: Runner) -> None:
    done = runner()
    assert done.returncode == 0, done.stderr
    assert "ok   result: max error " in done.stdout
    assert "parity passed on 2 samples" in done.stdout


def test_it_measures(runner: Runner) -> None:
    done = runner("--repeat", 7, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert "latency in ms over 7 runs: median " in done.stdout


@pytest.mark.parametrize("times", [0.0, 2.5, 3.5])
def test_it_judges_by_the_rule_of_the_build(
    runner: Runner, bundle_path: Path, times: float
) -> None:
    """References set so that our error is `times` PyTorch's."""
    bundle = Bundle.load(bundle_path)
    samples = load_samples(bundle_path / manifest.SAMPLES, ["picture"], ["result"])
    made = []
    for sample in samples:
        got = bundle.run(sample.inputs["picture"]).astype(np.float64)
        exact = got - times * 1e-3
        torch32 = (exact + 1e-3).astype(np.float32)
        made.append(Sample(sample.inputs, {"result": torch32}, {"result": exact}))
    save_samples(bundle_path / manifest.SAMPLES, made)
    report = judge([bundle.program.run(sample.inputs) for sample in made], made)
    done = runner("--bundle", bundle_path)
    assert report.passed == (times <= 3)
    assert done.returncode == (0 if report.passed else 5), done.stdout + done.stderr
    assert ("ok  " if report.passed else "FAIL") in done.stdout


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_it_finds_misplaced_special_values(runner: Runner, bundle_path: Path, value: float) -> None:
    (first, *others) = load_samples(bundle_path / manifest.SAMPLES, ["picture"], ["result"])
    wrong = first.float32["result"].copy()
    wrong[0, 2] = value
    save_samples(
        bundle_path / manifest.SAMPLES,
        [Sample(first.inputs, {"result": wrong}, first.float64), *others],
    )
    done = runner("--bundle", bundle_path)
    assert done.returncode == 5
    assert "misplaced 1" in done.stdout


def change_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((path / manifest.NAME).read_text())
    change(document)
    (path / manifest.NAME).write_text(json.dumps(document))


def test_it_refuses_a_cpu_without_the_features(runner: Runner, bundle_path: Path) -> None:
    change_manifest(
        bundle_path, lambda document: document["target"].update(cpu_features=["avx2048f"])
    )
    done = runner("--bundle", bundle_path)
    assert done.returncode == 3
    assert "needs a CPU with avx2048f" in done.stderr


@pytest.mark.parametrize("name", [manifest.NAME, manifest.SAMPLES, manifest.LIBRARY])
def test_a_damaged_bundle_is_one_line(runner: Runner, bundle_path: Path, name: str) -> None:
    content = (bundle_path / name).read_bytes()
    for damaged in (b"", content[: len(content) // 2]):
        (bundle_path / name).write_bytes(damaged)
        done = runner("--bundle", bundle_path)
        assert done.returncode == 3
        assert done.stderr.startswith("runner: ")


@pytest.mark.parametrize(
    "arguments",
    [("--what",), ("--what", "1"), ("--repeat",), ("--repeat", "0"), ("--threads", "x")],
)
def test_bad_usage(runner: Runner, arguments: tuple[str, ...]) -> None:
    done = runner(*arguments)
    assert done.returncode == 2
    assert "usage: runner" in done.stderr
