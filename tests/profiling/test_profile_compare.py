"""Two sides by side: who belongs together, and what is told from chance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from tvm_mobilenet.cli import main
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.profiling.compare import Timed, compare, compare_timed
from tvm_mobilenet.profiling.peer_nodes import beside_onnxruntime, pair_up
from tvm_mobilenet.runtime import library


def _side(name: str, *operators: tuple[str, float]) -> Timed:
    """Times around the given microseconds: the same for the same letter in every test."""
    random = np.random.default_rng(ord(name))
    described = [{"name": key, "kind": "pointwise", "key": (key,)} for key, _ in operators]
    times = [us * 1000 * random.uniform(0.98, 1.02, (20, 5)) for _, us in operators]
    return Timed(name, described, times, sum(times))


def test_a_difference_is_told_from_chance() -> None:
    a = _side("a", ("same", 10.0), ("faster", 10.0), ("slower", 10.0), ("hardly", 10.0))
    b = _side("b", ("same", 10.0), ("faster", 8.0), ("slower", 11.0), ("hardly", 10.1))
    found = compare_timed(a, b)

    verdicts = {d.name: d.verdict for d in found.operators}
    assert verdicts == {"same": "same", "faster": "faster", "slower": "slower", "hardly": "same"}
    assert [d.name for d in found.operators[:2]] == ["faster", "slower"], "largest first"
    faster = found.operators[0]
    assert faster.difference_us == pytest.approx(-2.0, abs=0.2)
    assert faster.ratio.low < 1.25 < faster.ratio.high * 1.02 and faster.p < 0.001
    assert found.whole.a_us == pytest.approx(40.0, rel=0.02)


def test_one_of_many_by_chance_is_no_finding() -> None:
    """Of 15 comparisons of equals one may well be below 0.05 unadjusted; none may be after."""
    names = [(f"layer{i}", 10.0) for i in range(15)]
    found = compare_timed(_side("a", *names), _side("b", *names))
    assert min(d.p for d in found.operators) > 0.05


def test_operators_are_matched_by_their_nodes_not_their_place() -> None:
    a = _side("a", ("x", 1.0), ("y", 2.0), ("y", 3.0), ("gone", 4.0))
    b = _side("b", ("new", 5.0), ("y", 2.0), ("y", 3.0), ("x", 1.0))
    found = compare_timed(a, b)
    assert sorted(d.name for d in found.operators) == ["x", "y", "y"]
    for d in found.operators:
        assert d.a_us == pytest.approx(d.b_us, rel=0.05)
    assert (found.only_a, found.only_b) == (("gone (pointwise)",), ("new (pointwise)",))


def test_two_layers_in_one_pass_are_compared_with_both() -> None:
    a = _side("a", ("depthwise", 4.0), ("pointwise", 6.0), ("rest", 1.0))
    b = _side("b", ("both", 5.0), ("rest", 1.0))
    b.operators[0]["key"] = ("depthwise", "pointwise")
    for found in (compare_timed(a, b), compare_timed(b, a)):
        assert found.only_a == found.only_b == ()
        both = found.operators[0]
        assert both.name == "both" and abs(both.difference_us) == pytest.approx(5.0, rel=0.05)


def test_two_bundles_are_run_in_turns(small_bundle: Path) -> None:
    found = compare(small_bundle, small_bundle, threads=1, runs=20)
    assert len(found.operators) == 5 and found.only_a == found.only_b == found.notes == ()
    assert {row["kind"] for row in found.rows()} >= {"stem", "depthwise", "pool"}


def test_bundles_on_different_numbers_of_threads_are_refused(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([1, 2])
    monkeypatch.setattr(library, "choose_threads", lambda asked, preferred: next(counts))
    with pytest.raises(InputError, match=r"runs on 1 and .* on 2 threads: give both --threads"):
        compare(small_bundle, small_bundle, runs=1)


def test_kept_profiles_are_compared(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--threads", "1", "--runs", "20", "--no-limits", "--json"]
    assert main(["profile", str(small_bundle), *options]) == 0
    document = json.loads(capsys.readouterr().out)
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    document["nanoseconds"]["operators"][0] = list(range(1000, 1020))
    files[0].write_text(json.dumps(document))
    document["nanoseconds"]["operators"][0] = list(range(2000, 2020))
    files[1].write_text(json.dumps(document))

    found = compare(*files)
    stem = next(d for d in found.operators if d.kind == "stem")
    assert stem.verdict == "slower" and stem.ratio.value == pytest.approx(0.5, rel=0.01)
    assert {d.verdict for d in found.operators if d.kind != "stem"} == {"same"}
    assert "measured apart" in found.notes[0]
    with pytest.raises(InputError, match="compare two bundles, or two JSON files"):
        compare(files[0], small_bundle)
    with pytest.raises(InputError, match="leave --threads out"):
        compare(*files, threads=1)


NO_RUNS = {"without_instruments": [], "operators": []}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"layers": [], "nanoseconds": 3}',
        json.dumps({"kind": "profile", "layers": [], "nanoseconds": NO_RUNS}),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a\.json: neither a bundle nor a JSON document"):
        compare(path, path)


MODEL = """<ir_version: 10, opset_import: ["" : 18]>
small (float[1,8] x) => (float[1,8] y) {
    [first] a = Relu(x)
    [second] b = Neg(a)
    [third] y = Relu(b)
}"""


def test_nodes_are_found_by_name_or_by_the_value_they_make() -> None:
    operators: list[dict[str, Any]] = [
        {"symbol": "one", "kind": "stem", "onnx_nodes": ["first", "second"]},
        {"symbol": "two", "kind": "dense", "onnx_nodes": ["third"]},
        {"symbol": "three", "kind": "dense", "onnx_nodes": []},
    ]
    nodes = {
        "first": np.full(4, 3.0),
        "b_nchwc": np.full(4, 4.0),  # made by the node "second"
        "third_token_7": np.full(4, 5.0),
        "ReorderInput": np.full(4, 6.0),
    }
    ours = np.tile([2000, 10_000, 1000], (4, 1))
    found = pair_up(
        operators,
        ours,
        nodes,
        parser.parse_model(MODEL),
        version="1",
        threads=1,
        ours_whole=np.full(4, 14_000),
        theirs_whole=np.full(4, 18_000),
    )
    rows = {row["name"]: row for row in found.rows()}
    assert (rows["first"]["ours_us"], rows["first"]["theirs_us"]) == (2.0, 7.0)
    assert rows["first"]["ratio"] == 3.5 and rows["first"]["their_nodes"] == ["first", "b_nchwc"]
    assert rows["third"]["ratio"] == 0.5
    assert rows["three"]["theirs_us"] is None
    assert rows["ReorderInput"]["ours_us"] is None and rows["ReorderInput"]["ratio"] is None
    assert found.theirs_profiled_us == 18.0


def test_onnxruntime_beside_ours(small_bundle: Path, model_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    found = beside_onnxruntime(small_bundle, model_path, threads=1, runs=20)
    ours = [layer for layer in found.layers if layer.ours_us is not None]
    assert [layer.kind for layer in ours] == ["stem", "depthwise", "pointwise", "pool", "dense"]
    convolutions = [layer for layer in ours if layer.kind != "pool"]
    assert all(layer.their_nodes for layer in convolutions), found.layers
    assert found.ours_whole_us > 0 and found.theirs_whole_us > 0


def test_another_model_is_refused(small_bundle: Path, model_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = onnx.load(model_path)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 16
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(InputError, match="was not built from"):
        beside_onnxruntime(small_bundle, tmp_path / "other.onnx", threads=1, runs=10)
