"""Bundles for several targets, several batch sizes, and what `bundle` says without running code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tvm_mobilenet import deploy
from tvm_mobilenet.deploy import inspect
from tvm_mobilenet.deploy.variants import merge
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.runtime import Bundle, host, manifest

X = np.random.default_rng(5).standard_normal((1, 3, 16, 16)).astype(np.float32)


@pytest.fixture
def variant(built: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the bundle that claims another target: variant("name", cpu_features=[...])."""

    def make(name: str, **target: Any) -> Path:
        place = Path(shutil.copytree(built, tmp_path / "variants" / name))
        document = json.loads((place / manifest.NAME).read_text())
        del document["manifest_sha256"]
        document["target"].update(name=name, **target)
        (place / manifest.NAME).write_text(manifest.seal(document))
        return place

    return make


@pytest.fixture
def fat(variant: Callable[..., Path], tmp_path: Path) -> Path:
    """For a board, for this machine with and without its best instructions, and for a later one."""
    bundles = [
        variant("board", architecture="riscv64", cpu_features=[]),
        variant("plain", cpu_features=[]),
        variant("good"),
        variant("later", cpu_features=sorted({*(host.cpu_features() or ()), "avx2048f"})),
    ]
    return merge(bundles, tmp_path / "fat")


def test_the_loader_picks_the_best_that_runs_here(fat: Path, built: Path) -> None:
    assert [v.target for v in manifest.variants(fat)] == ["later", "good", "board", "plain"]
    with Bundle.load(fat) as bundle, Bundle.load(built) as single:
        assert bundle.path == fat / "good"
        np.testing.assert_array_equal(bundle.run(X), single.run(X))
    assert deploy.validate_bundle(fat).passed


def test_a_gpu_variant_needs_a_gpu(
    variant: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = sorted(host.cpu_features() or ())
    bundles = [variant("gpu", kind="cuda", cpu_features=features), variant("plain")]
    fat = merge(bundles, tmp_path / "fat")
    assert [v.target for v in manifest.variants(fat)] == ["gpu", "plain"]
    for reason, chosen in (("no driver", "plain"), (None, "gpu")):
        monkeypatch.setattr("tvm_mobilenet.runtime.cuda.why_not_here", lambda r=reason: r)
        assert manifest.choose(fat) == fat / chosen


def test_nothing_for_this_machine_names_the_reasons(
    variant: Callable[..., Path], tmp_path: Path
) -> None:
    boards = [variant(name, architecture="riscv64") for name in ("one", "two")]
    with pytest.raises(InputError, match=r"nothing for this machine \(one: it is riscv64 code"):
        Bundle.load(merge(boards, tmp_path / "fat"))


@pytest.mark.parametrize("name", ["manifest.json", "good/manifest.json", "good/model.so"])
def test_a_changed_byte_is_found(fat: Path, name: str) -> None:
    content = bytearray((fat / name).read_bytes())
    content[content.rindex(b'"size": ') + 8 if name.endswith("json") else 5000] ^= 1
    (fat / name).write_bytes(content)
    for use in (Bundle.load, inspect.verify):
        with pytest.raises(InputError, match="differs from what was built"):
            use(fat)


@pytest.mark.parametrize("path", ["../built", "/tmp", "good/../../x", ".", ""])
def test_variants_outside_of_the_bundle_are_refused(fat: Path, path: str) -> None:
    document = json.loads((fat / manifest.NAME).read_text())
    del document["manifest_sha256"]
    document["variants"][0]["path"] = path
    (fat / manifest.NAME).write_text(manifest.seal(document))
    with pytest.raises(InputError, match="leads out of the bundle"):
        Bundle.load(fat)


def test_a_linked_variant_is_refused(fat: Path, tmp_path: Path) -> None:
    (fat / "good").rename(tmp_path / "elsewhere")
    (fat / "good").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="good: is a link"):
        Bundle.load(fat)


