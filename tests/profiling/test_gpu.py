"""The GPU benchmark, as far as it goes without a GPU: turns, limits, what is kept, a dry run."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
import torch

from tvm_mobilenet import targets
from tvm_mobilenet.cli import main
from tvm_mobilenet.errors import NothingMeasuredError
from tvm_mobilenet.parity import cuda_emulate
from tvm_mobilenet.profiling import gpu
from tvm_mobilenet.tuning.records import read_records
from tvm_mobilenet.tuning.store import Measured, MeasuredLog

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
DRY_RUN = Path(__file__).with_name("gpu_dry_run.py")


class Event:
    """A CUDA event by the CPU's clock."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_contestants_take_turns_in_blocks_of_equal_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = [0.0]  # seconds
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    order: list[str] = []

    def call(name: str, seconds: float):
        def run() -> None:
            order.append(name)
            clock[0] += seconds

        return run

    calls = {"slow": call("slow", 2e-3), "fast": call("fast", 5e-4)}
    timings = gpu.interleaved(calls, blocks=4, block_ms=4.0)
    assert timings["slow"].p50_us >= 2000 and timings["fast"].p50_us >= 500
    assert timings["fast"].calls > timings["slow"].calls >= 1
    turns = [n for i, n in enumerate(order[40:]) if i == 0 or order[40 + i - 1] != n]
    assert turns == 4 * ["slow", "fast"]


def test_kernels_are_held_against_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Profiler:
        def __init__(self, activities: object) -> None: ...
        def __enter__(self) -> Profiler:
            return self

        def __exit__(self, *error: object) -> None: ...
        def key_averages(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(key="a_kernel", count=50, device_time_total=500.0)]

    monkeypatch.setattr(torch.profiler, "profile", Profiler)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    device = targets.load("cuda-sm90").gpu
    launches = [{"kernel": "a_kernel", "operator": 0}]
    operator = SimpleNamespace(mult_adds=66_908_160, bytes=4_800_000)  # 2 us and 1 us at the limits
    (found,) = gpu.kernel_times(lambda: None, launches, [operator], device, "float32")
    assert (found.mean_us, found.launches) == (10.0, 1)
    assert found.flops_share == pytest.approx(0.2, rel=1e-3)
    assert found.bandwidth_share == pytest.approx(0.1)
    assert found.least_us == pytest.approx(2.0, rel=1e-3)
    with pytest.raises(NothingMeasuredError):
        gpu.kernel_times(lambda: None, [{"kernel": "b", "operator": 0}], [operator], device, "tf32")


def test_a_failed_step_is_told_and_tried_again_others_are_kept(script, tmp_path: Path) -> None:
    done: list[str] = []

    def fail() -> dict[str, object]:
        done.append("fail")
        raise ValueError("no such thing")

    def work() -> dict[str, object]:
        done.append("work")
        return {"summary": "it is right"}

    for _ in range(2):
        results = script.Results(tmp_path)
        results.do("first", fail)
        results.do("second", work)
    assert done == ["fail", "work", "fail"]
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert document["steps"]["first"]["error"] == "ValueError: no such thing"
    text = (tmp_path / "gpu.md").read_text()
    assert "nothing was measured" in text and "- first: ValueError: no such thing" in text


def test_only_what_is_needed_is_carried_and_nothing_overwritten(script, tmp_path: Path) -> None:
    import gpu_carried

    package = tmp_path / "tvm"
    (package / "include").mkdir(parents=True)
    (package / "__init__.py").write_text("carried = True")
    (package / "include" / "left_behind.h").write_text("")
    assert [path.name for path in gpu_carried.files_of(package)] == ["__init__.py"]
    there = tmp_path / "there.tar.xz"
    there.write_text("mine")
    assert gpu_carried.pack(there, "3.12", []) == 3 and there.read_text() == "mine"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the emulated driver is, and the kernels that were built for it."""
    directory = tmp_path_factory.mktemp("driver")
    cuda_emulate.build_driver(directory)
    return directory


@pytest.fixture
def bare_machine(script: ModuleType, driver: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with Python, PyTorch and what was packed; and no compiler."""
    site, there = tmp_path / "site-packages", tmp_path / "there"
    site.mkdir()
    for name in _brought_by_pytorch():
        for file in importlib.metadata.distribution(name).files or ():
            top = site / file.parts[0]
            if file.parts[0] not in ("..", "bin", "__pycache__") and not top.exists():
                top.symlink_to(importlib.metadata.distribution(name).locate_file(file.parts[0]))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert script.main(["pack", str(tmp_path / "gpu.tar"), "--python", python]) == 0
    with tarfile.open(tmp_path / "gpu.tar") as archive:
        archive.extractall(there)  # our own; Python 3.11.2 knows no filter yet
    (tmp_path / "no-programs").mkdir()
    nvrtc = nvrtc_library().parent
    return {
        "PATH": str(tmp_path / "no-programs"),
        "EMULATOR_PATH": os.environ["PATH"],
        "PYTHONPATH": str(site),
        "GPU_SCRIPTS": str(there),
        "LD_LIBRARY_PATH": f"{driver}:{nvrtc}",
        "OMP_NUM_THREADS": "1",
    }


