"""`tvm-mobilenet cost`: tables, JSON, exit codes."""

from __future__ import annotations

import json

import onnx
import pytest
import torch

from tvm_mobilenet.cli import main
from tvm_mobilenet.models import create


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["cost", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_table_has_the_papers_shares(capsys):
    code, out, err = run(capsys, "mobilenet_v1")
    assert (code, err) == (0, "")
    rows = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    assert rows["pointwise"] == ["13", "539492352", "94.86", "3139584", "74.59"]
    assert rows["total"][:2] == ["28", "568740352"]
    assert "568.74 M mult-adds, 4.21 M parameters" in out
    assert "as the paper scales" not in out


def test_other_resolutions_also_show_the_papers_rule(capsys):
    _, out, _ = run(capsys, "mobilenet_v1", "--resolution", "160")
    assert "290.68 M mult-adds," in out
    assert "290.17 M mult-adds as the paper scales them" in out


def test_json_document(capsys):
    code, out, _ = run(capsys, "mobilenet_v1", "--alpha", "0.5", "--resolution", "160", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["schema_version"] == 1
    assert document["kind"] == "cost"
    assert document["mult_adds"] == 76_524_800
    assert round(document["paper_mult_adds"] / 1e6) == 76
    assert document["parameters"] == 1_319_648
    assert [row["kind"] for row in document["kinds"]] == ["stem", "depthwise", "pointwise", "dense"]
    assert "layers" not in document


def test_per_layer(capsys):
    _, out, _ = run(capsys, "mobilenet_v3_small", "--per-layer", "--json")
    layers = json.loads(out)["layers"]
    assert layers[2] == {
        "name": "features.1.block.1.fc1",
        "kind": "squeeze-excite",
        "input_shape": [1, 16, 1, 1],
        "weight_shape": [8, 16, 1, 1],
        "output_shape": [1, 8, 1, 1],
        "mult_adds": 128,
        "parameters": 128,
    }
    _, out, _ = run(capsys, "mobilenet_v3_small", "--per-layer")
    words = next(line.split() for line in out.splitlines() if "features.1.block.1.fc1" in line)
    assert words[1:4] == ["squeeze-excite", "1x16x1x1", "8x16x1x1"]


def test_batch_and_classes(capsys):
    _, out, _ = run(capsys, "mobilenet_v2", "--batch", "2", "--classes", "10", "--json")
    document = json.loads(out)
    dense = document["kinds"][-1]
    assert (dense["mult_adds"], dense["parameters"]) == (2 * 12800, 12800)
    assert "paper_mult_adds" not in document


def test_onnx_file_and_function(capsys, tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\ndef tiny():\n    return nn.Conv2d(3, 4, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code, out, _ = run(capsys, "own_networks:tiny", "--resolution", "34", "--json")
    assert code == 0
    assert json.loads(out)["mult_adds"] == 4 * 32 * 32 * 27

    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph(
        [node],
        "tiny",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 8])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 3])],
        [onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [8, 3], [0.0] * 24)],
    )
    onnx.save(onnx.helper.make_model(graph), "tiny.onnx")
    code, out, _ = run(capsys, "tiny.onnx", "--json")
    assert code == 0
    assert json.loads(out)["mult_adds"] == 48


def test_weights_are_checked(capsys, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(create("mobilenet_v2", alpha=0.25, classes=10).state_dict(), path)
    options = ("--alpha", "0.25", "--classes", "10", "--weights", str(path))
    assert run(capsys, "mobilenet_v2", *options)[0] == 0
    code, out, err = run(capsys, "mobilenet_v1", *options)
    assert (code, out) == (3, "")
    assert "missing stem.0.weight" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["mobilenet_v9"], 3, "mobilenet_v1"),
        (["mobilenet_v1", "--alpha", "0"], 3, "alpha 0.0"),
        (["mobilenet_v1", "--alpha", "1.5"], 3, "alpha 1.5"),
        (["mobilenet_v1", "--resolution", "31"], 3, "resolution 31"),
        (["mobilenet_v1", "--resolution", "0"], 3, "resolution 0"),
        (["mobilenet_v1", "--batch", "0"], 3, "batch 0"),
        (["mobilenet_v1", "--classes", "0"], 3, "classes 0"),
        (["absent.onnx"], 3, "absent.onnx: no such file"),
        (["absent.onnx", "--alpha", "0.5"], 2, "--alpha"),
        ([], 2, "MODEL"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(arguments, code, said, capsys):
    found, out, err = run(capsys, *arguments)
    assert (found, out) == (code, "")
    assert said in err
    assert err.startswith("tvm-mobilenet: error: ")
    assert err.count("\n") == 1
