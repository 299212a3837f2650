from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from tvm_mobilenet import deploy
from tvm_mobilenet.errors import InputError, NothingMeasuredError, ParityError, UsageError
from tvm_mobilenet.profiling import bench as bench_module
from tvm_mobilenet.profiling import contest
from tvm_mobilenet.profiling.bench import BenchReport, Cell, bench
from tvm_mobilenet.profiling.contestants import OURS, PEAK, contestant
from tvm_mobilenet.profiling.subject import Prepared, prepare, subjects


@pytest.fixture(scope="module")
def report(model_path: Path, tiny: Prepared) -> BenchReport:
    """ONNX Runtime and our bundle on the small network, batch 3."""
    return bench([model_path], ["onnxruntime"], batches=[3], runs=20)


@pytest.fixture
def cell(report: BenchReport) -> Cell:
    [only] = report.cells
    return only


def test_everyone_is_measured_with_enough_runs(cell: Cell) -> None:
    assert {m.contestant for m in cell.measurements} == {OURS, "onnxruntime"}
    assert cell.left_out == ()
    for measurement in cell.measurements:
        assert measurement.runs >= 20
        assert measurement.runs % contest.ROUNDS == 0
        assert len(measurement.round_medians_ms) == contest.ROUNDS
        assert 0 < measurement.ms.p10 <= measurement.ms.median <= measurement.ms.p90
        assert measurement.error < contest.TOLERANCE


def test_every_round_has_everyone_once_in_changing_order(cell: Cell) -> None:
    assert len(cell.order) == contest.ROUNDS
    assert {frozenset(turn) for turn in cell.order} == {frozenset({OURS, "onnxruntime", PEAK})}
    assert all(len(turn) == 3 for turn in cell.order)
    assert len(set(cell.order)) > 1


def test_figures_follow_from_the_medians(report: BenchReport, cell: Cell) -> None:
    ours, peer = cell.of(OURS), cell.of("onnxruntime")
    assert ours is not None
    assert ours.speed_up is not None
    assert peer is not None
    assert peer.speed_up is not None
    assert cell.best_peer == "onnxruntime"
    assert peer.speed_up.value == 1.0
    assert ours.speed_up.value == pytest.approx(peer.ms.median / ours.ms.median)
    assert ours.speed_up.low <= ours.speed_up.value <= ours.speed_up.high
    # stem 27 x 16, depthwise 9 x 16, pointwise 16 x 32 on 16 x 16 pixels, head 32 x 10; 3 images
    assert cell.mult_adds == 3 * (256 * (27 * 16 + 9 * 16 + 16 * 32) + 320)
    assert ours.gflops == pytest.approx(2 * cell.mult_adds / ours.ms.median / 1e6)
    assert cell.peak_gflops is not None
    assert ours.share_of_peak == pytest.approx(ours.gflops / cell.peak_gflops)
    [summary] = report.summaries
    assert (summary.threads, summary.batch, summary.cells) == (1, 3, 1)
    assert summary.geometric_mean == pytest.approx(ours.speed_up.value)
    assert (summary.worst, summary.worst_model) == (ours.speed_up.value, "small.onnx")


def test_memory_and_sizes_are_reported(cell: Cell, model_path: Path) -> None:
    for measurement in cell.measurements:
        assert measurement.peak_memory_mib is not None
        assert measurement.session_memory_mib is not None
        assert 0 < measurement.session_memory_mib < measurement.peak_memory_mib
        assert measurement.version
    peer, ours = cell.of("onnxruntime"), cell.of(OURS)
    assert peer is not None
    assert ours is not None
    assert peer.model_mib == pytest.approx(model_path.stat().st_size / 2**20, rel=0.2)
    assert ours.model_mib > peer.model_mib / 10


