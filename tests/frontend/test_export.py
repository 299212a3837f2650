"""export_onnx: both exporters, what is written and when, and modules that cannot be exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from tvm_mobilenet.errors import InputError, UsageError
from tvm_mobilenet.frontend import EXPORTERS, export_onnx, import_onnx

SHAPE = (2, 3, 16, 16)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.up(torch.relu(self.down(self.pool(x))))
        return nn.functional.hardsigmoid(gate) * x


class Block(nn.Module):
    """MobileNetV3 in small: every kind of layer that the family has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 5, 1, 2, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.attention = SqueezeExcite(8)
        self.head = nn.Sequential(nn.Linear(8, 6), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(6, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.attention(self.depthwise(x))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


@pytest.fixture(scope="module")
def block() -> nn.Module:
    torch.manual_seed(0)
    module = Block()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    return module


@pytest.fixture(scope="module", params=EXPORTERS)
def exported(request: pytest.FixtureRequest, block: nn.Module) -> onnx.ModelProto:
    """The block through each exporter; once for the whole file, it takes seconds."""
    return export_onnx(block, SHAPE, exporter=request.param)


def test_the_file_computes_what_the_module_computes(
    exported: onnx.ModelProto, block: nn.Module, compare: Callable
) -> None:
    assert [value.name for value in exported.graph.input] == ["input"]
    assert [value.name for value in exported.graph.output] == ["logits"]
    x = np.random.default_rng(0).normal(0, 1, SHAPE).astype("float32")
    session = onnxruntime.InferenceSession(exported.SerializeToString())
    with torch.no_grad():
        expected = block.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(None, {"input": x})[0], expected, rtol=1e-4, atol=1e-5)
    compare(import_onnx(exported))


def test_nodes_are_called_after_the_module_tree(exported: onnx.ModelProto) -> None:
    names = [node.name for node in exported.graph.node]
    assert len(set(names)) == len(names)
    for scope in ("stem.0/Conv", "depthwise.2/Clip", "attention/down/Conv", "head.3/Gemm"):
        flat = scope.replace("/down", ".down")
        assert any(name.endswith((scope, flat)) for name in names), (scope, names)


def test_no_path_or_call_stack_of_the_exporting_machine_is_left(exported: onnx.ModelProto) -> None:
    assert str(Path(__file__).parent).encode() not in exported.SerializeToString()
    assert not any(node.metadata_props for node in exported.graph.node)


def test_the_module_is_left_in_its_mode(block: nn.Module) -> None:
    block.train()
    statistics = block.stem[1].running_mean.clone()
    export_onnx(block, SHAPE, exporter="torchscript")
    assert block.training
    assert torch.equal(block.stem[1].running_mean, statistics)


def test_nothing_is_printed(capfd: pytest.CaptureFixture) -> None:
    export_onnx(nn.Conv2d(3, 4, 1), SHAPE, exporter="torchscript")
    export_onnx(nn.Conv2d(3, 4, 1), SHAPE, exporter="dynamo")
    with pytest.raises(InputError, match="torchscript exporter fails"):
        export_onnx(nn.ReLU6(), SHAPE, exporter="torchscript", opset=99)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("opset", [13, 17])
def test_opset(opset: int) -> None:
    model = export_onnx(nn.ReLU6(), SHAPE, exporter="torchscript", opset=opset)
    assert model.opset_import[0].version == opset


def test_opset_that_the_exporter_cannot_write() -> None:
    with pytest.raises(InputError, match="cannot write opset 13, only 18; use the torchscript"):
        export_onnx(nn.ReLU6(), SHAPE, exporter="dynamo", opset=13)


def test_unknown_exporter() -> None:
    with pytest.raises(UsageError, match="unknown exporter 'caffe'; there are dynamo and torch"):
        export_onnx(nn.ReLU6(), SHAPE, exporter="caffe")  # type: ignore[arg-type]


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("first line\nsecond line")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_module_that_fails(exporter: str, tmp_path: Path) -> None:
    path = tmp_path / "kept.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(InputError) as caught:
        export_onnx(Failing(), SHAPE, path, exporter=exporter)
    assert str(caught.value).startswith(f"Failing: the {exporter} exporter fails (")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_half_precision_module() -> None:
    with pytest.raises(InputError, match=r"Conv2d: 'weight' is torch.float16; only float32"):
        export_onnx(nn.Conv2d(3, 4, 1).half(), SHAPE)


# ---- writing ----


def written(path: Path) -> onnx.ModelProto:
    return export_onnx(nn.ReLU6(), SHAPE, path, exporter="torchscript")


def test_the_file_is_what_is_returned_and_replaces_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    model = written(path)
    assert onnx.load(path) == model
    assert list(tmp_path.iterdir()) == [path]


def test_destinations_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        written(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        written(tmp_path / "no" / "m.onnx")


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"precious")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"m\.onnx: cannot write it: No space left on device"):
        written(path)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]
