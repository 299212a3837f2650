"""From raw samples to shares, roofs, rows and files; the numbers here are made up."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvm_mobilenet as tm
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.profiling import exports
from tvm_mobilenet.profiling.layers import layer_kinds
from tvm_mobilenet.profiling.limits import LevelLimit, Limits
from tvm_mobilenet.profiling.operators import OperatorSamples, Samples
from tvm_mobilenet.profiling.profile import Profile, summarise
from tvm_mobilenet.profiling.roofline import roof
from tvm_mobilenet.schedules.spec import ScaleSpec

LIMITS = Limits(
    cpu="A Processor",
    vector_bits=512,
    threads=1,
    gflops=100.0,
    levels=(
        LevelLimit("L1", 32, 200.0),
        LevelLimit("L2", 1024, 100.0),
        LevelLimit("memory", 0, 10.0),
    ),
    measured_on="2026-01-01",
    quiet=True,
)
KIB = 1024


def _operator(index: int, symbol: str, kind: str, us: list[float], **more: Any) -> OperatorSamples:
    description = {
        "symbol": symbol,
        "kind": kind,
        "shape": "1x8x8x8",
        "onnx_nodes": [f"{symbol}/Conv{index}", f"{symbol}/Relu{index}"],
        "source": "analytic",
        "schedule": kind,
        "knobs": {"pixels": 4},
        "mult_adds": 1000,
        "bytes": 4000,
        "weight_bytes": 1000,
        "parallel": kind != "pool",
        **more,
    }
    return OperatorSamples(index, description, 9000, np.array(us) * 1000)


@pytest.fixture
def made_up() -> Profile:
    """Four runs; the last was disturbed and shows in the mean alone."""
    operators = (
        _operator(0, "stem_0", "stem", [1.0, 1.0, 1.0, 1.0]),
        _operator(1, "pointwise_0", "pointwise", [4.0, 4.0, 4.0, 400.0]),
        _operator(2, "pointwise_0", "pointwise", [2.0, 2.0, 2.0, 2.0]),
        _operator(3, "pool_0", "pool", [2.0, 2.0, 2.0, 2.0], mult_adds=0, weight_bytes=0),
    )
    entry, leave = np.full(4, 600), np.full(4, 400)
    samples = Samples(
        operators=operators,
        plain=np.array([9500, 9500, 9900, 20000]),
        timed=entry + leave + sum(o.nanoseconds for o in operators),
        entry=entry,
        exit=leave,
        first=40000,
        warm_up=np.array([12000, 10000]),
        threads=2,
        load_seconds=0.5,
    )
    document = {"model": {"name": "small"}, "target": {"name": "native"}, "parity": {}}
    return summarise(samples, document, bundle="b", cpu="A Processor", limits=LIMITS)


def test_operators_and_overhead_add_up_to_the_whole(made_up: Profile) -> None:
    whole = made_up.reconciliation
    assert [o.time for o in made_up.operators] == [1.0, 4.0, 2.0, 2.0]
    assert (whole.operators, whole.overhead, whole.timed) == (9.0, 1.0, 10.0)
    assert whole.plain == 9.5 and whole.difference == 0.5
    assert whole.instruments == pytest.approx(0.5), "the median of 0.5, 0.5, 0.1 and 386"
    assert whole.explained == pytest.approx(0.9)
    assert sum(o.share for o in made_up.operators) == pytest.approx(0.9)


def test_the_disturbed_run_stays_in_mean_and_percentile(made_up: Profile) -> None:
    slow = made_up.operators[1]
    assert (slow.time, slow.mean, slow.p50) == (4.0, 103.0, 4.0)
    assert slow.p90 > 200


def test_phases_are_apart(made_up: Profile) -> None:
    phases = made_up.phases
    assert (phases.load_seconds, phases.first_ms, phases.warm_up_runs) == (0.5, 0.04, 2)
    assert phases.warm_up_ms == 0.011 and phases.p50_ms == pytest.approx(0.0097)


def test_rows_by_layer_are_the_calls_slowest_first(made_up: Profile) -> None:
    rows = made_up.rows()
    assert [row["index"] for row in rows] == [1, 2, 3, 0]
    assert [row["cumulative_share"] for row in rows] == pytest.approx([0.4, 0.6, 0.8, 0.9])
    first = rows[0]
    assert first["name"] == "pointwise_0/Conv1" and first["calls"] == 1 and first["threads"] == 2
    assert first["flops"] == 2000 and first["gflops"] == pytest.approx(0.5)
    assert first["gb_per_s"] == pytest.approx(1.0) and first["intensity"] == pytest.approx(0.5)
    assert rows[2]["threads"] == 1, "the pool has no parallel loop"


def test_rows_by_op_join_the_calls_of_a_function(made_up: Profile) -> None:
    rows = {row["name"]: row for row in made_up.rows("op")}
    joined = rows["pointwise_0"]
    assert (joined["calls"], joined["time_us"], joined["first_us"]) == (2, 6.0, 18.0)
    assert len(joined["onnx_nodes"]) == 4
    assert joined["p50_us"] == 6.0, "the median of the sum of both"


def test_rows_by_kind_cover_everything(made_up: Profile) -> None:
    rows = made_up.rows("kind")
    assert [row["name"] for row in rows] == ["pointwise", "pool", "stem"]
    assert sum(row["share"] for row in rows) == pytest.approx(0.9)
    with pytest.raises(InputError, match="layer, op, kind"):
        made_up.rows("colour")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flops", "weights", "activations", "expected_us", "bound"),
    [
        (1_000_000, 1000, 1000, 10.0, "compute"),
        (0, 0, 20_000, 0.1, "L1"),  # 20 kB at 200 GB/s
        (0, 0, 64 * KIB, 32 * KIB / 200e3 + 32 * KIB / 100e3, "L2"),  # one half each
        (0, 0, 4096 * KIB, (32 / 200 + 992 / 100 + 3072 / 10) * KIB / 1e3, "memory"),
    ],
)
def test_the_roof_is_the_higher_of_compute_and_memory(
    flops: int, weights: int, activations: int, expected_us: float, bound: str
) -> None:
    found = roof(flops, weights, activations, weights, LIMITS)
    assert found.microseconds == pytest.approx(expected_us)
    assert found.bound == bound


def test_weights_come_from_where_the_whole_network_is_kept() -> None:
    alone = roof(0, 32 * KIB, 0, 32 * KIB, LIMITS)
    among_many = roof(0, 32 * KIB, 0, 32 * 1024 * KIB, LIMITS)
    assert alone.bound == "L1" and among_many.bound == "memory"
    assert among_many.memory > 10 * alone.memory


def test_threads_bring_their_own_near_caches() -> None:
    two = dataclasses.replace(LIMITS, threads=2)
    assert set(two.microseconds(64 * KIB, 64 * KIB)) == {"L1", "L2", "memory"}
    assert two.microseconds(64 * KIB, 64 * KIB)["L2"] == 0.0


def test_squeeze_excite_is_told_from_the_head() -> None:
    block = ["pool", "dense", "dense", ScaleSpec.kind]
    operators = ["stem", "depthwise", *block, "pointwise", "pool", "dense", "dense"]
    kinds = layer_kinds(operators)
    assert kinds[2:6] == ["squeeze-excite"] * 4
    assert kinds[-3:] == ["pool", "dense", "dense"]
    assert layer_kinds(["layout", "stem"]) == ["other", "stem"]
    scaled = ["depthwise", *block[:-1], "scaled", "pool", "dense"]
    expected = ["depthwise", *["squeeze-excite"] * 3, "pointwise", "pool", "dense"]
    assert layer_kinds(scaled) == expected
    gate = ["depthwise-squeeze", "excite", "scaled", "squeeze", "excite"]
    assert layer_kinds(gate)[:3] == ["depthwise", "squeeze-excite", "pointwise"]


def test_json_has_rows_and_raw_times(made_up: Profile) -> None:
    document = exports.document(made_up)
    assert len(document["layers"]) == 4 and len(document["ops"]) == 3
    assert document["reconciliation"]["difference_us"] == 0.5
    assert len(document["nanoseconds"]["operators"]) == 4


def test_csv_reads_back(made_up: Profile, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    exports.write_csv(made_up, path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["symbol"] for row in rows] == ["pointwise_0", "pointwise_0", "pool_0", "stem_0"]
    assert json.loads(rows[0]["knobs"]) == {"pixels": 4}
    assert float(rows[0]["time_us"]) == 4.0


def test_trace_is_complete_events_that_nest(made_up: Profile, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    exports.write_trace(made_up, path)
    events = json.loads(path.read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X"}
    runs = [e for e in events if e["ph"] == "X" and e["tid"] == 1]
    operators = [e for e in events if e["ph"] == "X" and e["tid"] == 2]
    assert len(runs) == 1 + 4 and len(operators) == 4 * len(runs)
    ends = [run["ts"] + run["dur"] for run in runs]
    assert [run["ts"] for run in runs] == pytest.approx([0.0, *ends[:-1]])
    for i, operator in enumerate(operators):
        run = runs[i // 4]
        assert run["ts"] <= operator["ts"]
        assert operator["ts"] + operator["dur"] <= run["ts"] + run["dur"] + 1e-6


def test_places_that_cannot_be_written_are_refused_before_measuring(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--csv .*is a directory"):
        exports.check_writable(tmp_path, "--csv")
    with pytest.raises(InputError, match=r"--trace .*there is no directory"):
        exports.check_writable(tmp_path / "none" / "a.json", "--trace")
    with pytest.raises(InputError, match=r"--csv .*cannot be written"):
        exports.check_writable(tmp_path / ("a" * 300), "--csv")
    kept = tmp_path / "kept.csv"
    kept.write_text("text")
    exports.check_writable(kept, "--csv")
    exports.check_writable(tmp_path / "new.csv", "--csv")
    assert kept.read_text() == "text" and list(tmp_path.iterdir()) == [kept]


def test_busy_limits_are_noted(made_up: Profile) -> None:
    document = {"model": {"name": "m"}, "target": {"name": "t"}, "parity": {}}
    busy = dataclasses.replace(LIMITS, quiet=False)
    found = summarise(made_up.samples, document, bundle="b", cpu="c", limits=busy)
    assert "busy" in found.notes[0]


def test_api_profiles_a_bundle(small_bundle: Path) -> None:
    found = tm.profile(small_bundle, threads=1, runs=4, limits=False)
    assert [row["kind"] for row in sorted(found.rows(), key=lambda row: row["index"])] == [
        "stem",
        "depthwise",
        "pointwise",
        "pool",
        "dense",
    ]
    assert found.limits is None and found.rows()[0]["roof_share"] is None
    assert found.mult_adds == 16 * 16 * 16 * (27 + 9 + 32) + 320
