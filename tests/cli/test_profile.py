"""`profile` from the outside; the figures themselves are tests/profiling's."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvm_mobilenet import targets
from tvm_mobilenet.cli import main
from tvm_mobilenet.cli import profile as profile_command
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.profiling import compare as compare_module
from tvm_mobilenet.profiling import limits as limits_module
from tvm_mobilenet.profiling import profile as profile_module
from tvm_mobilenet.profiling.compare import Comparison, Difference
from tvm_mobilenet.profiling.counters import Counted
from tvm_mobilenet.profiling.limits import LevelLimit, Limits
from tvm_mobilenet.profiling.operators import CallParts, OperatorSamples, Samples
from tvm_mobilenet.profiling.profile import Profile, summarise
from tvm_mobilenet.profiling.statistics import Ratio

DOCUMENT = {"model": {"name": "small"}, "target": {"name": "native"}, "parity": {}}
LIMITS = Limits(
    "A Processor", 512, 1, 100.0, (LevelLimit("L1", 0, 200.0),), "2026-01-01", quiet=True
)


def _profile(limits: Limits | None = LIMITS) -> Profile:
    operators = []
    for i, (kind, us) in enumerate([("stem", 1), ("depthwise", 5), ("pointwise", 3), ("pool", 1)]):
        description = {
            "symbol": f"{kind}_0",
            "kind": kind,
            "shape": "1x8x8x8",
            "onnx_nodes": [f"layer.{i}/Conv"],
            "source": "analytic",
            "schedule": kind,
            "knobs": {"pixels": 4},
            "mult_adds": 50_000 * us,
            "bytes": 4000,
            "weight_bytes": 1000,
            "parallel": False,
        }
        operators.append(OperatorSamples(i, description, 9000, np.full(3, 1000 * us)))
    around = np.full(3, 500)
    timed = np.full(3, 11_000)
    samples = Samples(
        *(tuple(operators), timed - 100, timed, around, around, 40_000, timed, 1),
        load_seconds=0.5,
        counted=Counted(
            ({"cycles": 1.25e6, "instructions": 2.5e6},) * 2
            + ({"cycles": 0.0, "instructions": 0.0},) * 2
        ),
        call=CallParts(100.0, 200.0),
    )
    return summarise(samples, DOCUMENT, bundle="b", cpu="A Processor", limits=limits)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asks `profile` for; it answers with asked["answer"]."""
    seen: dict[str, Any] = {"answer": _profile()}

    def answer(bundle: Path, **options: Any) -> Profile:
        seen.update(options, bundle=bundle)
        options["on_run"](1, 1)
        if isinstance(seen["answer"], BaseException):
            raise seen["answer"]
        found: Profile = seen["answer"]
        return found

    monkeypatch.setattr(profile_module, "profile", answer)
    monkeypatch.setattr(profile_command, "_only_counted", lambda args: False)  # there is no bundle
    return seen


