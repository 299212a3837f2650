"""`tune` for real on a network of a few operators, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import numpy_helper, parser

from tvm_mobilenet.cli import main
from tvm_mobilenet.cli.tune import duration, interrupts_kept
from tvm_mobilenet.tuning.records import RECORDS, Record, Setting, read_records
from tvm_mobilenet.tuning.store import MEASURED, MeasuredLog

TEXT = """<ir_version: 10, opset_import: ["" : 18]>
two (float[1,3,24,24] picture) => (float[1,32,12,12] features) {
    stem = Conv<strides=[2,2], pads=[1,1,1,1]>(picture, w0, b0)
    active = Relu(stem)
    wide = Conv(active, w1, b1)
    features = Relu(wide)
}"""


DEPTHWISE = """<ir_version: 10, opset_import: ["" : 18]>
deep (float[1,16,28,28] picture) => (float[1,16,28,28] features) {
    deep = Conv<group=16, pads=[1,1,1,1]>(picture, w0, b0)
    features = Relu(deep)
}"""


def saved(text: str, shapes: dict[str, tuple[int, ...]], path: Path) -> Path:
    """The graph as a file, with random weights of these shapes."""
    random = np.random.default_rng(0)
    graph = parser.parse_model(text)
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        graph.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(graph, path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stem and a pointwise convolution."""
    shapes = {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (32, 16, 1, 1), "b1": (32,)}
    return saved(TEXT, shapes, tmp_path_factory.mktemp("model") / "two.onnx")


