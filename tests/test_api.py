"""The Python API: the command line's verbs under the same names."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

import tvm_mobilenet as tm
from tvm_mobilenet.errors import InputError, UsageError


class Net(torch.nn.Module):
    """A user's own network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, 2, 1, bias=False),
            torch.nn.BatchNorm2d(16),
            torch.nn.Hardswish(),
            torch.nn.Conv2d(16, 16, 3, 1, 1, groups=16),
            torch.nn.ReLU6(),
        )
        self.head = torch.nn.Linear(16, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    return Net().eval()


@pytest.fixture(scope="module")
def bundle(module: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tm.Bundle:
    output = tmp_path_factory.mktemp("api") / "out"
    return tm.build(module, resolution=33, batch=2, exporter="torchscript", output=output)


def test_build_gives_a_loaded_bundle_that_computes_what_the_module_does(
    bundle: tm.Bundle, module: torch.nn.Module
) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 33, 33)).astype(np.float32)
    with torch.inference_mode():
        wanted = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(bundle.run(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["rpi2", "cuda-sm80"])
def test_build_refuses_what_it_could_not_load_before_it_writes(
    target: str, module: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvm_mobilenet.runtime.cuda.why_not_here", lambda: "no GPU")
    said: list[str] = []
    output = tmp_path / "out"
    with pytest.raises(InputError, match=f"{target}: .* cannot be loaded here .*tm.deploy.build"):
        tm.build(module, resolution=33, target=target, output=output, progress=said.append)
    assert said == [] and list(tmp_path.iterdir()) == []


def test_load_opens_what_build_wrote(bundle: tm.Bundle) -> None:
    with tm.load(bundle.path, threads=1) as again:
        assert isinstance(again, tm.Bundle)
        assert again.inputs == bundle.inputs
        assert again.threads == 1
    with pytest.raises(InputError):
        tm.load(bundle.path / "none")


def test_validate_takes_bundles_and_modules(bundle: tm.Bundle, module: torch.nn.Module) -> None:
    options = {"resolution": 33, "batch": 2, "exporter": "torchscript"}
    assert tm.validate(bundle.path).samples == 2
    fresh = tm.validate(bundle.path, against=module, count=3, **options)  # type: ignore[arg-type]
    assert fresh.passed
    assert fresh.samples == 5
    said: list[str] = []
    compiled = tm.validate(
        module,
        target="x86-64-v2",
        progress=said.append,
        **options,  # type: ignore[arg-type]
    )
    assert compiled.passed
    assert said
    with pytest.raises(UsageError, match="goes with a bundle"):
        tm.validate(module, against=module)


def test_a_wrong_module_does_not_validate(bundle: tm.Bundle, module: torch.nn.Module) -> None:
    other = Net().eval()
    with torch.no_grad():
        other.head.bias[0] += 1e-4
    report = tm.validate(bundle.path, against=other, resolution=33, batch=2, exporter="torchscript")
    assert not report.passed


def test_export_and_cost(module: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = tm.export(module, path, resolution=32, exporter="torchscript", opset=17)
    assert path.stat().st_size > 0
    assert model.graph.output[0].name == "logits"
    of_file, of_module = tm.cost(path), tm.cost(module, resolution=32)
    layers = 16 * 16 * 16 * 27 + 16 * 16 * 16 * 9 + 16 * 7
    assert of_file.mult_adds == of_module.mult_adds == layers
    assert tm.cost("mobilenet_v1").mult_adds == pytest.approx(569e6, rel=2e-3)


def test_bench_is_the_one_of_profiling() -> None:
    with pytest.raises(UsageError, match="no-such-peer"):
        tm.bench("mobilenet_v1", against=["no-such-peer"])


def test_targets_are_at_hand() -> None:
    assert "x86-64-v3" in tm.targets.names()


def test_version_and_names() -> None:
    assert tm.__version__ == version("tvm-mobilenet")
    assert set(dir(tm)) == set(tm.__all__)
    assert all(getattr(tm, name) for name in tm.__all__)
    with pytest.raises(AttributeError, match="no_such_verb"):
        tm.no_such_verb  # noqa: B018


def test_options_are_those_of_the_builder() -> None:
    from tvm_mobilenet import deploy

    ours, its = (inspect.signature(f).parameters for f in (tm.build, deploy.build))
    assert list(ours) == list(its)
    assert [p.default for p in ours.values()] == [p.default for p in its.values()]


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = {"tvm", "tvm_ffi", "torch", "onnx", "numpy", "PIL"}
    code = f"import tvm_mobilenet, sys; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
