"""The report on the paper's networks, from made-up measurements."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvm_mobilenet import api
from tvm_mobilenet.cli import main
from tvm_mobilenet.errors import InputError, NothingMeasuredError
from tvm_mobilenet.profiling import html, machine
from tvm_mobilenet.profiling import report as report_module
from tvm_mobilenet.profiling.bench import Cell, Measurement
from tvm_mobilenet.profiling.compare import Timed
from tvm_mobilenet.profiling.contest import LeftOut
from tvm_mobilenet.profiling.machine import Disturbance
from tvm_mobilenet.profiling.report import Network, Report, network_of, pareto_front, report, sizes
from tvm_mobilenet.profiling.separable import Block, by_block, pair_blocks
from tvm_mobilenet.profiling.statistics import Spread

BLOCKS = (Block("block 1", 900, 100, 45.0, 9.0), Block("block 2", 900, 100, 45.0, 6.0))


def _network(model: str, ms: float, alpha: float = 1.0, resolution: int = 224) -> Network:
    times = (ms, ms - 0.1, ms + 0.1)
    work = (int(500e6 * alpha), 4_000_000)
    return Network(model, alpha, resolution, *work, *times, 0.8, 16.0, None, ("busy",))


@pytest.fixture
def made_up() -> Report:
    networks = (
        _network("mobilenet_v1", 10.0),
        _network("mobilenet_v1_shallow", 12.0),  # slower and less accurate: off the front
        _network("mobilenet_v1", 2.0, 0.25, 128),  # the paper does not give its accuracy
        _network("mobilenet_v2", 9.0),
    )
    return Report("A Processor", "native", 1, 50, networks, BLOCKS, ("v3: no luck",))


def test_rows_have_the_derived_figures(made_up: Report) -> None:
    rows = {row["network"]: row for row in made_up.rows()}
    assert next(iter(rows)) == "mobilenet_v1 0.25/128", "fewest Mult-Adds first"
    v1 = rows["mobilenet_v1 1/224"]
    assert v1["us_per_million_mult_adds"] == pytest.approx(20.0)
    assert v1["images_per_s"] == pytest.approx(100.0)
    assert (v1["accuracy"], v1["library_mib"], v1["memory_mib"]) == (70.6, 16.0, None)
    assert made_up.notes == (
        "v3: no luck",
        "4 of 4 networks were disturbed while they were timed, such as mobilenet_v1 1/224: busy",
    )
    one = dataclasses.replace(made_up, networks=made_up.networks[1:2], blocks_note="crowded")
    assert one.notes[1:] == ("mobilenet_v1_shallow 1/224: busy", "crowded")


def test_the_front_is_of_known_accuracy(made_up: Report) -> None:
    front = {row["network"] for row in made_up.rows() if row["on_front"]}
    assert front == {"mobilenet_v2 1/224"}


def test_pareto_front() -> None:
    points = [(1.0, 50.0), (2.0, 60.0), (3.0, 55.0), (2.5, 60.0), (4.0, 70.0)]
    assert pareto_front(points) == {(1.0, 50.0), (2.0, 60.0), (4.0, 70.0)}


def test_separable_convolutions_are_counted_whole(made_up: Report) -> None:
    assert made_up.blocks[0].row()["less_time"] == 5.0
    rates = {"conv_gflops": 0.04, "separable_gflops": 0.4 / 15}
    assert made_up.separable() == pytest.approx(
        {"fewer_mult_adds": 9.0, "less_time": 6.0, "kept": 2 / 3} | rates
    )


def test_the_two_networks_are_held_against_onnxruntime(
    made_up: Report, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made_up.whole_networks() is None, "there is no full-convolution network"
    conv = dataclasses.replace(_network("mobilenet_v1_conv", 40.0), onnxruntime_ms=50.0)
    v1, *others = made_up.networks
    both = dataclasses.replace(made_up, networks=(v1, conv, *others))
    without = both.whole_networks()
    assert without is not None and without["less_time"] == 4.0
    assert without["onnxruntime_less_time"] is None
    v1 = dataclasses.replace(v1, onnxruntime_ms=12.5)
    both = dataclasses.replace(both, networks=(v1, conv, *others))
    found = both.whole_networks()
    assert found is not None and found["onnxruntime_less_time"] == 4.0
    assert (found["conv_times_onnxruntime"], found["separable_times_onnxruntime"]) == (1.25, 1.25)
    monkeypatch.setattr(report_module, "report", lambda **options: both)
    assert main(["report"]) == 0
    assert (
        "40.00 ms against 10.00 ms: 4.0 times less time; in ONNX Runtime 50.00 against 12.50 ms"
    ) in capsys.readouterr().out


def test_blocks_are_found_by_name_and_their_parts_joined() -> None:
    def side(*operators: tuple[str, int, float]) -> dict[str, tuple[int, float]]:
        described = [{"name": name, "mult_adds": work} for name, work, _ in operators]
        times = [np.full((2, 3), 1000 * us) for *_, us in operators]
        return by_block(described, Timed("", described, times, times[0]))

    conv = side(("stem.0/Conv", 5, 1.0), ("blocks.0.0/Conv", 90, 45.0), ("blocks.1.0/Conv", 1, 1.0))
    split = side(("blocks.0.depthwise.0/Conv", 4, 2.0), ("blocks.0.pointwise.0/Conv", 6, 7.0))
    assert pair_blocks(conv, split) == [Block("block 1", 90, 10, 45.0, 9.0)]


def test_a_bench_cell_becomes_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass
    class Cost:
        parameters: int = 4_000_000

    monkeypatch.setattr(api, "cost", lambda model, **size: Cost())
    ours = Measurement(
        *("tvm-mobilenet", "0.1", "float32", 48, Spread(10.0, 9.9, 10.1), (10.0,)),
        *(None, 100.0, 0.8, 1e-6, 0.1, 65.0, 70.0, 30.0, 16.0, 0),
    )
    about = ("mobilenet_v1 1.0/224", 1.0, 224, 1, 1, (0,), 500_000_000, 120.0, None)
    theirs = dataclasses.replace(ours, contestant="onnxruntime", ms=Spread(12.0, 11.0, 13.0))
    cell = Cell(*about, (ours, theirs), (), (), Disturbance(0.0, None, None), ("busy",))
    expected = dataclasses.replace(
        _network("mobilenet_v1", 10.0), memory_mib=30.0, onnxruntime_ms=12.0
    )
    assert network_of("mobilenet_v1", cell) == expected
    absent = (LeftOut("onnxruntime", "missing", "onnxruntime not installed"),)
    cell = dataclasses.replace(cell, measurements=(ours,), left_out=absent)
    assert network_of("mobilenet_v1", cell) == dataclasses.replace(
        expected,
        onnxruntime_ms=None,
        notes=("busy", "onnxruntime was not timed: onnxruntime not installed"),
    )


class _Bench:
    """Stands for building and timing: counts what is asked for, fails where it is told to."""

    def __init__(self, *failing: str) -> None:
        self.asked: list[tuple[str, float, int]] = []
        self.failing = failing
        self.blocks = 0

    def network(self, model: str, alpha: float, resolution: int, **options: Any) -> Network:
        self.asked.append((model, alpha, resolution))
        if model in self.failing:
            raise NothingMeasuredError("no luck")
        return _network(model, 1.0 + len(self.asked), alpha, resolution)

    def compare(self, **options: Any) -> Sequence[Block]:
        self.blocks += 1
        return BLOCKS


def _measuring(monkeypatch: pytest.MonkeyPatch, bench: _Bench) -> _Bench:
    monkeypatch.setattr(report_module, "measure_network", bench.network)
    monkeypatch.setattr(report_module, "measure_blocks", bench.compare)
    return bench


@pytest.mark.parametrize(("quick", "networks"), [(True, 4), (False, 16 + 5)])
def test_what_is_measured(monkeypatch: pytest.MonkeyPatch, quick: bool, networks: int) -> None:
    bench = _measuring(monkeypatch, _Bench())
    said: list[str] = []
    found = report(quick=quick, progress=said.append)
    assert bench.asked == sizes(quick)
    assert len(set(bench.asked)) == len(found.networks) == networks
    assert found.blocks == BLOCKS and bench.blocks == 1
    assert said[0].startswith(f"1 of {networks}, mobilenet_v1 1/224") and "min to go" in said[2]


def test_an_interrupted_report_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    bench = _measuring(monkeypatch, _Bench())

    def interrupted(*size: Any, **options: Any) -> Network:
        if len(bench.asked) == 2:
            raise KeyboardInterrupt
        return bench.network(*size, **options)

    monkeypatch.setattr(report_module, "measure_network", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report(quick=True, keep=kept)
    assert len(json.loads(kept.read_text())["networks"]) == 2

    _measuring(monkeypatch, bench)
    monkeypatch.setattr(machine.Watch, "crowding", lambda watch, threads: 1.5)
    found = report(quick=True, keep=kept)
    assert bench.asked == sizes(quick=True), "nothing twice"
    assert report(quick=True, keep=kept) == found and len(bench.asked) == 4 and bench.blocks == 1
    assert found.networks[0].notes == ("busy",) and found.notes[-1] == report_module.BUSY
    assert list(tmp_path.iterdir()) == [kept]


def test_what_fails_is_left_out_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.json"
    _measuring(monkeypatch, _Bench("mobilenet_v1_shallow"))
    found = report(quick=True, keep=kept)
    assert len(found.networks) == 3
    assert found.notes[0] == "mobilenet_v1_shallow 1/224: no luck"

    bench = _measuring(monkeypatch, _Bench())
    assert len(report(quick=True, keep=kept).networks) == 4
    assert bench.asked == [("mobilenet_v1_shallow", 1.0, 224)]


def test_the_first_failure_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = _measuring(monkeypatch, _Bench("mobilenet_v1"))
    with pytest.raises(NothingMeasuredError, match="no luck"):
        report()
    assert len(bench.asked) == 1


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 1, "kind": "profile"}', "[1]"])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    other = tmp_path / "other.json"
    other.write_text(text)
    with pytest.raises(InputError, match=r"other\.json: is no report"):
        report(keep=other)
    assert other.read_text() == text


def test_measurements_of_another_kind_are_not_mixed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.json"
    _measuring(monkeypatch, _Bench())
    report(quick=True, keep=kept)
    with pytest.raises(InputError, match="was measured with threads 1, not 2"):
        report(quick=True, keep=kept, threads=2)
    monkeypatch.setattr(machine, "cpu_name", lambda: "Another")
    with pytest.raises(InputError, match=r"was measured with cpu .*, not Another"):
        report(quick=True, keep=kept)


def test_the_command_prints_tables_or_json(
    made_up: Report, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report_module, "report", lambda **options: made_up)
    assert main(["report"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["mobilenet_v1", "0.25/128"]
    assert lines[6].split()[:3] == ["BLOCK", "CONV", "us"]
    assert lines[7].split() == ["block", "1", "45.0", "9.0", "9.0", "5.0", "56%", "0.0", "0.0"]
    assert "9.0 times fewer Mult-Adds and take 6.0 times less time: 67% is kept" in lines[10]
    assert main(["report", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["networks"]) == 4 and document["separable"]["kept"] == pytest.approx(2 / 3)


def test_the_page_is_filled(made_up: Report, tmp_path: Any) -> None:
    html.write_report(made_up, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "{{" not in text.replace("{{}}", "") and "mobilenet_v1 0.25/128" in text
