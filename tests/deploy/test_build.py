"""From model to bundle: what is written, and the gate in front of it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tvm_mobilenet import deploy, frontend
from tvm_mobilenet.deploy.inspect import diff
from tvm_mobilenet.errors import InputError, ParityError
from tvm_mobilenet.runtime import Bundle, host, manifest


def document(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((path / manifest.NAME).read_text())
    return loaded


def test_the_bundle_holds_what_a_device_needs(built: Path) -> None:
    files = {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()}
    sources = Path(deploy.__file__).parent / "runner"
    runner = {f"runner/{path.name}" for path in sources.iterdir()}
    assert {"runner/CMakeLists.txt", "runner/tvm_mobilenet.h"} < runner
    assert files == {"kernels.zip", "manifest.json", "model.so", "samples.npz"} | runner
    assert set(document(built)["files"]) == files - {"manifest.json"}
    umask = os.umask(0)
    os.umask(umask)
    assert built.stat().st_mode & 0o777 == 0o777 & ~umask


def test_nothing_is_left_beside_the_bundle(built: Path) -> None:
    assert list(built.parent.iterdir()) == [built]


def test_the_manifest_says_where_it_comes_from(built: Path, model_path: Path) -> None:
    found = document(built)
    assert found["schema_version"] == manifest.SCHEMA_VERSION
    assert found["model"] == {"name": "small", "source": str(model_path)}
    assert found["inputs"] == [{"name": "picture", "shape": [1, 3, 16, 16], "dtype": "float32"}]
    assert found["outputs"][0]["name"] == "result"
    assert found["outputs"][0]["values"] == "scores"
    assert found["target"]["name"] == "native"
    assert found["target"]["architecture"] == host.architecture()
    assert found["tools"]["apache-tvm"].startswith("0.27.")
    assert found["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert found["preprocessing"]["assumed"]


def test_the_manifest_tells_the_schedule_of_every_operator(built: Path) -> None:
    operators = document(built)["operators"]
    assert {"stem", "pool", "dense"} <= {operator["kind"] for operator in operators}
    assert {operator["source"] for operator in operators} <= {"tuned", "analytic", "fallback"}
    stem = next(operator for operator in operators if operator["kind"] == "stem")
    assert stem["schedule"]
    assert stem["knobs"]


def test_the_manifest_carries_the_verdict(built: Path) -> None:
    parity = document(built)["parity"]
    assert parity["state"] == "passed"
    assert parity["outputs"][0]["output"] == "result"
    assert 0 <= parity["outputs"][0]["ratio"] <= parity["factor"] == 3


def test_features_of_this_cpu_suffice(built: Path) -> None:
    needed = document(built)["target"]["cpu_features"]
    assert needed
    assert host.why_not_here(host.architecture(), needed) is None


def test_two_builds_of_one_model_are_the_same_bytes(
    built: Path, model_path: Path, tmp_path: Path
) -> None:
    """But for `model.source`, the model as it was named to the build."""
    moved = tmp_path / model_path.name
    moved.write_bytes(model_path.read_bytes())
    again = deploy.build(moved, output=tmp_path / "again").path
    for name in document(built)["files"]:
        assert (again / name).read_bytes() == (built / name).read_bytes(), name
    (difference,) = diff(built, again)
    assert (difference.what, difference.second) == ("model.source", str(moved))


def test_options_reach_the_manifest(model_path: Path, tmp_path: Path) -> None:
    built = deploy.build(
        model_path, output=tmp_path / "b", mean=[0.1], std=[0.2], threads=1, target="x86-64-v3"
    )
    found = document(built.path)
    assert found["threads"] == 1
    assert found["preprocessing"]["mean"] == [0.1] * 3
    assert not found["preprocessing"]["assumed"]
    assert found["target"]["name"] == "x86-64-v3"
    assert "avx512f" not in found["target"]["cpu_features"]


def test_softmax_at_the_end_makes_probabilities(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    head = "scores = Gemm(flat, w1, b1)\n    result = Softmax(scores)"
    built = deploy.build(make_model(head=head), output=tmp_path / "b")
    assert document(built.path)["outputs"][0]["values"] == "probabilities"


def test_dumped_ir_is_written(model_path: Path, tmp_path: Path) -> None:
    deploy.build(model_path, output=tmp_path / "b", dump_ir=tmp_path / "ir")
    dumps = list((tmp_path / "ir").iterdir())
    assert len(dumps) > 1
    assert all("def main" in dump.read_text() for dump in dumps)


def test_a_place_for_the_ir_that_cannot_be_written_is_told_before_compiling(
    model_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    for place in (tmp_path / "file", Path("/proc/nothing")):
        with pytest.raises(InputError, match=f"{place}: cannot be written .* --dump-ir"):
            deploy.build(model_path, output=tmp_path / "b", dump_ir=place, progress=said.append)
    assert not (tmp_path / "b").exists() and all("importing" in line for line in said)


def test_progress_is_told_and_the_bundle_runs(model_path: Path, tmp_path: Path) -> None:
    said: list[str] = []
    built = deploy.build(model_path, output=tmp_path / "b", progress=said.append)
    assert built.parity.summary() in said
    result = Bundle.load(built.path).run(np.zeros((1, 3, 16, 16), np.float32))
    assert result.shape == (1, 7)


def of_another_model(real: Callable[..., Any]) -> Callable[..., Any]:
    """`load_model` whose compiled form differs a little from the reference: a miscompilation."""

    def load(*arguments: Any, **options: Any) -> Any:
        imported = real(*arguments, **options)
        changed = onnx.ModelProto()
        changed.CopyFrom(imported.onnx)
        bias = next(t for t in changed.graph.initializer if t.name == "b1")
        values = numpy_helper.to_array(bias).copy()
        values[3] += 2e-4
        bias.CopyFrom(numpy_helper.from_array(values, "b1"))
        return dataclasses.replace(imported, onnx=changed)

    return load


def test_the_gate_stops_wrong_code(
    model_path: Path, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontend, "load_model", of_another_model(frontend.load_model))
    before = (bundle_path / manifest.NAME).read_bytes()
    with pytest.raises(ParityError, match=r"output 'result': error is .* no bundle was written"):
        deploy.build(model_path, output=bundle_path)
    assert (bundle_path / manifest.NAME).read_bytes() == before
    with pytest.raises(ParityError):
        deploy.build(model_path, output=bundle_path.with_name("new"))
    assert list(bundle_path.parent.iterdir()) == [bundle_path]


def test_code_that_cannot_run_here_is_written_unchecked_and_says_so(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "cpu_features", lambda: frozenset({"pni"}))
    built = deploy.build(model_path, output=tmp_path / "b", target="x86-64-v4")
    assert not built.parity.checked
    parity = document(built.path)["parity"]
    assert parity["state"] == "not checked"
    assert "avx512f" in parity["not_checked"]
    # The reference's outputs are there all the same: the device itself can prove parity.
    with np.load(built.path / manifest.SAMPLES) as samples:
        assert samples["0.float64.0"].shape == (1, 7)
    with pytest.raises(InputError, match="was built for x86-64-v4, but this CPU lacks"):
        Bundle.load(built.path)
    monkeypatch.undo()
    if (
        host.why_not_here(host.architecture(), document(built.path)["target"]["cpu_features"])
        is None
    ):
        assert deploy.validate_bundle(built.path).passed


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target": "x86-64-v33"}, InputError, "x86-64-v3"),
        ({"threads": 0}, InputError, "at least 1"),
        ({"std": [0.0]}, InputError, "std must be positive"),
        ({"mean": [0.0, 0.0]}, InputError, "mean has 2 values"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    model_path: Path,
    tmp_path: Path,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        deploy.build(model_path, output=tmp_path / "b", **options)
    assert not list(tmp_path.iterdir())


def test_a_missing_linker_is_named(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tvm_mobilenet.errors import MissingToolError

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(MissingToolError, match=r"apt-get install g\+\+"):
        deploy.build(model_path, output=tmp_path / "b")


def test_a_failing_linker_is_quoted(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linker = tmp_path / "linker"
    linker.write_text("#!/bin/sh\necho 'ld: error: no luck' >&2\nexit 1\n")
    linker.chmod(0o755)
    monkeypatch.setenv("CXX", str(linker))
    with pytest.raises(InputError, match="linking failed: ld: error: no luck") as error:
        deploy.build(model_path, output=tmp_path / "b")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "b").exists()
