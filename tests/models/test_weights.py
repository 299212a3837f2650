"""State dicts from files: what is taken, what is refused, and that a refusal changes nothing."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tvm_mobilenet import models
from tvm_mobilenet.errors import InputError

SMALL = {"alpha": 0.25, "resolution": 32, "classes": 10}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[k], right[k]) for k in left)


@pytest.fixture(scope="module")
def trained():
    """A state dict that no create() without weights gives."""
    return models.create("mobilenet_v2", seed=99, **SMALL).state_dict()


@pytest.mark.parametrize("name", models.BUILTIN)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_state_dict_survives_the_round_trip(name, suffix, tmp_path):
    state = models.create(name, seed=3, **SMALL).state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    loaded = models.create(name, weights=path, **SMALL)
    assert same(loaded.state_dict(), state)
    assert not loaded.training


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    ],
    ids=["state_dict", "model", "DataParallel", "both"],
)
def test_checkpoints_of_trainers_load(wrap, trained, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(wrap(trained), path)
    assert same(models.create("mobilenet_v2", weights=path, **SMALL).state_dict(), trained)


def test_counters_of_training_steps_may_be_absent(trained, tmp_path):
    path = tmp_path / "old.pth"
    torch.save({k: v for k, v in trained.items() if "num_batches" not in k}, path)
    loaded = models.create("mobilenet_v2", weights=path, **SMALL).state_dict()
    assert same(loaded, trained)


def test_half_precision_becomes_float32(trained, tmp_path):
    path = tmp_path / "half.safetensors"
    save_file({k: v.half() if v.is_floating_point() else v for k, v in trained.items()}, path)
    module = models.create("mobilenet_v2", weights=path, **SMALL)
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_another_models_weights_name_the_first_keys(trained, tmp_path):
    path = tmp_path / "v2.pth"
    torch.save(trained, path)
    module = models.create("mobilenet_v1", **SMALL)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(InputError) as caught:
        models.load_weights(module, path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert "missing stem.0.weight" in message
    assert "unexpected features.0.0.weight" in message
    assert same(module.state_dict(), before)


def test_other_classes_name_the_shape(trained, tmp_path):
    path = tmp_path / "ten.pth"
    torch.save(trained, path)
    with pytest.raises(
        InputError, match=r"classifier.1.weight is \(10, 1280\), not \(1000, 1280\)"
    ):
        models.create("mobilenet_v2", alpha=0.25, weights=path)


@pytest.mark.parametrize("key", ["features.0.0.weight", "features.18.1.running_var"])
def test_one_missing_key_is_named_and_nothing_is_unexpected(key, trained, tmp_path):
    path = tmp_path / "short.pth"
    torch.save({k: v for k, v in trained.items() if k != key}, path)
    with pytest.raises(InputError, match=f"missing {key}; check") as caught:
        models.create("mobilenet_v2", weights=path, **SMALL)
    assert "unexpected" not in str(caught.value)


def test_values_that_are_not_finite_are_refused(trained, tmp_path):
    path = tmp_path / "nan.pth"
    broken = dict(trained)
    broken["features.3.conv.2.weight"] = trained["features.3.conv.2.weight"] * float("nan")
    torch.save(broken, path)
    with pytest.raises(
        InputError, match=r"features.3.conv.2.weight has values that are not finite"
    ):
        models.create("mobilenet_v2", weights=path, **SMALL)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["absent", "empty", "text", "truncated", "directory"])
def test_unreadable_files_are_refused_in_one_line(suffix, damage, trained, tmp_path):
    path = tmp_path / f"bad{suffix}"
    if damage == "empty":
        path.touch()
    elif damage == "text":
        path.write_text("these are no weights\n" * 100)
    elif damage == "directory":
        path.mkdir()
    elif damage == "truncated":
        if suffix == ".pth":
            torch.save(trained, path)
        else:
            save_file(trained, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=str(path)) as caught:
        models.create("mobilenet_v2", weights=path, **SMALL)
    assert "\n" not in str(caught.value)


class Payload:
    """Unpickling it would create the file whose name it carries."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


def test_pickled_code_is_not_executed(tmp_path):
    path, target = tmp_path / "evil.pth", tmp_path / "executed"
    torch.save({"features.0.0.weight": Payload(str(target))}, path)
    with pytest.raises(InputError, match="not a readable state dict"):
        models.create("mobilenet_v2", weights=path, **SMALL)
    assert not target.exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: torch.zeros(1)}, torch.zeros(3)])
def test_files_without_named_tensors_are_refused(content, tmp_path):
    path = tmp_path / "list.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match="no mapping of names to tensors"):
        models.create("mobilenet_v2", weights=path, **SMALL)
