"""The commands build, validate and run: output, exit codes, and nothing lost on bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from tvm_mobilenet.cli import main
from tvm_mobilenet.parity import judge

Run = Callable[..., "Outcome"]
SMALL = """<ir_version: 10, opset_import: ["" : 18]>
small (float[1,3,16,16] picture) => (float[1,7] scores) {
    stem = Conv<strides=[2,2], pads=[1,1,1,1]>(picture, w0, b0)
    active = Relu(stem)
    mean = GlobalAveragePool(active)
    flat = Flatten(mean)
    scores = Gemm(flat, w1, b1)
}"""


class Outcome:
    """What a command left: exit code, standard output, standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        return document

    def assert_refused(self, code: int, *words: str) -> None:
        """The exit code, and one line of error, the last, with these words."""
        assert self.code == code, self.err
        *before, line = self.err.splitlines()
        assert line.startswith("tvm-mobilenet: error: ")
        assert all(word in line for word in words), line
        assert not any("error" in other or "Traceback" in other for other in before), self.err
        assert not self.out


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> Outcome:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def write_model(path: Path, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    model = parser.parse_model(SMALL)
    for name, shape in {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (16, 7), "b1": (7,)}.items():
        values = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "small.onnx")


@pytest.fixture(scope="session")
def built(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "small"
    assert main(["build", str(model), "-o", str(path)]) == 0
    return path


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- build


def test_build_prints_operators_verdict_and_place(run: Run, model: Path, tmp_path: Path) -> None:
    done = run("build", model, "-o", tmp_path / "b", "--dump-ir", tmp_path / "ir")
    assert done.code == 0, done.err
    header, *rows = done.out.splitlines()
    assert header.split() == ["COUNT", "OPERATOR", "SHAPE", "SCHEDULE", "KNOBS", "SOURCE"]
    assert any(row.split()[1] == "stem" and row.endswith("analytic") for row in rows)
    assert "operators by source of schedule: " in done.out
    assert "parity passed: " in done.out
    assert f"{tmp_path / 'b'}: small for native" in done.out
    assert "importing" in done.err
    assert "warning: the model does not tell how pictures were normalised" in done.err
    assert list((tmp_path / "ir").iterdir())


def test_build_as_json(run: Run, model: Path, tmp_path: Path) -> None:
    done = run(
        *("build", model, "-o", tmp_path / "b", "--json", "--target", "x86-64-v3"),
        *("--mean", "0.5", "--std", "0.5,0.5,0.25", "--threads", "1"),
    )
    found = done.json
    assert found["schema_version"] == 1
    assert found["kind"] == "build"
    assert found["target"] == "x86-64-v3"
    assert sum(found["sources"].values()) == len(found["operators"])
    assert found["parity"]["state"] == "passed"
    assert found["preprocessing"]["mean"] == [0.5] * 3
    assert found["preprocessing"]["std"] == [0.5, 0.5, 0.25]
    assert "warning" not in done.err


def test_build_stops_at_the_gate(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_zeros(outputs: Any, references: Any, *precision: Any) -> Any:
        wrong = [{name: 0 * value for name, value in output.items()} for output in outputs]
        return judge(wrong, references, *precision)

    monkeypatch.setattr("tvm_mobilenet.deploy.builder.judge", of_zeros)
    done = run("build", model, "-o", tmp_path / "b")
    assert done.code == 5
    line = done.err.splitlines()[-1]
    assert line.startswith("tvm-mobilenet: error: parity failed: output 'scores': error is ")
    assert line.endswith("no bundle was written")
    assert not done.out
    assert not list(tmp_path.iterdir())


def other_graph(path: Path, operator: str) -> Path:
    node = helper.make_node(operator, ["x"], ["y"], name="the_node")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3)) for name in "xy"]
    graph = helper.make_graph([node], "graph", info[:1], info[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_bad_models_and_targets_are_one_line(run: Run, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(model.read_bytes()[:300])
    unknown = other_graph(tmp_path / "unknown.onnx", "NoSuchOperator")
    weights = tmp_path / "other.safetensors"
    from safetensors.numpy import save_file

    save_file({"first.weight": np.zeros(3, np.float32)}, weights)
    cases: list[tuple[list[Any], list[str]]] = [
        ([tmp_path / "none.onnx"], ["none.onnx"]),
        ([truncated], ["truncated.onnx"]),
        ([unknown], ["the_node", "NoSuchOperator"]),
        (["mobilenet_v9"], ["mobilenet_v9"]),
        (["mobilenet_v1", "--resolution", "0"], ["resolution"]),
        (["mobilenet_v1", "--resolution", "31"], ["resolution"]),
        (["mobilenet_v1", "--alpha", "0"], ["alpha"]),
        (["mobilenet_v1", "--alpha", "1.5"], ["alpha"]),
        (["mobilenet_v1", "--weights", weights], ["other.safetensors", "first.weight"]),
        ([model, "--target", "x86-64-v33"], ["x86-64-v33", "x86-64-v3"]),
        ([model, "--mean", "1,2"], ["mean"]),
    ]
    for arguments, words in cases:
        run("build", *arguments, "-o", output).assert_refused(3, *words)
        assert not output.exists()


def test_bad_usage_is_one_line(run: Run, model: Path, tmp_path: Path) -> None:
    for arguments in (
        [model],
        [model, "-o", tmp_path / "b", "--threads", "0"],
        [model, "-o", tmp_path / "b", "--mean", "half"],
        [model, "-o", tmp_path / "b", "--exporter", "magic"],
        [model, "-o", tmp_path / "b", "--alpha", "0.5"],
    ):
        run("build", *arguments).assert_refused(2)
        assert not list(tmp_path.iterdir())


def test_build_writes_over_nothing_but_bundles(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_text("precious")
    before = contents(tmp_path)
    for name in ("file", "photos"):
        done = run("build", model, "-o", tmp_path / name)
        done.assert_refused(3, name, "exists and is not a bundle")
    assert contents(tmp_path) == before


def test_build_replaces_a_bundle(run: Run, bundle: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.onnx", seed=1)
    before = (bundle / "model.so").read_bytes()
    assert run("build", other, "-o", bundle).code == 0
    assert (bundle / "model.so").read_bytes() != before
    assert run("validate", bundle, "--model", other).code == 0


# ---------------------------------------------------------------- validate


def test_validate_a_bundle(run: Run, built: Path, model: Path) -> None:
    done = run("validate", built)
    assert done.code == 0, done.err
    assert done.out.split()[:3] == ["OUTPUT", "INPUTS", "MAX"]
    assert "parity passed: " in done.out
    assert "over 2 samples" in done.out
    done = run("validate", built, "--onnx", model, "--samples", "3", "--json")
    assert done.json["parity"]["state"] == "passed"
    assert done.json["parity"]["samples"] == 5


def test_validate_on_photographs(run: Run, built: Path, model: Path) -> None:
    images = Path(pytest.importorskip("sklearn.datasets").__file__).parent / "images"
    done = run("validate", built, "--model", model, "--image", images / "china.jpg", "--json")
    assert done.json["parity"]["samples"] == 5
    run("validate", built, "--image", images / "china.jpg").assert_refused(3, "model too")


def test_validate_a_model(run: Run, model: Path) -> None:
    done = run("validate", model, "--target", "x86-64-v3", "--seed", "9", "--json")
    assert done.code == 0, done.err
    assert done.json["parity"]["samples"] == 2
    assert "generating code" in done.err


def test_validate_fails_against_another_model(run: Run, built: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.onnx", seed=1)
    done = run("validate", built, "--model", other)
    assert done.code == 5
    assert "FAILED" in done.out
    assert "parity failed: output 'scores': error is" in done.err.splitlines()[-1]
    done = run("validate", built, "--model", other, "--json")
    assert done.code == 5
    assert done.json["parity"]["state"] == "failed"
    done = run("validate", built, "--model", other_graph(tmp_path / "relu.onnx", "Relu"))
    done.assert_refused(3, "was not built from")


def test_validate_refuses_a_changed_byte(run: Run, bundle: Path) -> None:
    library = bundle / "model.so"
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)
    run("validate", bundle).assert_refused(3, "model.so", "differs from what was built")


def test_validate_refuses_what_it_does_not_know(run: Run, model: Path, tmp_path: Path) -> None:
    run("validate", tmp_path).assert_refused(3, "not a bundle")
    run("validate", tmp_path / "none.onnx").assert_refused(3, "none.onnx")
    run("validate", model, "--model", model).assert_refused(2, "bundle")


# ---------------------------------------------------------------- run


@pytest.fixture(scope="session")
def photographs() -> list[Path]:
    images = Path(pytest.importorskip("sklearn.datasets").__file__).parent / "images"
    return [images / "china.jpg", images / "flower.jpg"]


def test_run_ranks_photographs(run: Run, built: Path, photographs: list[Path]) -> None:
    done = run("run", built, *photographs, "--top-k", "3")
    assert done.code == 0, done.err
    header, *rows = [line.split() for line in done.out.splitlines()]
    assert header == ["INPUT", "ROW", "RANK", "CLASS", "PROBABILITY"]
    assert [row[0] for row in rows] == [str(path) for path in photographs for _ in range(3)]
    assert [row[2] for row in rows] == ["1", "2", "3"] * 2
    shares = [float(row[4]) for row in rows]
    assert shares[:3] == sorted(shares[:3], reverse=True)


def test_run_as_json_with_labels(
    run: Run, built: Path, photographs: list[Path], tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("abcdefg"))
    done = run("run", built, photographs[0], "--labels", labels, "--json", "--threads", "1")
    (ranking,) = done.json["inputs"]
    assert ranking["path"] == str(photographs[0])
    assert len(ranking["classes"]) == 5
    assert all(entry["label"] == "abcdefg"[entry["number"]] for entry in ranking["classes"])
    assert "LABEL" in run("run", built, photographs[0], "--labels", labels).out


def test_run_takes_arrays(run: Run, built: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3, 16, 16), np.float32))
    done = run("run", built, tmp_path / "x.npy", "--json")
    assert [ranking["row"] for ranking in done.json["inputs"]] == [0, 1]


def test_run_refuses_bad_input(
    run: Run, built: Path, photographs: list[Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    run("run", built, photographs[0], text).assert_refused(3, "text.jpg", "not an image")
    run("run", built, tmp_path / "none.jpg").assert_refused(3, "none.jpg", "no such file")
    run("run", tmp_path, photographs[0]).assert_refused(3, "not a bundle")
    run("run", built, photographs[0], "--threads", "4096").assert_refused(3, "threads")
    run("run", built).assert_refused(2)
    run("run", built, photographs[0], "--labels", text).assert_refused(3, "1 labels")


def test_run_imports_neither_torch_nor_tvm(built: Path, photographs: list[Path]) -> None:
    import sys

    code = (
        "import sys; from tvm_mobilenet.cli import main\n"
        f"code = main(['run', {str(built)!r}, {str(photographs[0])!r}])\n"
        "sys.exit(code or ', '.join({'tvm', 'torch', 'onnx'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- the whole way, as a user goes it


@pytest.mark.slow
def test_from_a_built_in_model_to_classes(
    cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, photographs: list[Path]
) -> None:
    options = ("--alpha", 0.25, "--resolution", 32)
    for arguments in (
        ("build", "mobilenet_v1", *options, "--target", "native", "-o", "out"),
        ("validate", "out"),
        ("validate", "out", "--model", "mobilenet_v1", *options),
        ("run", "out", *photographs),
    ):
        done = cli(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("china.jpg") == 5
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
