"""Killed, out of space or forbidden at every write: nothing half-written is ever accepted.

Whole `build` and `tune` commands are killed at a sample of their writes, others each time; at all:

    ABUSE_ALL=1 pytest -n0 -s tests/abuse/test_interrupted.py -k whole
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from tvm_mobilenet import cli, frontend, targets
from tvm_mobilenet.deploy.builder import Proven, compile_and_prove
from tvm_mobilenet.deploy.bundle import check_output, write_bundle
from tvm_mobilenet.deploy.inspect import verify
from tvm_mobilenet.deploy.variants import merge
from tvm_mobilenet.frontend import export_onnx
from tvm_mobilenet.runtime import manifest
from tvm_mobilenet.schedules.base import fingerprint
from tvm_mobilenet.schedules.spec import ConvSpec
from tvm_mobilenet.tuning import session as session_module
from tvm_mobilenet.tuning.finalists import Settled
from tvm_mobilenet.tuning.measure import Measurement
from tvm_mobilenet.tuning.records import RECORDS, Record, read_records, setting_of
from tvm_mobilenet.tuning.session import Limits, Place, Session
from tvm_mobilenet.tuning.store import Measured, MeasuredLog
from tvm_mobilenet.tuning.task import task_of

ERRORS = (errno.ENOSPC, errno.EROFS)
MODEL = """<ir_version: 8, opset_import: ["" : 17]>
tiny (float[1,3,4,4] x) => (float[1,3,4,4] y) { y = Relu(x) }"""
TUNED = """<ir_version: 8, opset_import: ["" : 17]>
stem (float[1,3,8,8] x) => (float[1,16,6,6] y) { y = Conv(x, w) }"""


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


class InventedTimes:
    """In the place of a measurer; notes each measurement that was held for written."""

    def __init__(self, notes: Path) -> None:
        self.spent: dict[str, float] = {}
        self._notes = notes

    def measure(
        self, kernels: Sequence[Any], on_result: Callable[[int, Measurement], None]
    ) -> None:
        for place, kernel in enumerate(kernels):
            seconds = 1e-5 * (1 + int(fingerprint(kernel)[:4], 16) / 65536)
            on_result(place, Measurement(seconds, (seconds, seconds)))
            with self._notes.open("a") as file:
                file.write(f"{fingerprint(kernel)}\n")


def tune_with_invented_times(logs: Path, notes: Path, trials: int) -> None:
    """All that `tune` keeps, of one operator; the fastest becomes a record."""
    target = dataclasses.replace(targets.load("x86-64-v3"), cores=1)
    place = Place(target, setting_of(target, 1, "a test"), logs)
    session = Session(SimpleNamespace(), "net", place, InventedTimes(notes))  # type: ignore[arg-type]
    session.search(Limits(trials))
    best = {search.task.operator: search.best[0] for search in session.searches if search.best}
    session.finish(Settled(best), "done")


@pytest.mark.slow
@pytest.mark.parametrize("error", [0, errno.ENOSPC], ids=["kill", "full"])
def test_tuning_goes_on_from_every_write(
    error: int, interrupted: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import xgboost  # noqa: F401 -- once, and not in every process

    task = task_of(ConvSpec(1, 8, 6, 6, 16, lanes=8), targets.load("x86-64-v3"))
    few = [dataclasses.replace(task, space=task.space[::30])]
    monkeypatch.setattr(session_module, "tasks_of", lambda imported, target: few)
    for number in itertools.count(1):
        place, notes = tmp_path / str(number), tmp_path / f"{number}.notes"
        place.mkdir()
        tune = partial(tune_with_invented_times, place / "logs", notes)
        end, message = interrupted(partial(tune, 5), place, number, error)
        kept, damaged = measurements(place)
        finished = notes.read_text().splitlines() if notes.exists() else []
        assert [each.fingerprint for each in kept[: len(finished)]] == finished and damaged == []
        assert end != "refused" or (str(place) in message and "\n" not in message)
        assert len(kept) == len(finished) or end == "killed"
        winners = records(place)
        assert end not in ("finished", "untouched") or len(winners) == 1
        if end == "untouched":
            break
        assert interrupted(partial(tune, 6), place, 0)[0] == "finished"
        after, damaged = measurements(place)
        assert after[: len(kept)] == kept and len(after) == 6 and damaged == []
        assert [each.seconds for each in records(place)] == [min(each.seconds for each in after)]  # type: ignore[type-var]
    assert number > 20
    sys.stdout.write(f"tuning's logs: {number - 1} writes\n")


def measurements(place: Path) -> tuple[list[Measured], list[str]]:
    """All of a run's, and remarks on lines that are none."""
    logs = [MeasuredLog(path) for path in place.glob("logs/*") if path.is_dir()]
    return logs[0].read() if logs else ([], [])


