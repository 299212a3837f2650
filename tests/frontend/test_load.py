"""load_model: what the command line's MODEL may be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tvm_mobilenet.errors import InputError, UsageError
from tvm_mobilenet.frontend import load_model, load_module

OWN = """
from torch import nn
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
def number():
    return 7
def broken():
    raise KeyError("lost")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module file in the current directory; its name is the test's own."""
    name = f"own_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return name


def _conv(g: Any, x: str) -> str:
    return g.op("Relu", g.conv(x, 8, 4))


# ---- built-in ----


def test_built_in_model() -> None:
    options = {"alpha": 0.25, "resolution": 32, "batch": 2, "classes": 7}
    imported = load_model("mobilenet_v1", exporter="torchscript", **options)  # type: ignore[arg-type]
    assert imported.name == imported.source == "mobilenet_v1"
    assert imported.inputs[0].shape == (2, 3, 32, 32)
    assert imported.outputs[0].shape == (2, 7)
    assert isinstance(imported.module, nn.Module)
    assert not imported.module.training


def test_a_built_in_name_wins_over_a_directory_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`build mobilenet_v1 -o mobilenet_v1` makes one."""
    (tmp_path / "mobilenet_v1").mkdir()
    monkeypatch.chdir(tmp_path)
    loaded = load_module("mobilenet_v1", alpha=0.25, resolution=32)
    assert loaded.input_shape == (1, 3, 32, 32)


def test_misspelled_name() -> None:
    with pytest.raises(InputError, match=r"'mobilnet_v2' is no built-in .* mean mobilenet_v2\?"):
        load_model("mobilnet_v2")


# ---- files ----


def test_onnx_file(tmp_path: Path, build: Callable, compare: Callable) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(build(_conv, batch="N").SerializeToString())
    imported = load_model(str(path), batch=3)
    assert (imported.name, imported.source) == ("mine", str(path))
    assert imported.module is None
    compare(imported)


def test_onnx_file_with_a_fixed_batch(tmp_path: Path, build: Callable) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(build(_conv, batch=4).SerializeToString())
    assert load_model(path).inputs[0].shape[0] == 4
    with pytest.raises(InputError, match="fixed batch of 4"):
        load_model(path, batch=2)


@pytest.mark.parametrize(
    ("option", "value"),
    [("alpha", 0.5), ("resolution", 192), ("classes", 10), ("weights", Path("w.pth"))],
)
def test_options_that_an_onnx_file_does_not_take(
    option: str, value: Any, tmp_path: Path, build: Callable
) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(build(_conv).SerializeToString())
    with pytest.raises(UsageError, match=f"--{option} cannot be applied"):
        load_model(path, **{option: value})


def test_missing_onnx_file() -> None:
    with pytest.raises(InputError, match=r"^no/such\.onnx: no such file$"):
        load_model("no/such.onnx")


def test_load_module_takes_no_onnx_file(tmp_path: Path, build: Callable) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(build(_conv).SerializeToString())
    with pytest.raises(InputError, match="is a file; a built-in model or package"):
        load_module(path)


# ---- the user's own modules ----


def test_function_in_the_current_directory(own: str, compare: Callable) -> None:
    imported = load_model(f"{own}:make", resolution=10, batch=2, exporter="torchscript")
    assert (imported.name, imported.source) == ("make", f"{own}:make")
    assert imported.inputs[0].shape == (2, 3, 10, 10)
    compare(imported)


def test_module_object_by_name(own: str) -> None:
    assert isinstance(load_module(f"{own}:net").module, nn.Sequential)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("number", "gives a int, not a torch.nn.Module"),
        ("broken", "fails: KeyError: 'lost'"),
        ("absent", "fails: AttributeError"),
        ("", "fails: AttributeError"),
    ],
)
def test_functions_that_do_not_do(own: str, function: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_model(f"{own}:{function}")


def test_package_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"'no\.such:f' fails: ModuleNotFoundError"):
        load_model("no.such:f")


def test_module_with_weights(tmp_path: Path) -> None:
    source, module = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    loaded = load_module(module, weights=tmp_path / "w.pth", resolution=8)
    assert torch.equal(loaded.module.weight, source.weight)  # type: ignore[arg-type]
    assert loaded.name == "Conv2d"


def test_module_options() -> None:
    with pytest.raises(UsageError, match="--alpha, --classes cannot be applied"):
        load_model(nn.ReLU(), alpha=0.5, classes=3)
    with pytest.raises(InputError, match="resolution 0"):
        load_model(nn.ReLU(), resolution=0)
    with pytest.raises(InputError, match="batch 0"):
        load_model(nn.ReLU(), batch=0)