@pytest.mark.slow
def test_two_operators_are_tuned_recorded_and_built(model: Path, tmp_path: Path, cli) -> None:
    logs = tmp_path / "logs"
    options = ("--threads", 1, "--logs", logs)
    table = tmp_path / "table.csv"
    run = cli("tune", model, *options, "--trials", 10, "--csv", table, "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert {task["kind"] for task in found["tasks"]} >= {"stem", "pointwise"}
    assert found["trials"] >= 10 and found["reused"] == 0 and found["faults"] == []
    assert all(task["failed"] == 0 and task["baseline_seconds"] > 0 for task in found["tasks"])
    directory = Path(found["directory"])
    entries, damaged = MeasuredLog(directory).read()
    assert len(entries) == found["trials"] and not damaged
    records = read_records(directory / RECORDS)
    kept = [task for task in found["tasks"] if task["tuned"]]
    assert len(records) == len(kept)
    for record in records:  # what was kept was faster in the network, and that was measured
        assert record.in_network is not None and record.setting.threads == 1
        assert record.in_network.seconds < record.in_network.baseline_seconds
    rows = table.read_text().splitlines()
    assert len(rows) == 2 + len(found["tasks"]) and rows[-1].startswith("network,")

    again = cli("tune", model, *options, "--trials", 10, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["reused"] == found["trials"]
    assert MeasuredLog(directory).read()[0] == entries

    output = tmp_path / "bundle"
    built = cli("build", model, *options, "-o", output, "--json")
    assert built.returncode == 0, built.stderr
    document = json.loads(built.stdout)
    still = read_records(directory / RECORDS)
    assert document["sources"].get("tuned", 0) == len(still)
    assert document["parity"]["state"] == "passed"


@pytest.mark.slow
def test_what_has_no_template_is_tuned_by_metaschedule(tmp_path: Path, cli) -> None:
    """A grouped convolution: the fallback is slow, the trace found is applied by build."""
    text = """<ir_version: 10, opset_import: ["" : 18]>
    grouped (float[1,8,12,12] x) => (float[1,16,12,12] y) {
        y = Conv<group=2, pads=[1,1,1,1]>(x, w)
    }"""
    network = parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((16, 4, 3, 3)).astype(np.float32)
    network.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(network, tmp_path / "grouped.onnx")
    options = ("--threads", 1, "--logs", tmp_path / "logs")
    table = tmp_path / "table.csv"
    tune = ("tune", tmp_path / "grouped.onnx", "--space", "sketch", "--trials", 6, *options)
    run = cli(*tune, "--csv", table, "--json")
    assert run.returncode == 0, run.stderr
    (found,) = json.loads(run.stdout)["functions"]
    assert found["trials"] > found["failed"] == found["reused"] == 0 and found["fault"] is None
    if found["tuned"]:  # it was also faster inside the network
        assert found["best_seconds"] < found["baseline_seconds"]
    assert len(table.read_text().splitlines()) == 2
    again = cli(*tune, "--budget", "10m", "--json")
    assert again.returncode == 0, again.stderr
    (same,) = json.loads(again.stdout)["functions"]
    assert same["reused"] == same["trials"] == found["trials"]  # no trial is spent twice
    built = cli("build", tmp_path / "grouped.onnx", *options, "-o", tmp_path / "out", "--json")
    assert built.returncode == 0, built.stderr
    document = json.loads(built.stdout)
    found = same
    (other,) = (o for o in document["operators"] if o["kind"] == "other")
    assert (other["source"], other["note"]) == ("tuned" if found["tuned"] else "fallback", "")
    assert document["parity"]["state"] == "passed"


def measurements(logs: Path) -> int:
    """Lines that are on the disk."""
    return sum(path.read_bytes().count(b"\n") for path in logs.glob(f"*/{MEASURED}"))


def ended(command: list[str], logs: Path, number: signal.Signals) -> tuple[int, str]:
    """Runs until three more candidates are measured, then sends the signal: exit code, stderr."""
    before = measurements(logs)
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while measurements(logs) < before + 3:
        assert process.poll() is None
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    process.send_signal(number)
    _, errors = process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive  # builder and runner end with it
    return process.returncode, errors


@pytest.mark.slow
def test_the_same_command_goes_on_and_spends_no_trial_twice(model: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    command = [sys.executable, "-m", "tvm_mobilenet", "tune", str(model), "--json"]
    command += ["--threads", "1", "--logs", str(logs), "--trials", "30"]
    code, errors = ended(command, logs, signal.SIGINT)
    interrupted = measurements(logs)
    assert code == 130 and f"{interrupted} measurements are kept" in errors, errors
    code, _ = ended(command, logs, signal.SIGKILL)
    killed = measurements(logs)
    assert code == -signal.SIGKILL and killed >= interrupted + 3

    last = subprocess.run(command, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    found = json.loads(last.stdout)
    assert found["reused"] == killed and found["trials"] == 30
    entries, damaged = MeasuredLog(Path(found["directory"])).read()
    assert not damaged
    assert len(entries) == len({(entry.operator, entry.fingerprint) for entry in entries}) == 30


@pytest.mark.slow
@pytest.mark.arm
@pytest.mark.needs_tool("qemu-aarch64", "qemu-user")
@pytest.mark.needs_tool("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
@pytest.mark.needs_tool("llvm-mca", "llvm")
def test_what_is_predicted_is_marked_and_yields_to_what_is_measured(tmp_path: Path, cli) -> None:
    """No device: the order of candidates by llvm-mca, proven under QEMU before it is recorded."""
    from tvm_mobilenet import targets
    from tvm_mobilenet.schedules.spec import from_json
    from tvm_mobilenet.tuning.records import applicable, update_records

    model = saved(DEPTHWISE, {"w0": (16, 1, 3, 3), "b0": (16,)}, tmp_path / "deep.onnx")
    logs = tmp_path / "logs"
    run = cli(
        "tune", model, "--static", "--target", "rpi4", "--logs", logs, "--trials", 6, "--json"
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    (task,) = found["tasks"]
    assert (task["kind"], task["trials"], task["failed"]) == ("depthwise", 6, 0)
    directory = Path(found["directory"])
    entries, _ = MeasuredLog(directory).read()
    assert {entry.space for entry in entries} == {"static"}
    assert len({entry.seconds for entry in entries}) > 1
    assert entries[0].setting["device"] == "llvm-mca cortex-a72"
    assert len(read_records(directory / RECORDS)) == task["tuned"] == found["records"]

    best = min(entries[1:], key=lambda entry: entry.seconds or 1.0)
    fields = {name: getattr(best, name) for name in ("operator", "rule", "knobs", "fingerprint")}
    static = Record(
        **fields,
        setting=Setting(**best.setting),
        seconds=1e-6,
        spread=(1e-6, 1e-6),
        baseline_seconds=2e-6,
        in_network=None,
        time="2027-01-01T00:00:00+00:00",
        seed=0,
        space="static",
    )
    update_records(directory, [static])
    spec = from_json(best.operator)
    assert applicable(targets.load("rpi4"), 1, logs)(spec, best.rule).static
    measured = dataclasses.replace(static, space="template", time="2026-01-01T00:00:00+00:00")
    update_records(directory, [measured])
    assert not applicable(targets.load("rpi4"), 1, logs)(spec, best.rule).static
    update_records(directory, [static])
    assert not applicable(targets.load("rpi4"), 1, logs)(spec, best.rule).static


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--rpc-tracker", "127.0.0.1:1"], 2, "--rpc-tracker and --rpc-key go together"),
        (["--static", "--target", "rpi4", "--threads", "2"], 2, "for one thread"),
        (["--static", "--rpc-tracker", "127.0.0.1:1"], 2, "uses no device"),
        (["--static"], 3, "that QEMU can model"),
        (["--budget", "soon"], 2, "not a time"),
        (["--trials", "0"], 2, "at least 1"),
        (["--threads", "4096"], 2, "CPUs"),
        (["--target", "no-such-device"], 3, "unknown target"),
        (["--logs", "/proc/nowhere"], 3, "give another --logs"),
        (["--csv", "nowhere/table.csv"], 3, "there is no directory nowhere"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments, code, message, model, capsys) -> None:
    assert main(["tune", str(model), *arguments]) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error


def test_an_interrupt_inside_tvm_is_an_interrupt() -> None:
    """TVM's C++ gives a RuntimeError without a message for it; other errors stay what they are."""
    with pytest.raises(KeyboardInterrupt), interrupts_kept():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("") from None
    with pytest.raises(RuntimeError, match="other"), interrupts_kept():
        raise RuntimeError("other")


def test_durations() -> None:
    assert [duration(text) for text in ("90", "90s", "1.5m", "1h")] == [90, 90, 90, 3600]
