from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from tvm_mobilenet.errors import InputError, MissingToolError, UsageError
from tvm_mobilenet.profiling import plot
from tvm_mobilenet.profiling.bench import BenchReport, Cell, Measurement
from tvm_mobilenet.profiling.machine import Disturbance
from tvm_mobilenet.profiling.statistics import Ratio, Spread


def _measurement(name: str, ms: float) -> Measurement:
    return Measurement(
        contestant=name,
        version="1.0",
        settings="float32",
        runs=64,
        ms=Spread(ms, ms * 0.9, ms * 1.2),
        round_medians_ms=(ms,) * 16,
        speed_up=Ratio(1.0, 0.9, 1.1),
        gflops=100.0,
        share_of_peak=0.5,
        error=1e-6,
        load_seconds=0.1,
        memory_mib=90.0,
        peak_memory_mib=100.0,
        session_memory_mib=50.0,
        model_mib=16.0,
        preempted=0,
    )


def _cell(mult_adds: int, threads: int, names: tuple[str, ...]) -> Cell:
    return Cell(
        model=f"model of {mult_adds}",
        alpha=1.0,
        resolution=224,
        batch=1,
        threads=threads,
        cpus=tuple(range(threads)),
        mult_adds=mult_adds,
        peak_gflops=200.0 * threads,
        best_peer="onnxruntime",
        measurements=tuple(_measurement(name, mult_adds / 5e7 / threads) for name in names),
        left_out=(),
        order=(),
        disturbance=Disturbance(0.1, 0.0, 0.0),
        notes=(),
    )


@pytest.fixture
def report() -> BenchReport:
    everyone, few = ("tvm-mobilenet", "onnxruntime", "ncnn"), ("tvm-mobilenet",)
    cells = [
        _cell(size, threads, everyone if size < 5e8 else few)
        for size in (569_000_000, 41_000_000, 149_000_000)
        for threads in (1, 2)
    ]
    return BenchReport("A Processor", 50, tuple(cells), ())


def test_svg_has_a_panel_for_each_number_of_threads_and_a_line_for_each_contestant(
    report: BenchReport, tmp_path: Path
) -> None:
    text = plot.draw(report, tmp_path / "picture.svg").read_text()

    for label in ("1 thread, batch 1", "2 threads, batch 1", "A Processor"):
        assert text.count(label) == 1
    for label in ("tvm-mobilenet", "onnxruntime", "ncnn", "FMA peak"):
        assert text.count(f">{label}</text>") == 2  # one legend a panel
    assert "Mult-Adds per image (millions)" in text


def test_png_is_a_picture(report: BenchReport, tmp_path: Path) -> None:
    with Image.open(plot.draw(report, tmp_path / "picture.png")) as picture:
        assert picture.width > picture.height > 500
        colours = picture.convert("RGB").getcolors(2**20)
        assert colours is not None
        assert len(colours) > 10


def test_a_picture_that_cannot_be_drawn_is_refused_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"must end in \.png or \.svg"):
        plot.check(tmp_path / "picture.gif")
    with pytest.raises(InputError, match="there is no directory"):
        plot.check(tmp_path / "none" / "picture.svg")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match="pip install matplotlib"):
        plot.check(tmp_path / "picture.svg")
