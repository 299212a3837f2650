from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tvm_mobilenet.cli import main
from tvm_mobilenet.errors import InputError, NothingMeasuredError
from tvm_mobilenet.profiling import bench as bench_module
from tvm_mobilenet.profiling.bench import BenchReport, Cell, Measurement, Summary
from tvm_mobilenet.profiling.contest import LeftOut
from tvm_mobilenet.profiling.machine import Disturbance
from tvm_mobilenet.profiling.statistics import Ratio, Spread


def _measurement(name: str, ms: float, ratio: float) -> Measurement:
    return Measurement(
        contestant=name,
        version="1.31",
        settings="float32",
        runs=64,
        ms=Spread(ms, ms - 1, ms + 1),
        round_medians_ms=(ms,) * 16,
        speed_up=Ratio(ratio, ratio - 0.01, ratio + 0.01),
        gflops=113.8,
        share_of_peak=0.948,
        error=1e-6,
        load_seconds=0.1,
        memory_mib=60.0,
        peak_memory_mib=70.0,
        session_memory_mib=30.0,
        model_mib=16.2,
        preempted=0,
    )


def _report(*left: LeftOut) -> BenchReport:
    cell = Cell(
        model="mobilenet_v1 1/224",
        alpha=1.0,
        resolution=224,
        batch=1,
        threads=2,
        cpus=(0, 1),
        mult_adds=568_740_352,
        peak_gflops=120.0,
        best_peer="onnxruntime",
        measurements=(
            _measurement("tvm-mobilenet", 10.0, 1.1),
            _measurement("onnxruntime", 11.0, 1.0),
        ),
        left_out=left,
        order=(("onnxruntime", "tvm-mobilenet"),) * 16,
        disturbance=Disturbance(3.0, 0.5, None),
        notes=("other processes used 50% of the pinned CPUs",),
    )
    summary = Summary(2, 1, 1, 1.1, 1.1, "mobilenet_v1 1/224")
    return BenchReport("A Processor", 50, (cell,), (summary,))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asks `bench` for; it answers with asked["report"]."""
    seen: dict[str, Any] = {"report": _report()}

    def answer(*arguments: Any, **options: Any) -> BenchReport:
        seen["arguments"], seen["options"] = arguments, options
        if isinstance(seen["report"], BaseException):
            options["on_cell"](_report().cells[0])
            raise seen["report"]
        report: BenchReport = seen["report"]
        return report

    monkeypatch.setattr(bench_module, "bench", answer)
    return seen


def test_the_table_has_a_line_for_each_contestant(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    missing = LeftOut("ncnn", "missing", "ncnn not installed", "pip install ncnn pnnx")
    asked["report"] = _report(missing)

    assert main(["bench", "mobilenet_v1"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["MODEL", "THREADS", "BATCH", "CONTESTANT"]
    assert lines[1].split() == [
        "mobilenet_v1",
        "1/224",
        "2",
        "1",
        "tvm-mobilenet",
        "10.000",
        "9.000",
        "11.000",
        "1.100",
        "1.090-1.110",
        "113.8",
        "94.8%",
        "30.0",
        "16.2",
    ]
    assert "onnxruntime" in lines[2]
    where = "mobilenet_v1 1/224, batch 1, 2 threads"
    assert lines[3] == (
        f"not timed: {where}: ncnn: ncnn not installed; to install: pip install ncnn pnnx"
    )
    assert lines[4] == f"note: {where}: other processes used 50% of the pinned CPUs"
    assert lines[5] == (
        "speed-up over the best peer, 2 threads, batch 1: geometric mean 1.100 over 1 cell, "
        "least 1.100 (mobilenet_v1 1/224)"
    )


def test_json_is_one_document_with_everything(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "mobilenet_v1", "--json"]) == 0

    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert document["kind"] == "bench"
    assert document["cpu"] == "A Processor"
    [cell] = document["cells"]
    assert set(cell) == set(Cell.__dataclass_fields__)
    assert cell["order"][0] == ["onnxruntime", "tvm-mobilenet"]
    assert cell["measurements"][0]["ms"] == {"median": 10.0, "p10": 9.0, "p90": 11.0}
    assert cell["measurements"][0]["speed_up"]["value"] == 1.1
    assert document["summaries"][0]["geometric_mean"] == 1.1


def test_options_reach_the_bench(asked: dict[str, Any], tmp_path: Path) -> None:
    line = "bench mobilenet_v1 mobilenet_v2 --against onnxruntime,torch-compile --threads 1,2"
    line += " --batch 1,8 --alpha 0.5 --resolution 160 --runs 80 --target x86-64-v3 --peers-only"

    assert main(line.split()) == 0

    models, against, threads, batches = asked["arguments"]
    assert models == ["mobilenet_v1", "mobilenet_v2"]
    assert against == ("onnxruntime", "torch-compile")
    assert threads == (1, 2)
    assert batches == (1, 8)
    wanted = {"alpha": 0.5, "resolution": 160, "runs": 80, "target": "x86-64-v3", "ours": False}
    assert wanted.items() <= asked["options"].items()


def test_our_failure_decides_the_exit_code(asked: dict[str, Any]) -> None:
    asked["report"] = _report(LeftOut("tvm-mobilenet", "failed", "parity", exit_code=5))
    assert main(["bench", "mobilenet_v1"]) == 5


def test_nothing_measured_is_exit_6(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    asked["report"] = NothingMeasuredError("nothing was measured; ncnn: it is missing")

    assert main(["bench", "mobilenet_v1"]) == 6

    assert "error: nothing was measured; ncnn" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("end", "code"), [(KeyboardInterrupt(), 130), (InputError("second.onnx: no such file"), 3)]
)
def test_what_was_measured_is_printed_whatever_ends_the_run(
    end: BaseException, code: int, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    asked["report"] = end

    assert main(["bench", "mobilenet_v1", "second.onnx"]) == code

    assert "tvm-mobilenet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "1,zero"], "--threads"),
        (["--batch", "0"], "--batch"),
        (["--runs", "-1"], "--runs"),
        (["--against", "onnxruntime,tensorflow"], "no peer is called 'tensorflow'"),
        (["--grid", "--alpha", "0.5"], "--grid runs all 16 sizes"),
        (["--plot", "picture.gif"], "must end in .png or .svg"),
        (["--bundle", "out", "--batch", "1,8"], "--bundle is one model at one size"),
    ],
)
def test_wrong_usage_is_exit_2_and_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "mobilenet_v1", *options]) == 2

    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_picture_is_written_where_asked(asked: dict[str, Any], tmp_path: Path) -> None:
    assert main(["bench", "mobilenet_v1", "--plot", str(tmp_path / "picture.svg")]) == 0

    assert "onnxruntime" in (tmp_path / "picture.svg").read_text()
