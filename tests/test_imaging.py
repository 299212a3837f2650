from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.imaging import (
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    choose_preprocessing,
    load_image,
)

PLAIN = Preprocessing(height=32, width=32, mean=(0.0,) * 3, std=(1.0,) * 3)


def write(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    Image.fromarray(pixels.astype(np.uint8), mode).save(path)
    return path


def gradient(height: int, width: int) -> np.ndarray:
    """Red grows to the right, green downwards."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([columns * 255 / (width - 1), rows * 255 / (height - 1), rows * 0], axis=-1)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96), (96, 48), (10, 10), (33, 200)])
def test_centre_is_cropped_at_the_right_scale(tmp_path: Path, height: int, width: int) -> None:
    path = write(tmp_path / "a.png", gradient(height, width))
    picture = load_image(path, PLAIN)
    assert picture.shape == (1, 3, 32, 32)
    assert picture.dtype == np.float32
    red, green, blue = picture[0]
    # The crop shows 224/256 of the shorter side, around the centre.
    share = 0.875 * min(height, width)
    assert red[16].mean() == pytest.approx(0.5, abs=0.02)
    assert green[:, 16].mean() == pytest.approx(0.5, abs=0.02)
    assert red[16, -1] - red[16, 0] == pytest.approx(share / width, abs=0.06)
    assert green[-1, 16] - green[0, 16] == pytest.approx(share / height, abs=0.06)
    assert blue.max() == 0


def test_oblong_networks_get_an_oblong_crop(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", gradient(100, 100))
    picture = load_image(path, Preprocessing(40, 20, (0.0,) * 3, (1.0,) * 3))
    assert picture.shape == (1, 3, 40, 20)
    assert picture[0, 0].max() < 0.8  # the sides are cropped more than the top


def test_values_are_normalised_per_channel(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", np.tile([255, 0, 51], (40, 40, 1)))
    picture = load_image(path, Preprocessing(32, 32, (0.5, 0.25, 0.2), (0.5, 0.5, 0.1)))
    np.testing.assert_allclose(picture[0, :, 5, 5], [1.0, -0.5, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "pixels"),
    [
        ("L", np.full((40, 40), 51)),
        ("RGBA", np.tile([51, 51, 51, 7], (40, 40, 1))),
    ],
)
def test_other_colour_modes_become_rgb(tmp_path: Path, mode: str, pixels: np.ndarray) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path)
    np.testing.assert_allclose(load_image(path, PLAIN), 0.2, atol=1e-6)


def test_grey_networks_take_one_channel(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", np.full((40, 40, 3), 51))
    grey = choose_preprocessing("own", (1, 1, 32, 32), mean=[0], std=[1])
    assert grey is not None
    picture = load_image(path, grey)
    assert picture.shape == (1, 1, 32, 32)
    np.testing.assert_allclose(picture, 0.2, atol=1e-6)


def test_a_turned_photograph_is_turned_back(tmp_path: Path) -> None:
    image = Image.fromarray(gradient(64, 64).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    image.save(tmp_path / "a.png", exif=exif)
    red = load_image(tmp_path / "a.png", PLAIN)[0, 0]
    assert red[-1, 16] > red[0, 16] + 0.5  # what grew to the right grows downwards


def test_models_get_their_papers_normalisation() -> None:
    shape = (1, 3, 96, 64)
    first = choose_preprocessing("mobilenet_v1_shallow", shape, built_in=True)
    third = choose_preprocessing("mobilenet_v3_small", shape, built_in=True)
    own = choose_preprocessing("my_net", shape)
    copy_of_first = choose_preprocessing("mobilenet_v1_mine", shape)
    assert first == Preprocessing(96, 64, HALF, HALF)
    assert third == Preprocessing(96, 64, IMAGENET_MEAN, IMAGENET_STD)
    assert copy_of_first == Preprocessing(96, 64, HALF, HALF, assumed=True)
    assert own == Preprocessing(96, 64, IMAGENET_MEAN, IMAGENET_STD, assumed=True)
    given = choose_preprocessing("my_net", shape, mean=[0.0], std=[0.1, 0.2, 0.3])
    assert given == Preprocessing(96, 64, (0.0, 0.0, 0.0), (0.1, 0.2, 0.3))


def test_inputs_that_are_no_pictures_have_none() -> None:
    assert choose_preprocessing("own", (1, 4, 8, 8)) is None
    assert choose_preprocessing("own", (1, 10)) is None
    with pytest.raises(InputError, match="mean and std need"):
        choose_preprocessing("own", (1, 10), mean=[0])


@pytest.mark.parametrize(("mean", "std"), [([0, 0], [1]), ([0], [1, 1, 1, 1]), ([0], [0, 1, 1])])
def test_bad_statistics_are_refused(mean: list[float], std: list[float]) -> None:
    with pytest.raises(InputError):
        choose_preprocessing("own", (1, 3, 8, 8), mean=mean, std=std)


def test_it_survives_the_manifest() -> None:
    chosen = choose_preprocessing("my_net", (1, 3, 96, 64))
    assert chosen is not None
    assert Preprocessing.from_json(chosen.to_json()) == chosen


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"])
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png: not an image"):
        load_image(path, PLAIN)


def test_a_truncated_image_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    path = write(tmp_path / "a.png", noise)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="not an image"):
        load_image(path, PLAIN)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_image(tmp_path / "none.png", PLAIN)
