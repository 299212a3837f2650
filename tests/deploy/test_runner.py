"""The C++ runner and library of the bundle, built with CMake: without Python they prove, measure,
classify, and serve a program that embeds them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvm_mobilenet.deploy.variants import merge
from tvm_mobilenet.parity import judge
from tvm_mobilenet.parity.judge import FACTOR, FEW_VALUES
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
def place(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where CMake built everything."""
    place = tmp_path_factory.mktemp("cmake")
    strict = [f"-DCMAKE_{language}_FLAGS=-Wall -Wextra -Werror" for language in ("C", "CXX")]
    python = f"-DPython_EXECUTABLE={sys.executable}"
    for step in (("-S", built / "runner", "-B", place, python, *strict), ("--build", place)):
        done = command("cmake", *step)
        assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.fixture(scope="module")
def runner(place: Path) -> Runner:
    """Runs the built runner: runner("--bench", 5)."""
    return lambda *arguments: command(place / "runner", *arguments)


def test_it_proves_parity_of_its_own_bundle(runner: Runner) -> None:
    done = runner()
    assert done.returncode == 0, done.stderr
    assert "ok   result: max error " in done.stdout
    assert "parity passed on 2 samples" in done.stdout


def test_it_measures(runner: Runner) -> None:
    done = runner("--bench", 7, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert "latency in ms over 7 runs: median " in done.stdout
    assert "the runner adds " in done.stdout


def test_it_reports_json(runner: Runner) -> None:
    said = json.loads(runner("--json", "--check", "--bench", 3, "--threads", 1).stdout)
    assert (said["schema_version"], said["kind"], said["model"]) == (1, "runner", "small")
    assert said["verified"] and said["threads"] == 1
    assert said["parity"]["outputs"][0]["passed"] and said["parity"]["samples"] == 2
    assert said["latency_ms"]["min"] <= said["latency_ms"]["median"]


@pytest.mark.parametrize("form", ["raw", "npy"])
def test_it_classifies_a_tensor(runner: Runner, built: Path, tmp_path: Path, form: str) -> None:
    picture = np.random.default_rng(3).standard_normal((1, 3, 16, 16)).astype(np.float32)
    file = tmp_path / f"picture.{form}"
    if form == "raw":
        picture.tofile(file)
    else:
        np.save(file, picture)
    done = runner("--input", file, "--top-k", 2, "--json", "--outputs", tmp_path / "scores")
    assert done.returncode == 0, done.stderr
    scores = Bundle.load(built).run(picture)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "scores", np.float32), scores[0])
    shares = np.exp(scores[0] - scores.max())
    shares /= shares.sum()
    best = np.argsort(-shares)[:2]
    found = json.loads(done.stdout)["classes"]
    assert [(each["row"], each["rank"], each["class"]) for each in found] == [
        (0, 1, best[0]),
        (0, 2, best[1]),
    ]
    assert [each["probability"] for each in found] == pytest.approx(shares[best], abs=1e-6)


