from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.imaging import Preprocessing
from tvm_mobilenet.parity import Sample, samples
from tvm_mobilenet.parity.samples import load_samples, save_samples


def model(*shape: int, dtype: str = "float32", name: str = "x") -> Any:
    return SimpleNamespace(
        name="model", inputs=[SimpleNamespace(name=name, shape=shape, dtype=dtype)]
    )


def test_same_seed_same_inputs() -> None:
    first, second = samples(model(1, 3, 20, 30))
    again, _ = samples(model(1, 3, 20, 30))
    other, _ = samples(model(1, 3, 20, 30), seed=1)
    np.testing.assert_array_equal(first["x"], again["x"])
    assert not np.array_equal(first["x"], second["x"])
    assert not np.array_equal(first["x"], other["x"])


def test_pictures_have_unit_variance_and_alike_neighbours() -> None:
    (picture,) = samples(model(2, 3, 161, 97), count=1)
    x = picture["x"]
    assert x.shape == (2, 3, 161, 97)
    assert x.dtype == np.float32
    assert x.mean() == pytest.approx(0, abs=0.1)
    assert x.std() == pytest.approx(1, abs=0.1)
    assert np.corrcoef(x[..., 1:].ravel(), x[..., :-1].ravel())[0, 1] > 0.4


def test_other_shapes_are_plain_noise() -> None:
    (value,) = samples(model(4, 7), count=1)
    assert value["x"].shape == (4, 7)


def test_integer_inputs_are_refused() -> None:
    with pytest.raises(InputError, match="int64"):
        samples(model(1, dtype="int64"))


def test_images_are_preprocessed_and_fill_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (40, 40), (255, 0, 0)).save(path)
    preprocessing = Preprocessing(height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    made = samples(model(2, 3, 32, 32), count=0, images=[path], preprocessing=preprocessing)
    assert len(made) == 1
    assert made[0]["x"].shape == (2, 3, 32, 32)
    np.testing.assert_array_equal(made[0]["x"][:, 0], 1.0)
    with pytest.raises(InputError, match="does not take pictures"):
        samples(model(2, 3, 32, 32), images=[path])


def test_saved_samples_come_back(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    kept = [
        Sample(
            {"in/1": np.full((1, 2), i, np.float32)},
            {"a": np.full(3, i, np.float32), "b": np.zeros(1, np.float32)},
            {"a": np.full(3, i, np.float64), "b": np.zeros(1)},
        )
        for i in range(2)
    ]
    save_samples(path, kept)
    loaded = load_samples(path, ["in/1"], ["a", "b"])
    assert len(loaded) == 2
    assert loaded[1].inputs["in/1"][0, 0] == 1
    assert loaded[1].float32["a"].dtype == np.float32
    assert loaded[1].float64["a"].dtype == np.float64


def test_damaged_samples_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(InputError, match="not the samples of a bundle"):
        load_samples(path, ["x"], ["y"])
    save_samples(path, [Sample({"x": np.zeros(1)}, {}, {})])
    with pytest.raises(InputError, match="not the samples of a bundle"):
        load_samples(path, ["x"], ["y"])