def test_who_computes_something_else_is_not_timed(
    tiny: Prepared, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime gets the model with one weight of the head off by a hundredth."""

    def perturbed(*args: Any, **kwargs: Any) -> Prepared:
        prepared = prepare(*args, **kwargs)
        model = onnx.load(prepared.source.onnx)
        [head] = [t for t in model.graph.initializer if t.name == "head_w"]
        values = numpy_helper.to_array(head).copy()
        values[0, 0] += 0.01
        head.CopyFrom(numpy_helper.from_array(values, "head_w"))
        onnx.save(model, prepared.source.onnx)
        return prepared

    monkeypatch.setattr(bench_module, "prepare", perturbed)

    with pytest.raises(NothingMeasuredError, match="onnxruntime: its outputs differ") as caught:
        bench([model_path], ["onnxruntime"], ours=False, runs=1)
    assert caught.value.exit_code == 6


def test_a_missing_peer_is_named_and_the_rest_go_on(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contestant("openvino"), "needs", ("not_installed",))

    report = bench([model_path], ["openvino", "onnxruntime"], ours=False, runs=1)

    [cell] = report.cells
    assert [m.contestant for m in cell.measurements] == ["onnxruntime"]
    [left] = cell.left_out
    assert (left.contestant, left.kind) == ("openvino", "missing")
    assert left.reason == "not_installed not installed"
    assert left.install == "pip install openvino"


def test_our_own_failure_is_recorded_with_its_exit_code(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ParityError("scores: max abs error 1.0")

    monkeypatch.setattr(deploy, "build", broken)

    report = bench([model_path], ["onnxruntime"], runs=1)

    [cell] = report.cells
    assert cell.of(OURS) is None
    assert cell.of("onnxruntime") is not None
    [left] = cell.left_out
    assert (left.contestant, left.exit_code) == (OURS, 5)
    assert report.summaries == ()


def test_the_grid_is_the_papers() -> None:
    options: dict[str, Any] = {"classes": 1000, "weights": None, "batches": [1, 8]}

    cells = subjects(["mobilenet_v1"], alpha=1.0, resolution=224, grid=True, **options)

    assert len(cells) == len(set(cells)) == 32
    assert {(s.alpha, s.resolution) for s in cells} == {
        (a, r) for a in (1.0, 0.75, 0.5, 0.25) for r in (224, 192, 160, 128)
    }
    assert cells[-1].label == "mobilenet_v1 0.25/128"
    with pytest.raises(UsageError, match="leave out --alpha"):
        subjects(["mobilenet_v1"], alpha=0.5, resolution=224, grid=True, **options)
    with pytest.raises(UsageError, match=r"--grid needs built-in models, and m\.onnx is none"):
        subjects(["m.onnx"], alpha=1.0, resolution=224, grid=True, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": ["onnxruntim"]}, "did you mean onnxruntime"),
        ({"threads": [4096]}, "--threads 4096"),
        ({"runs": 0}, "at least 1"),
        ({"against": [], "ours": False}, "nobody to time"),
        ({"bundle": Path("out"), "batches": [1, 8]}, "one model at one size"),
        ({"bundle": Path("out"), "ours": False}, "leave one of both out"),
    ],
)
def test_contradictions_are_refused_before_anything_is_done(
    options: dict[str, Any], message: str, model_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        bench([model_path], **options)


def test_a_model_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.onnx"):
        bench([tmp_path / "none.onnx"], ["onnxruntime"], ours=False)


def test_a_target_or_bundle_that_cannot_be_used_is_refused_first(
    model_path: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    with pytest.raises(InputError, match="x86-64-v9"):
        bench([model_path], ["onnxruntime"], target="x86-64-v9", progress=said.append)
    with pytest.raises(InputError, match="no such directory of tuning records"):
        bench([model_path], ["onnxruntime"], logs=tmp_path / "none", progress=said.append)
    with pytest.raises(InputError, match=str(tmp_path)):
        bench([model_path], ["onnxruntime"], bundle=tmp_path, progress=said.append)
    bundle = deploy.build(model_path, output=tmp_path / "bundle").path
    with pytest.raises(InputError, match=r"built for inputs \[\(1, 3, 32, 32\)\], .* batch 2"):
        bench([model_path], ["onnxruntime"], batches=[2], bundle=bundle, progress=said.append)
    (bundle / "samples.npz").write_bytes(b"changed")
    with pytest.raises(InputError, match=r"samples\.npz"):
        bench([model_path], ["onnxruntime"], bundle=bundle, progress=said.append)
    assert said == []


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="hardware: a single CPU")
def test_ours_is_built_for_each_number_of_threads(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def build(model: Path, **options: Any) -> None:
        asked.append((options["threads"], options["logs"]))
        raise InputError("not today")

    monkeypatch.setattr(deploy, "build", build)
    report = bench([model_path], ["onnxruntime"], threads=[1, 2], logs=tmp_path, runs=1)
    assert asked == [(1, tmp_path), (2, tmp_path)]
    assert [cell.of(OURS) for cell in report.cells] == [None, None]
