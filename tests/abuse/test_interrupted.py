"""Killed, out of space or forbidden at every write: nothing half-written is ever accepted."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.deploy.builder import Proven, compile_and_prove
from tvm_mobilenet.deploy.bundle import check_output, write_bundle
from tvm_mobilenet.frontend import export_onnx
from tvm_mobilenet.runtime import manifest
from tvm_mobilenet.tuning.store import Measured, MeasuredLog

ERRORS = (errno.ENOSPC, errno.EROFS)
MODEL = """<ir_version: 8, opset_import: ["" : 17]>
tiny (float[1,3,4,4] x) => (float[1,3,4,4] y) { y = Relu(x) }"""


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> Proven:
    model = frontend.import_onnx(onnx.parser.parse_model(MODEL))
    library = tmp_path_factory.mktemp("library") / manifest.LIBRARY
    return compile_and_prove(model, targets.load("x86-64-v2"), library, progress=lambda text: None)


def write(proven: Proven, output: Path, threads: int) -> None:
    write_bundle(
        proven.compiled,
        proven.parity,
        proven.samples,
        output,
        library=proven.library,
        threads=threads,
    )


def threads_of(bundle: Path) -> int | None:
    """What a whole bundle was written with; InputError when it is not whole."""
    contents = manifest.read(bundle)
    manifest.check_files(bundle, contents)
    return contents.threads


@pytest.mark.slow
@pytest.mark.parametrize("older", [False, True], ids=["free", "older bundle there"])
@pytest.mark.parametrize("error", [0, *ERRORS], ids=["kill", "full", "forbidden"])
def test_bundle_is_whole_or_absent(
    older: bool, error: int, proven: Proven, interrupted: Callable, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    write(proven, first, threads=1)
    for number in itertools.count(1):
        place = tmp_path / str(number)
        output = place / "out" / "bundle"
        place.mkdir()
        if older:
            shutil.copytree(first, output)
        end, message = interrupted(partial(write, proven, output, 2), place, number, error)
        if end == "untouched":
            break
        there = output.exists() and any(output.iterdir())
        assert there or not older, "the older bundle is lost"
        if there:
            assert threads_of(output) in {"refused": (1,), "finished": (2,), "killed": (1, 2)}[end]
        if end == "refused":
            assert str(output) in message and "\n" not in message
            assert list(place.iterdir()) == ([output.parent] if older else [])
            assert not older or list(output.parent.iterdir()) == [output]
        check_output(output)  # the next build may write there
        shutil.rmtree(place)
    assert threads_of(output) == 2
    assert number > 25


def entry(number: int) -> Measured:
    return Measured("{}", "rule", {"n": number}, "f", {}, 1e-3, (1e-3, 1e-3), None, "now", 0, "t")


@pytest.mark.parametrize("error", [0, *ERRORS])
def test_tuning_log_keeps_every_earlier_line(
    error: int, interrupted: Callable, tmp_path: Path
) -> None:
    for number in itertools.count(1):
        log = MeasuredLog(tmp_path / str(number))
        log.append([entry(0), entry(1)])
        end, message = interrupted(
            lambda log=log: log.append([entry(2), entry(3)]), tmp_path, number, error
        )
        kept, damaged = log.read()
        assert kept[:2] == [entry(0), entry(1)] and damaged == []
        log.append([entry(4)])
        after, damaged = log.read()
        assert after == [*kept, entry(4)] and damaged == []
        if end == "untouched":
            break
        if end == "refused":
            assert kept == [entry(0), entry(1)] and str(log.path) in message
    assert number > 3


@pytest.mark.parametrize("error", [0, *ERRORS])
def test_exported_model_is_whole_or_as_before(
    error: int, interrupted: Callable, tmp_path: Path
) -> None:
    import torch

    path = tmp_path / "model.onnx"
    path.write_bytes(b"older")
    module = torch.nn.ReLU()

    def export() -> None:
        export_onnx(module, (1, 3, 4, 4), path, exporter="torchscript")

    for number in itertools.count(1):
        end, message = interrupted(export, tmp_path, number, error)
        if end == "untouched":
            break
        assert path.read_bytes() == b"older"
        if end == "refused":
            assert message.startswith(str(path))
            assert list(tmp_path.iterdir()) == [path]
        for left in set(tmp_path.iterdir()) - {path}:
            left.unlink()
    onnx.checker.check_model(onnx.load(path))
    assert number > 2


def test_two_builds_into_one_folder(proven: Proven, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    children = []
    for threads in (1, 2, 3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for _ in range(8):
                    write(proven, output, threads)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0, 0]
    assert threads_of(output) in (1, 2, 3)
    assert list(tmp_path.iterdir()) == [output]


def test_samples_cut_short_are_refused(proven: Proven, tmp_path: Path) -> None:
    from tvm_mobilenet.errors import InputError
    from tvm_mobilenet.parity.samples import load_samples, save_samples

    path = tmp_path / "samples.npz"
    save_samples(path, proven.samples)
    data = path.read_bytes()
    for share in np.linspace(0, 1, 40, endpoint=False):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(InputError):
            load_samples(path, ["x"], ["y"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    onnx.save(onnx.parser.parse_model(MODEL), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("error", "count"), [(0, 8), (errno.ENOSPC, 4)], ids=["kill", "full"])
def test_whole_builds_are_killed_or_refused(
    error: int, count: int, tiny: Path, proven: Proven, tmp_path: Path
) -> None:
    """Compiler, linker, parity and bundle in one; every other one has an older bundle there."""
    numbers = sorted(np.random.default_rng(error).permutation(np.arange(1, 45))[:count].tolist())
    for number in numbers[::2]:
        write(proven, tmp_path / str(number) / "out" / "bundle", threads=3)
    script = Path(__file__).with_name("killed_builds.py")
    command = [sys.executable, script, tiny, tmp_path, error, *numbers]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    codes = {each["number"]: each["code"] for each in map(json.loads, done.stdout.splitlines())}
    assert list(codes) == numbers, done.stderr
    assert any(code in (-9, 3) for code in codes.values())
    for number, code in codes.items():
        said = (tmp_path / f"{number}.said").read_text()
        output = tmp_path / str(number) / "out" / "bundle"
        assert code in (-9, 0, 100) if error == 0 else code in (3, 0, 100), said
        assert "Traceback" not in said
        assert "\ntvm-mobilenet: error: " in f"\n{said}" or code != 3, said
        older = number in numbers[::2]
        if code == 0 or output.exists():
            assert threads_of(output) in {0: (1,), 100: (1,), 3: (3,), -9: (1, 3)}[code], said
        assert output.exists() or not older
        if code == 3:  # refused: nothing is left behind
            assert list((tmp_path / str(number)).glob("out/.*")) == []
            assert list((tmp_path / str(number) / "tmp").iterdir()) == []


@pytest.mark.slow
def test_two_whole_builds_into_one_folder_and_one_without_room(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "bundle"
    command = [sys.executable, "-m", "tvm_mobilenet", "build", str(tiny), "-o", str(output)]
    both = [
        subprocess.Popen([*command, "--threads", threads], stderr=subprocess.PIPE, text=True)
        for threads in ("1", "2")
    ]
    for process in both:
        said = process.communicate()[1]
        assert process.returncode == 0, said
    assert threads_of(output) in (1, 2)
    assert list(output.parent.iterdir()) == [output]
    before = output.joinpath(manifest.NAME).read_bytes()

    def no_file_beyond_16_kib() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))

    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=no_file_beyond_16_kib,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr and "tvm-mobilenet: error: " in done.stderr
    assert output.joinpath(manifest.NAME).read_bytes() == before
    assert list(tmp_path.iterdir()) == [output.parent]