def test_a_tensor_of_another_size_is_refused(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(bytes(100))
    for file, words in (("short", "input 'picture' takes 3072"), ("none", "missing or empty")):
        done = runner("--input", tmp_path / file)
        assert done.returncode == 3
        assert words in done.stderr
    assert runner("--input", "a", "--input", "b").returncode == 2


def test_a_program_embeds_the_library(place: Path, built: Path, tmp_path: Path) -> None:
    picture = np.random.default_rng(4).standard_normal((1, 3, 16, 16)).astype(np.float32)
    picture.tofile(tmp_path / "picture")
    assert len((built / "runner/example.c").read_text().splitlines()) < 60
    for program in ("example", "example_static"):
        done = command(place / program, built, tmp_path / "picture")
        assert done.returncode == 0, done.stderr
        scores = Bundle.load(built).run(picture)
        assert f"class {scores.argmax()}, result {scores.max():.4f}" in done.stdout
        done = command(place / program, tmp_path)
        assert done.returncode == 3
        assert "manifest.json is missing" in done.stderr


def test_threads_use_one_model_or_one_each(place: Path, built: Path, tmp_path: Path) -> None:
    """Compiled against the header alone; every answer is compared with a single thread's."""
    options = ["-std=c++17", f"-I{built / 'runner'}", f"-L{place}", f"-Wl,-rpath,{place}"]
    source = Path(__file__).parent / "embedding_threads.cc"
    program = tmp_path / "threads"
    done = command("g++", source, *options, "-ltvm_mobilenet", "-pthread", "-o", program)
    assert done.returncode == 0, done.stderr
    done = command(program, built)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "800 runs, 0 wrong\n"


@pytest.mark.parametrize("few_values", [FEW_VALUES, None], ids=["today", "older bundle"])
@pytest.mark.parametrize("share", [0.0, 0.9, 1.1])
def test_it_judges_by_the_rule_of_the_build(
    runner: Runner, bundle_path: Path, share: float, few_values: int | None
) -> None:
    """References set so that our error is this share of what the bundle's own rule allows."""
    bundle = Bundle.load(bundle_path)
    samples = load_samples(bundle_path / manifest.SAMPLES, ["picture"], ["result"])
    values = sum(sample.float64["result"].size for sample in samples)
    times = share * FACTOR * (1 + (few_values or 0) / values)
    made = []
    for sample in samples:
        got = bundle.run(sample.inputs["picture"]).astype(np.float64)
        exact = got - times * 1e-3
        torch32 = (exact + 1e-3).astype(np.float32)
        made.append(Sample(sample.inputs, {"result": torch32}, {"result": exact}))
    save_samples(bundle_path / manifest.SAMPLES, made)
    if few_values is None:
        change_manifest(bundle_path, lambda document: document["parity"].pop("few_values"))
    else:
        report = judge([bundle.program.run(sample.inputs) for sample in made], made)
        assert report.passed == (share <= 1)
    done = runner("--bundle", bundle_path, "--no-verify")  # the samples are not the build's
    assert done.returncode == (0 if share <= 1 else 5), done.stdout + done.stderr
    assert ("ok  " if share <= 1 else "FAIL") in done.stdout


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_it_finds_misplaced_special_values(runner: Runner, bundle_path: Path, value: float) -> None:
    (first, *others) = load_samples(bundle_path / manifest.SAMPLES, ["picture"], ["result"])
    wrong = first.float32["result"].copy()
    wrong[0, 2] = value
    save_samples(
        bundle_path / manifest.SAMPLES,
        [Sample(first.inputs, {"result": wrong}, first.float64), *others],
    )
    done = runner("--samples", bundle_path / manifest.SAMPLES)
    assert done.returncode == 5
    assert "misplaced 1" in done.stdout


def change_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change it and seal it again, as a forger would."""
    document = json.loads((path / manifest.NAME).read_text())
    del document["manifest_sha256"]
    change(document)
    (path / manifest.NAME).write_text(manifest.seal(document))


@pytest.mark.parametrize("name", [manifest.NAME, manifest.SAMPLES, "kernels.zip", "runner/npz.h"])
def test_every_file_is_compared_with_its_hash(runner: Runner, bundle_path: Path, name: str) -> None:
    content = bytearray((bundle_path / name).read_bytes())
    place = content.rindex(b'"size": ') + 8 if name == manifest.NAME else len(content) // 2
    content[place] ^= 1
    (bundle_path / name).write_bytes(content)
    done = runner("--bundle", bundle_path)
    assert done.returncode == 3
    assert f"{name}" in done.stderr and "differs from what was built" in done.stderr
    if name == "kernels.zip":
        assert runner("--bundle", bundle_path, "--no-verify").returncode == 0


@pytest.mark.parametrize("name", ["/etc/hostname", "../x", "runner/../../x", "a//b", "a\\b", ""])
def test_names_that_lead_out_are_refused(runner: Runner, bundle_path: Path, name: str) -> None:
    entry = {"sha256": "0" * 64, "size": 0}
    change_manifest(bundle_path, lambda document: document["files"].update({name: entry}))
    done = runner("--bundle", bundle_path)
    assert done.returncode == 3
    assert "leads out of the bundle" in done.stderr


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


def test_it_picks_its_target(runner: Runner, built: Path, tmp_path: Path) -> None:
    """Of a bundle for several targets; a changed manifest of the chosen one is found."""
    for name in ("best", "board"):
        shutil.copytree(built, tmp_path / name)
    change_manifest(
        tmp_path / "board", lambda document: document["target"].update(architecture="riscv64")
    )
    change_manifest(tmp_path / "best", lambda document: document["target"].update(name="best"))
    change_manifest(tmp_path / "board", lambda document: document["target"].update(name="board"))
    fat = merge([tmp_path / "board", tmp_path / "best"], tmp_path / "fat")
    done = runner("--bundle", fat, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["target"] == "best"
    change_manifest(fat / "best", lambda document: document["model"].update(name="forged"))
    done = runner("--bundle", fat)
    assert done.returncode == 3
    assert "best/manifest.json is missing or differs" in done.stderr
    shutil.rmtree(fat)
    only = merge([tmp_path / "board", change_name(tmp_path / "board", "second")], fat)
    assert "nothing for this machine" in runner("--bundle", only).stderr


def change_name(path: Path, name: str) -> Path:
    copy = Path(shutil.copytree(path, path.with_name(name)))
    change_manifest(copy, lambda document: document["target"].update(name=name))
    return copy


@pytest.mark.parametrize(
    "arguments",
    [("--what",), ("--what", "1"), ("--bench",), ("--bench", "0"), ("--threads", "x")],
)
def test_bad_usage(runner: Runner, arguments: tuple[str, ...]) -> None:
    done = runner(*arguments)
    assert done.returncode == 2
    assert "usage: runner" in done.stderr
