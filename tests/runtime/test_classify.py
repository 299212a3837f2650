"""Files in, classes out."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.imaging import Preprocessing, load_image
from tvm_mobilenet.runtime import Bundle, Tensor
from tvm_mobilenet.runtime.classify import Ranking, classify, read_labels


@pytest.fixture
def bundle(built: Path) -> Bundle:
    return Bundle.load(built)


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 3, 20, 20)).astype(np.float32)


def expected(bundle: Bundle, rows: np.ndarray) -> np.ndarray:
    """Probabilities of rows run one by one in a batch of two."""
    scores = np.concatenate([bundle.run(np.stack([row, row]))[:1] for row in rows])
    powers = np.exp(scores.astype(np.float64))
    return powers / powers.sum(axis=1, keepdims=True)


def check(rankings: list[Ranking], wanted: np.ndarray) -> None:
    assert len(rankings) == len(wanted)
    for ranking, shares in zip(rankings, wanted, strict=True):
        order = np.argsort(-shares)[: len(ranking.classes)]
        assert [entry.number for entry in ranking.classes] == list(order)
        got = [entry.probability for entry in ranking.classes]
        np.testing.assert_allclose(got, shares[order], rtol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_rows_go_through_in_batches_and_come_back_in_order(
    bundle: Bundle, tmp_path: Path, count: int
) -> None:
    rows = noise(count)
    np.save(tmp_path / "x.npy", rows)
    rankings = classify(bundle, [tmp_path / "x.npy"], top_k=3)
    check(rankings, expected(bundle, rows))
    assert [ranking.row for ranking in rankings] == list(range(count))


def test_files_of_every_kind_may_be_mixed(bundle: Bundle, tmp_path: Path) -> None:
    rows = noise(3)
    np.save(tmp_path / "one.npy", rows[0])
    np.savez(tmp_path / "named.npz", other=rows[2], picture=rows[1])
    np.savez(tmp_path / "only.npz", whatever=rows[2:])
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3)).astype(np.uint8)).save(
        photo
    )
    preprocessing = Preprocessing.from_json(bundle.manifest["preprocessing"])
    paths = [tmp_path / "one.npy", photo, tmp_path / "named.npz", tmp_path / "only.npz"]
    rankings = classify(bundle, paths, top_k=7)
    all_rows = np.stack([rows[0], load_image(photo, preprocessing)[0], rows[1], rows[2]])
    check(rankings, expected(bundle, all_rows))
    assert [ranking.path for ranking in rankings] == paths


def test_photographs_differ(bundle: Bundle) -> None:
    images = Path(pytest.importorskip("sklearn.datasets").__file__).parent / "images"
    china, flower = classify(bundle, [images / "china.jpg", images / "flower.jpg"])
    assert len(china.classes) == 5
    assert china.classes != flower.classes


def test_labels_name_the_classes(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", noise(1))
    (tmp_path / "labels.txt").write_text("".join(f"class {i}\n" for i in range(7)) + "\n")
    labels = read_labels(tmp_path / "labels.txt")
    (ranking,) = classify(bundle, [tmp_path / "x.npy"], labels=labels)
    assert all(entry.label == f"class {entry.number}" for entry in ranking.classes)
    with pytest.raises(InputError, match="6 labels for a model of 7 classes"):
        classify(bundle, [tmp_path / "x.npy"], labels=labels[:6])
    with pytest.raises(InputError, match="cannot be read as labels"):
        read_labels(tmp_path / "none.txt")
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read as labels"):
        read_labels(tmp_path / "labels.txt")


class Objectionable:
    pass


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("x.npy", noise(1)[:, :, :19], r"x\.npy: has shape"),
        ("x.npy", noise(1).astype(np.float64), "float64.*float32"),
        ("x.npy", np.array([Objectionable()]), "not a numpy file"),
        ("x.npz", {"a": noise(1), "b": noise(1)}, "none named 'picture'"),
        ("x.npz", {}, "holds no array"),
        ("x.npy", b"", "not a numpy file"),
        ("x.npz", b"PK not a zip", "not a numpy file"),
        ("x.npy", None, "no such file"),
        ("x.jpg", b"no image", "not an image"),
        ("x.jpg", None, "no such file"),
    ],
)
def test_bad_files_are_refused_by_name(
    bundle: Bundle, tmp_path: Path, name: str, value: Any, words: str
) -> None:
    path = tmp_path / name
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif isinstance(value, dict):
        np.savez(path, **value)
    elif value is not None:
        np.save(path, value)
    with pytest.raises(InputError, match=words) as error:
        classify(bundle, [path])
    assert str(path) in str(error.value)


def fake(**changes: Any) -> Any:
    """A bundle of a model of another form."""
    picture = Tensor("a", (1, 4, 2, 2), "float32")
    values: dict[str, Any] = {
        "path": Path("bundle"),
        "inputs": (picture,),
        "outputs": (Tensor("y", (1, 3), "float32"),),
        "manifest": {"preprocessing": None, "outputs": [{"values": "probabilities"}]},
        "run": lambda x: {"y": np.array([[0.2, 0.7, 0.1]], np.float32)},
    }
    return SimpleNamespace(**{**values, **changes})


def test_probabilities_are_taken_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2, 2), np.float32))
    (ranking,) = classify(fake(), [tmp_path / "x.npy"])
    assert [entry.number for entry in ranking.classes] == [1, 0, 2]
    assert ranking.classes[0].probability == pytest.approx(0.7)


def test_models_of_other_inputs_and_outputs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no picture; give it as \.npy"):
        classify(fake(), [tmp_path / "x.png"])
    with pytest.raises(InputError, match="not one score for each class"):
        classify(fake(outputs=(Tensor("y", (1, 3, 8, 8), "float32"),)), [tmp_path / "x.npy"])
    pair = (Tensor("a", (1, 2), "float32"), Tensor("b", (1,), "float32"))
    np.savez(tmp_path / "x.npz", a=np.zeros((1, 2), np.float32), b=np.zeros(1, np.float32))
    (ranking,) = classify(fake(inputs=pair), [tmp_path / "x.npz"])
    assert ranking.classes[0].number == 1
    np.savez(tmp_path / "y.npz", a=np.zeros((1, 2), np.float32))
    with pytest.raises(InputError, match="with the arrays a, b"):
        classify(fake(inputs=pair), [tmp_path / "y.npz"])
    shutil.copy(tmp_path / "x.npz", tmp_path / "x.npy")
    with pytest.raises(InputError, match="with the arrays a, b"):
        classify(fake(inputs=pair), [tmp_path / "x.npy"])