def records(place: Path) -> list[Record]:
    """A run's winners; InputError when the file is not whole."""
    return [each for path in place.glob(f"logs/*/{RECORDS}") for each in read_records(path)]


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
@pytest.mark.parametrize(("error", "count"), [(0, 6), (errno.ENOSPC, 3)], ids=["kill", "full"])
def test_whole_builds_are_killed_or_refused(
    error: int,
    count: int,
    tiny: Path,
    proven: Proven,
    commands: Callable,
    numbers: Callable,
    tmp_path: Path,
) -> None:
    """Compiler, linker, parity and bundle in one; every other one has an older bundle there."""
    codes = []
    for number in numbers(count, 43):
        place = tmp_path / str(number)
        output = place / "out" / "bundle"
        older = number % 2 == 0
        if older:
            write(proven, output, threads=3)
        build = ["build", tiny, "--threads", 1, "-o", output]
        code, said = commands(build, place, number, error)
        codes.append(code)
        assert code in (-9, 0, 100) if error == 0 else code in (3, 0, 100), said
        assert_told_in_one_line(code, said)
        if code == 0 or output.exists():
            assert threads_of(output) in {0: (1,), 100: (1,), 3: (3,), -9: (1, 3)}[code], said
        assert output.exists() or not older
        if code == 3:  # refused: nothing is left behind
            assert list(place.glob("out/.*")) == []
            assert list((place / "tmp").iterdir()) == []
        if code == 100:
            break
    assert -9 in codes or 3 in codes
    sys.stdout.write(f"build: {len(codes)} writes, {Counter(codes)}\n")


def assert_told_in_one_line(code: int, said: str) -> None:
    assert "Traceback" not in said
    assert code in (-9, 0, 100) or "\ntvm-mobilenet: error: " in f"\n{said}", said


@pytest.mark.slow
def test_whole_tuning_is_killed_or_refused(
    commands: Callable, numbers: Callable, tmp_path: Path
) -> None:
    """No finished measurement is lost, and the same command goes on from whatever was left."""
    model, network = tmp_path / "stem.onnx", onnx.parser.parse_model(TUNED)
    weight = np.random.default_rng(0).standard_normal((16, 3, 3, 3)).astype(np.float32)
    network.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(network, model)
    codes = []
    # a full disk only with all: each costs two runs of three processes that import TVM
    errors = (0, errno.ENOSPC) if os.environ.get("ABUSE_ALL") else (0,)
    for number, error in ((n, e) for n in numbers(1, 30) for e in errors):
        place = tmp_path / f"{number}.{error}"
        tune = ["tune", model, "--threads", 1, "--trials", 3, "--logs", place / "logs"]
        code, said = commands(tune, place, number, error)
        codes.append(code)
        assert code in ((3, 0, 6, 100) if error else (-9, 100)), said
        assert_told_in_one_line(code, said)
        kept, damaged = measurements(place)
        noted = place.with_name(f"{place.name}.measured")
        finished = noted.read_text().splitlines() if noted.exists() else []
        assert [text_of(each) for each in kept[: len(finished)]] == finished and damaged == []
        records(place)
        again, said = commands(tune, place)
        assert again == 0, said
        after, damaged = measurements(place)
        assert after[: len(kept)] == kept and len(after) >= 3 and damaged == []
        if code == 100:
            break
    assert codes[0] != 100
    sys.stdout.write(f"tune: {len(codes)} writes, {Counter(codes)}\n")


def text_of(entry: Measured) -> str:
    return json.dumps([entry.operator, entry.rule, entry.knobs])


@pytest.mark.slow
@pytest.mark.parametrize("error", [0, errno.ENOSPC], ids=["kill", "full"])
def test_merged_bundle_is_whole_or_absent(
    error: int, proven: Proven, interrupted: Callable, tmp_path: Path
) -> None:
    parts = [tmp_path / "one", tmp_path / "other"]
    for path, name in zip(parts, ("x86-64-v2", "other"), strict=True):
        write(proven, path, threads=1)
        document = json.loads((path / manifest.NAME).read_text())
        del document["manifest_sha256"]
        document["target"]["name"] = name
        (path / manifest.NAME).write_text(manifest.seal(document))
    for number in itertools.count(1):
        place = tmp_path / str(number)
        place.mkdir()
        output = place / "out" / "bundle"
        end, message = interrupted(partial(merge, parts, output), place, number, error)
        if end == "untouched":
            break
        if output.exists() and any(output.iterdir()):
            assert end != "refused" and len(verify(output)) == 2
        if end == "refused":
            assert str(output) in message and "\n" not in message
            assert list(place.iterdir()) == []
        check_output(output)
        shutil.rmtree(place)
    assert len(verify(output)) == 2 and number > 50
    sys.stdout.write(f"merge: {number - 1} writes\n")
    for arguments in (["inspect", parts[0]], ["verify", output], ["diff", *parts]):
        command = ["bundle", *map(str, arguments)]
        assert interrupted(partial(cli.main, command), tmp_path, 1)[0] == "untouched"


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