def _brought_by_pytorch() -> list[str]:
    """Its wheels and theirs; those for CUDA too, which are not installed here with it."""
    found, left = [], ["torch", "cuda-bindings"]
    while left:
        name = left.pop()
        found.append(name)
        for requirement in importlib.metadata.requires(name) or ():
            needed, _, condition = requirement.partition(";")
            other = re.split(r"[^\w.-]", needed.strip())[0]
            if "extra" not in condition and other not in (*found, *left):
                left.append(other)
    return found


def nvrtc_library() -> Path:
    from cuda import pathfinder

    return Path(pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path)


@pytest.mark.slow
def test_every_step_runs_to_its_end_on_an_emulated_gpu_with_pytorch_and_the_pack_alone(
    driver: Path, bare_machine: dict[str, str], tmp_path: Path
) -> None:
    """Proof, graph against launches, turns with PyTorch, tuning, the page; resumed, nothing new."""
    out = tmp_path / "out"
    python = getattr(sys, "_base_executable", sys.executable)  # that knows no virtual environment
    command = [python, "-s", "-S", DRY_RUN, driver, "-o", out, "--target", "cuda-sm90"]
    command += ["--precisions", "float32", "--batches", "1"]
    done = subprocess.run(command, env=bare_machine, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads((out / "gpu.json").read_text())
    steps = document["steps"]
    assert list(steps) == [
        "parity small batch 1 float32",
        "time small batch 1 float32",
        "time small batch 1 float32, programmatic launches",
        "compare small batch 1 float32",
        "tune small batch 1 float32",
        "compare tuned small batch 1 float32",
    ]
    parity, timed, early, compared, tuned, _ = steps.values()
    assert parity["graph_equals_launches"] and parity["summary"].startswith("parity passed")
    assert set(compared["back_to_back"]) == {"ours", "eager", "eager, CUDA graph"}
    assert compared["not_measured"]["torch.compile"] == "RuntimeError: no compiler for max-autotune"
    assert "torch.compile" not in timed["not_measured"] and "torch.compile" not in timed["single"]
    assert early["summary"].startswith("parity passed") and early["back_to_back"]["ours"]
    assert compared["launches"] == 3
    written = out / "tuning_logs" / "cuda-sm90" / "records.jsonl"
    assert tuned["records"] == (len(read_records(written)) if written.exists() else 0)
    assert tuned["operators"] == len(tuned["gains"]) and min(tuned["gains"].values()) >= 1
    assert (tuned["summary"] is None) == (tuned["network_gain"] is None) == (tuned["records"] == 0)
    page = (out / "gpu.md").read_text()
    assert "emulated, on a CPU, sm_90" in page and "## Speed" in page
    assert parity["date"][:19] in page and "max-autotune" in page

    again = subprocess.run(command, env=bare_machine, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert json.loads((out / "gpu.json").read_text())["steps"] == steps


@pytest.fixture
def emulated(driver: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command of ours on the dry run's network and an emulated GPU."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(driver), "OMP_NUM_THREADS": "1"}
    started: list[subprocess.Popen[str]] = []

    def start(command: str, *arguments: object) -> subprocess.Popen[str]:
        line = [sys.executable, DRY_RUN, driver, "tvm-mobilenet", command, "--target", "cuda-sm90"]
        if command != "logs":
            line += ["gpu_dry_run:small", "--resolution", "16"]
        line += map(str, arguments)
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(line, env=environment, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def said(process: subprocess.Popen[str]) -> str:
    """What a command that ended well wrote to stdout."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
def test_bench_proves_and_times_at_any_precision_on_an_emulated_gpu(emulated) -> None:
    document = json.loads(said(emulated("bench", "--precision", "float16", "--json")))
    assert (document["kind"], document["device"]) == ("bench-gpu", "emulated, on a CPU")
    (cell,) = document["cells"]
    assert cell["precision"] == "float16" and cell["parity"].startswith("parity passed")
    assert set(cell["comparison"]["back_to_back"]) == {"ours", "eager", "eager, CUDA graph"}
    assert cell["comparison"]["speed_up_over_best_pytorch"] > 0


def seconds_of(entry: Measured) -> float:
    assert entry.seconds is not None
    return entry.seconds


@pytest.mark.slow
def test_tune_is_interrupted_goes_on_and_records_on_an_emulated_gpu(
    emulated, tmp_path: Path
) -> None:
    """Kernels are built in parallel and run emulated, in times that are invented."""
    logs, table = tmp_path / "logs", tmp_path / "table.csv"
    log = MeasuredLog(logs / "cuda-sm90")
    options = ("--precision", "tf32", "--trials", "2", "--logs", logs)
    process = emulated("tune", *options)
    while not (log.path.exists() and log.read()[0]):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert workers and not alive
    before, damaged = log.read()
    assert process.returncode == 130 and not damaged, errors
    assert f"{len(before)} measurements are kept: the same command goes on from here" in errors

    *lines, last = said(emulated("tune", *options, "--csv", table)).splitlines()
    header = "COUNT OPERATOR SHAPE SHARE TRIALS FAILED ANALYTIC us BEST us KEPT"
    assert " ".join(lines[0].split()) == header
    assert any(line.startswith(f"6 trials ({len(before)} of earlier runs)") for line in lines)
    assert any(line.startswith("with what was found: parity passed") for line in lines)
    entries, damaged = log.read()
    assert entries[: len(before)] == before and not damaged
    assert len(entries) == len({(entry.operator, entry.fingerprint) for entry in entries}) == 6
    assert all(entry.error is None and entry.setting == entries[0].setting for entry in entries)
    assert entries[0].setting["device"] == "emulated, on a CPU"
    assert any('"precision": "tf32"' in entry.operator for entry in entries)
    # the analytic choice is the first one; in invented times the network gains as its operators do
    analytic = {entry.operator: seconds_of(entry) for entry in reversed(entries)}
    best = {entry.operator: entry for entry in sorted(entries, key=seconds_of, reverse=True)}
    wanted = {o: e.knobs for o, e in best.items() if seconds_of(e) * 1.02 < analytic[o]}
    records = read_records(logs / "cuda-sm90" / "records.jsonl")
    assert {record.operator: record.knobs for record in records} == wanted != {}
    assert last.endswith(f"{len(records)} records written, for emulated, on a CPU, tf32")
    rows = list(csv.DictReader(table.open()))
    assert [row["tuned"] for row in rows[:-1]].count("True") == len(records)
    assert main(["logs", "show", "cuda-sm90", "--logs", str(logs)]) == 0
    checked = json.loads(said(emulated("logs", "check", "--logs", logs, "--json")))
    assert checked["gpu"] == "emulated, on a CPU" and len(checked["records"]) == len(records)
    for each in checked["records"]:
        assert (each["current"], each["fault"]) == (True, None)
        assert each["speed_up"] == pytest.approx(each["recorded_speed_up"])


@pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="hardware: a GPU is here")
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("bench", "--target", "cuda-sm90"), 3, "cuda-sm90: cannot be measured here: this machine"),
        (("tune", "--target", "cuda-sm90"), 3, "cuda-sm90: cannot be measured here: this machine"),
        (("bench", "--precision", "tf32"), 2, "--precision goes with a GPU"),
        (("tune", "--precision", "float16"), 2, "--precision goes with a GPU"),
        (("tune", "--target", "cuda-sm75", "--precision", "tf32"), 3, "no tensor cores for tf32"),
        (("bench", "--target", "cuda-sm90", "--against", "torch"), 2, "PyTorch is the peer"),
        (("tune", "--target", "cuda-sm90", "--static"), 2, "--static goes with a CPU"),
    ],
)
def test_what_commands_refuse(capsys, arguments, code, says, tmp_path: Path) -> None:
    command, *options = arguments
    assert main([command, "mobilenet_v1", *options, "--logs", str(tmp_path)]) == code
    out, err = capsys.readouterr()
    assert out == "" and says in err.splitlines()[-1]


@pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="hardware: a GPU is here")
def test_what_is_missing_is_named(script, monkeypatch, capfd, tmp_path: Path) -> None:
    assert script.main(["run", "-o", str(tmp_path)]) == 4
    told = capfd.readouterr().err.splitlines()
    assert told[0].startswith("missing: a GPU that TVM can use: this machine has no NVIDIA driver")
    assert told[1].startswith("missing: a PyTorch that sees the GPU")
    monkeypatch.setattr(script, "NEEDED", ("json", "no_such_package", "no_such.part"))
    assert script.main(["run", "-o", str(tmp_path)]) == 4
    assert [line.split(";")[0] for line in capfd.readouterr().err.splitlines()] == [
        "missing: the Python package no_such_package",
        "missing: the Python package no_such.part",
    ]


@pytest.mark.slow
def test_dry_run_without_a_gpu() -> None:
    command = [sys.executable, str(SCRIPT), "check", "--models", "V1 0.25/128", "--batches", "1,8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["missing"] == [] and min(document["launches"].values()) >= 10
    assert list(document["launches"]) == ["float32", "tf32", "float16"]
    assert len(document["steps"]) == 3 + 5 * 3 + 2 * 3