def test_what_needs_one_target_says_which_there_are(fat: Path) -> None:
    with pytest.raises(InputError, match=r"for several targets; give one of .*fat/good"):
        deploy.validate_bundle(fat).passed and manifest.read(fat)


def test_what_cannot_be_merged_is_refused(
    built: Path, variant: Callable[..., Path], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    same = variant("native")
    other = deploy.build(make_model(classes=5), output=tmp_path / "other", target="x86-64-v3").path
    for bundles, words in (
        ([built], "two bundles or more"),
        ([built, same], "another bundle for native"),
        ([built, other], "its outputs are not those of"),
        ([built, tmp_path / "none"], "no such bundle"),
    ):
        with pytest.raises(InputError, match=words):
            merge(bundles, tmp_path / "fat")
        assert not (tmp_path / "fat").exists()
    with pytest.raises(InputError, match="is not a bundle"):
        merge([built, variant("two")], tmp_path / "variants")


def test_a_merged_bundle_replaces_a_bundle(fat: Path, variant: Callable[..., Path]) -> None:
    merge([variant("a"), variant("b")], fat)
    assert sorted(path.name for path in fat.iterdir()) == ["a", "b", "manifest.json"]
    assert len(inspect.verify(fat)) == 2


class Net(torch.nn.Module):
    """A little network whose ONNX file leaves the batch open."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x).relu().mean((2, 3)))


def test_one_set_of_weights_serves_several_batch_sizes(tmp_path: Path) -> None:
    net = Net().eval()
    model = tmp_path / "net.onnx"
    x = torch.randn(1, 3, 16, 16)
    torch.onnx.export(
        net, (x,), model, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}}
    )
    onnx.checker.check_model(onnx.load(model))
    built = deploy.build(model, output=tmp_path / "b", batch=1, batches=(4, 2), threads=1)
    assert built.parity.samples == 2 + 1 + 1
    bundle = Bundle.load(built.path)
    for size in (1, 2, 4, 3, 11):  # the last two run in parts: 2 + 1, 4 + 4 + 2 + 1
        pictures = torch.randn(size, 3, 16, 16)
        with torch.no_grad():
            expected = net(pictures).numpy()
        np.testing.assert_allclose(bundle.run(pictures.numpy()), expected, rtol=1e-4, atol=1e-5)
    assert bundle.batches == (1, 2, 4)
    with pytest.raises(InputError, match="multiples of the compiled batch, 2"):
        deploy.build(model, output=tmp_path / "c", batch=2, batches=(3,))


def test_the_command_tells_what_there_is(
    cli: Callable[..., Any], fat: Path, built: Path, tmp_path: Path
) -> None:
    assert "good" in cli("bundle", "inspect", fat).stdout
    shown = cli("bundle", "inspect", fat / "good").stdout
    assert "parity passed" in " ".join(shown.split()) and "model.so" in shown
    done = cli("bundle", "verify", fat, "--json")
    assert json.loads(done.stdout)["targets"] == ["later", "good", "board", "plain"]
    (built_copy := tmp_path / "copy").mkdir()
    shutil.copytree(built, built_copy, dirs_exist_ok=True)
    (built_copy / "notes.txt").touch()
    done = cli("bundle", "verify", built_copy)
    assert done.returncode == 0 and "notes.txt is not the bundle's" in done.stderr
    assert cli("bundle", "diff", built, built_copy).stdout == "the same\n"
    assert "target.name" in cli("bundle", "diff", built, fat / "good").stdout
    (built_copy / "model.so").write_bytes(b"")
    done = cli("bundle", "verify", built_copy)
    assert done.returncode == 3 and "model.so: differs from what was built" in done.stderr
    for wrong in (("diff", built), ("verify", built, built), ("merge", built, built)):
        assert cli("bundle", *wrong).returncode == 2
    assert "runs its code" in " ".join(cli("bundle", "--help").stdout.split())