def test_the_table_is_sorted_and_reconciled(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "b", "--threads", "1", "--runs", "3"]) == 0
    assert (asked["bundle"], asked["threads"], asked["runs"]) == (Path("b"), 1, 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["LAYER", "KIND", "TIME", "us"]
    assert lines[1].split() == [
        *("layer.1/Conv", "depthwise", "5.0", "45.5%", "45.5%", "5.0", "5.0", "9.0"),
        *("100.0", "0.8", "125.0", "100%", "compute", "2.00", "1", "depthwise", "analytic"),
    ]
    assert [line.split()[0] for line in lines[2:5]] == [
        "layer.2/Conv",
        "layer.0/Conv",
        "layer.3/Conv",
    ]
    assert lines[6] == (
        "operators 10.0 us (90.9%) + calling 0.4 us (3.6%) + taking memory 0.1 us (0.9%) + "
        "giving it back 0.2 us (1.8%) + returning 0.3 us (2.7%) = 11.0 us from end to end"
    )
    assert lines[7].startswith("without instruments 10.9 us: difference +0.1 us, +0.9%; ")
    assert lines[7].endswith("the instruments cost 0.1 us, 0.9%")
    assert lines[8].startswith("load 500 ms, first run 0.040 ms, 3 warm-up runs, then 3 runs")
    assert lines[9] == "this machine on 1 thread: 100 GFLOP/s; GB/s: L1 200"
    assert lines[10] == (
        "counted in the operators of an inference: cycles 2.500 M, instructions 5.000 M"
    )


def test_top_and_by(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "b", "--by", "kind", "--top", "1", "--wide"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["KIND", "CALLS", "TIME"] and "ONNX NODES" in lines[0]
    assert lines[1].startswith("depthwise") and lines[2] == "... 3 more"


def test_without_limits_there_is_no_roof(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    asked["answer"] = _profile(limits=None)
    assert main(["profile", "b", "--no-limits"]) == 0
    assert asked["limits"] is False
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[11:13] == ["-", "-"]
    assert not any(line.startswith("this machine") for line in lines)


def test_json_is_one_document(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "b", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema_version"], document["kind"]) == (1, "profile")
    assert document["layers"][0]["name"] == "layer.1/Conv"
    assert document["nanoseconds"]["operators"][1] == [5000] * 3


def test_files_are_written(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / f"a.{name}" for name in ("csv", "trace")}
    options = [text for name, path in files.items() for text in (f"--{name}", str(path))]
    assert main(["profile", "b", *options]) == 0
    assert all(path.stat().st_size > 100 for path in files.values())
    assert "perfetto" in capsys.readouterr().err


def test_nothing_is_measured_for_a_file_that_cannot_be_written(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "b", "--csv", str(tmp_path / "none" / "a.csv")]) == 3
    assert "bundle" not in asked
    assert "there is no directory" in capsys.readouterr().err


@pytest.mark.parametrize(("variable", "coloured"), [(None, True), ("1", False)])
def test_colours_on_a_terminal_unless_no_color(
    asked: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str | None,
    coloured: bool,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if variable:
        monkeypatch.setenv("NO_COLOR", variable)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["profile", "b"]) == 0
    printed = capsys.readouterr().out
    assert ("\x1b[32m" in printed) == coloured
    assert len(re.sub(r"\x1b\[\d+m", "", printed).splitlines()[1].split()) == 17


def test_a_bundle_that_cannot_be_profiled(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    asked["answer"] = InputError("b: has no timed entry")
    assert main(["profile", "b"]) == 3
    captured = capsys.readouterr()
    assert "b: has no timed entry" in captured.err and captured.out == ""


def test_no_bundle_is_no_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["profile", str(tmp_path / "none")]) == 3
    assert "no such bundle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "b"], "takes one BUNDLE"),
        (["--compare", "a"], "--compare takes two"),
        (["a", "--against", "onnxruntime"], "--model FILE go together"),
        (["--compare", "a", "b", "--csv", "c"], "--csv does not go with"),
        (["a", "--against", "onnxruntime", "--model", "m", "--by", "op"], "--by does not go with"),
        (["a", "--rpc-tracker", "h:1"], "needs --rpc-key"),
        (["a", "--rpc-key", "k"], "--rpc-key goes with"),
        (["a", "--csv", "c", "--trace", "./c"], "need different files"),
        (["a", "--top", "0"], "at least 1"),
        (["a", "--against", "me", "--model", "m"], "invalid choice"),
    ],
)
def test_arguments_that_contradict(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_comparison_as_table_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ratio = Ratio(1.25, 1.2, 1.3)
    faster = Difference("layer.1/Conv", "depthwise", 10.0, 8.0, ratio, 0.001)
    whole = Difference("whole", "", 30.0, 24.0, ratio, 0.001)
    found = Comparison("a", "b", whole, (faster,), ("gone",), (), ("Hm",))
    monkeypatch.setattr(compare_module, "compare", lambda *sides, **options: found)

    assert main(["profile", "--compare", "a", "b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = "layer.1/Conv depthwise 10.0 8.0 -2.0 1.250 1.200 1.300 0.001 faster"
    assert lines[1].split() == row.split()
    assert lines[4].startswith("from end to end: A 30.0 us, B 24.0 us, A / B 1.250 (1.200-1.300)")
    assert lines[4].endswith("B is faster") and lines[5:] == ["only in A: gone", "note: Hm"]

    assert main(["profile", "--compare", "a", "b", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "profile-compare"
    assert document["operators"][0]["verdict"] == "faster" and document["only_a"] == ["gone"]


def test_targets_detect_shows_the_limits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(targets, "detect", lambda: targets.load("zen4"))
    known: list[Limits] = []
    monkeypatch.setattr(limits_module, "all_known", lambda: known)
    assert main(["targets", "detect"]) == 0
    assert "limits not measured yet" in capsys.readouterr().out
    known.append(LIMITS)
    assert main(["targets", "detect"]) == 0
    shown = capsys.readouterr().out
    assert "# limits on 1 thread, float32, measured 2026-01-01\n" in shown
    assert "#   FMA peak    100.0 GFLOP/s\n#   L1          200.0 GB/s\n" in shown
    assert tomllib.loads(shown)["name"] == "zen4"
    assert "issue_width" not in shown, "what is not known is not shown"
    assert main(["targets", "detect", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["limits"][0]["gflops"] == 100.0
    assert main(["targets", "show", "zen4", "--measure"]) == 2
