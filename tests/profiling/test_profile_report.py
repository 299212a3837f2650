"""The report on the paper's networks, from made-up measurements."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tvm_mobilenet import api
from tvm_mobilenet.cli import main
from tvm_mobilenet.errors import NothingMeasuredError
from tvm_mobilenet.profiling import html
from tvm_mobilenet.profiling import report as report_module
from tvm_mobilenet.profiling.bench import BenchReport, Cell, Measurement
from tvm_mobilenet.profiling.contest import LeftOut
from tvm_mobilenet.profiling.machine import Disturbance
from tvm_mobilenet.profiling.report import Block, Report, pareto_front, report, summarise
from tvm_mobilenet.profiling.statistics import Spread


def _cell(model: str, ms: float | None, alpha: float = 1.0, resolution: int = 224) -> Cell:
    measurements = ()
    if ms is not None:
        measurements = (
            Measurement(
                *("tvm-mobilenet", "0.1", "float32", 48, Spread(ms, ms - 0.1, ms + 0.1), (ms,)),
                *(None, 100.0, 0.8, 1e-6, 0.1, 65.0, 70.0, 30.0, 16.0, 0),
            ),
        )
    left = () if ms is not None else (LeftOut("tvm-mobilenet", "failed", "no luck"),)
    return Cell(
        model=f"{model} {alpha}/{resolution}",
        alpha=alpha,
        resolution=resolution,
        batch=1,
        threads=1,
        cpus=(0,),
        mult_adds=int(500e6 * alpha),
        peak_gflops=120.0,
        best_peer=None,
        measurements=measurements,
        left_out=left,
        order=(),
        disturbance=Disturbance(0.0, None, None),
        notes=("busy",),
    )


class _Cost:
    parameters = 4_000_000


@pytest.fixture(autouse=True)
def _cost_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "cost", lambda model, **size: _Cost())


@pytest.fixture
def made_up() -> Report:
    cells = [
        _cell("mobilenet_v1", 10.0),
        _cell("mobilenet_v1_shallow", 12.0),  # slower and less accurate: off the front
        _cell("mobilenet_v1", 2.0, 0.25, 128),  # the paper does not give its accuracy
        _cell("mobilenet_v2", 9.0),
        _cell("mobilenet_v3_large", None),
    ]
    blocks = (Block("block 1", 900, 100, 45.0, 9.0), Block("block 2", 900, 100, 45.0, 6.0))
    return summarise(cells, blocks, target="native", threads=1, runs=50)


def test_rows_have_the_derived_figures(made_up: Report) -> None:
    rows = {row["network"]: row for row in made_up.rows()}
    assert next(iter(rows)) == "mobilenet_v1 0.25/128", "fewest Mult-Adds first"
    v1 = rows["mobilenet_v1 1/224"]
    assert v1["us_per_million_mult_adds"] == pytest.approx(20.0)
    assert v1["images_per_s"] == pytest.approx(100.0)
    assert (v1["accuracy"], v1["library_mib"], v1["memory_mib"]) == (70.6, 16.0, 30.0)
    assert made_up.notes == ("busy", "mobilenet_v3_large 1.0/224: no luck")


def test_the_front_is_of_known_accuracy(made_up: Report) -> None:
    front = {row["network"] for row in made_up.rows() if row["on_front"]}
    assert front == {"mobilenet_v2 1/224"}


def test_pareto_front() -> None:
    points = [(1.0, 50.0), (2.0, 60.0), (3.0, 55.0), (2.5, 60.0), (4.0, 70.0)]
    assert pareto_front(points) == {(1.0, 50.0), (2.0, 60.0), (4.0, 70.0)}


def test_separable_convolutions_are_counted_whole(made_up: Report) -> None:
    assert made_up.blocks[0].row()["less_time"] == 5.0
    assert made_up.separable() == pytest.approx(
        {"fewer_mult_adds": 9.0, "less_time": 6.0, "kept": 2 / 3}
    )


def test_nothing_timed_is_an_error() -> None:
    with pytest.raises(NothingMeasuredError):
        summarise([_cell("mobilenet_v1", None)], target="native", threads=1, runs=1)


@pytest.mark.parametrize(("quick", "networks"), [(True, 4), (False, 16 + 5)])
def test_what_is_measured(monkeypatch: pytest.MonkeyPatch, quick: bool, networks: int) -> None:
    asked: list[tuple[str, float, int]] = []

    def bench(models: list[str], **options: Any) -> Any:
        from tvm_mobilenet.profiling.subject import subjects

        size = {"alpha": options.get("alpha", 1.0), "resolution": options.get("resolution", 224)}
        grid = options.get("grid", False)
        found = subjects(models, classes=1000, weights=None, batches=(1,), grid=grid, **size)
        asked.extend((str(s.model), s.alpha, s.resolution) for s in found)

        cells = [_cell(str(s.model), 1.0, s.alpha, s.resolution) for s in found]
        return BenchReport("A Processor", 50, tuple(cells), ())

    monkeypatch.setattr("tvm_mobilenet.profiling.bench.bench", bench)
    monkeypatch.setattr(report_module, "_blocks", lambda *arguments: [])
    found = report(quick=quick)
    assert len(asked) == len(set(asked)) == len(found.networks) == networks
    assert found.separable() is None


def test_the_command_prints_tables_or_json(
    made_up: Report, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report_module, "report", lambda **options: made_up)
    assert main(["report"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["mobilenet_v1", "0.25/128"]
    assert lines[6].split()[:3] == ["BLOCK", "CONV", "us"]
    assert lines[7].split() == ["block", "1", "45.0", "9.0", "9.0", "5.0", "56%"]
    assert "9.0 times fewer Mult-Adds and take 6.0 times less time: 67% is kept" in lines[10]
    assert main(["report", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["networks"]) == 4 and document["separable"]["kept"] == pytest.approx(2 / 3)


def test_the_page_is_filled(made_up: Report, tmp_path: Any) -> None:
    html.write_report(made_up, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "{{" not in text.replace("{{}}", "") and "mobilenet_v1 0.25/128" in text
