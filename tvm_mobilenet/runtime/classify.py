"""Files in, best classes out: what `tvm-mobilenet run` does, as functions."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.imaging import Preprocessing, load_image

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.runtime.bundle import Bundle
    from tvm_mobilenet.runtime.manifest import Tensor

_ARRAYS = (".npy", ".npz")


@dataclass(frozen=True)
class Class:
    """One class of a ranking: its number, its name if known, its probability."""

    number: int
    label: str | None
    probability: float


@dataclass(frozen=True)
class Ranking:
    """The best classes of one row of an input file, best first; `row` counts within the file."""

    path: Path
    row: int
    classes: tuple[Class, ...]


def classify(
    bundle: Bundle, paths: Sequence[Path], *, top_k: int = 5, labels: Sequence[str] | None = None
) -> list[Ranking]:
    """Rank the classes for every image, .npy array ([C, H, W] or [any number, C, H, W]) and .npz.

    Rows are run as many at a time as the bundle's batch holds. `labels`: a name for each class.
    A model with several inputs takes .npz files only, with one array of full shape for each.

    Raises InputError: a file that is no image or array or does not fit, or a model that does not
    give one score for each class.
    """
    import numpy as np

    classes = _class_count(bundle)
    if labels is not None and len(labels) != classes:
        raise InputError(f"{len(labels)} labels for a model of {classes} classes")
    rankings = []
    for places, scores in _scores(bundle, paths):
        for (path, row), values in zip(places, scores.reshape(-1, classes), strict=False):
            shares = _probabilities(values.astype(np.float64), bundle)
            best = np.argsort(-shares, kind="stable")[:top_k]
            ranked = tuple(
                Class(int(i), None if labels is None else labels[i], float(shares[i])) for i in best
            )
            rankings.append(Ranking(path, row, ranked))
    return rankings


def read_labels(path: Path) -> list[str]:
    """Class names, one a line in the order of the classes; InputError when unreadable."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as labels ({error})") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.strip() for line in lines]


def _scores(
    bundle: Bundle, paths: Sequence[Path]
) -> Iterator[tuple[list[tuple[Path, int]], np.ndarray]]:
    """Places (file, row) and the model's output for them, whose surplus rows mean nothing."""
    import numpy as np

    output = bundle.outputs[0].name
    if len(bundle.inputs) > 1:
        for path in paths:
            yield (
                [(path, row) for row in range(bundle.outputs[0].shape[0])],
                bundle.run(_named_arrays(path, bundle.inputs))[output],
            )
        return
    wanted = bundle.inputs[0]
    batch = wanted.shape[0]
    places: list[tuple[Path, int]] = []
    rows: list[np.ndarray] = []
    for path in paths:
        loaded = _rows(path, bundle)
        places += [(path, row) for row in range(len(loaded))]
        rows += list(loaded)
    for start in range(0, len(rows), batch):
        chunk = rows[start : start + batch]
        x = np.zeros(wanted.shape, wanted.dtype)
        x[: len(chunk)] = chunk
        yield places[start : start + batch], bundle.run({wanted.name: x})[output]


def _rows(path: Path, bundle: Bundle) -> np.ndarray:
    """The file as rows of the model's only input: [number, C, H, W] for pictures."""
    wanted = bundle.inputs[0]
    if path.suffix.lower() not in _ARRAYS:
        stored = bundle.manifest["preprocessing"]
        if stored is None:
            raise InputError(
                f"{path}: the model's input {wanted.shape} is no picture; give it as .npy"
            )
        return load_image(path, Preprocessing.from_json(stored))
    loaded = _load(path)
    if isinstance(loaded, dict):
        if len(loaded) != 1 and wanted.name not in loaded:
            raise InputError(f"{path}: has arrays {', '.join(loaded)}, none named '{wanted.name}'")
        loaded = loaded.get(wanted.name, next(iter(loaded.values())))
    array: np.ndarray = loaded[None] if loaded.shape == wanted.shape[1:] else loaded
    if array.shape[1:] != wanted.shape[1:] or array.ndim != len(wanted.shape):
        raise InputError(f"{path}: has shape {loaded.shape}, the model takes {wanted.shape}")
    _check_dtype(path, array, wanted)
    return array


def _named_arrays(path: Path, inputs: Sequence[Tensor]) -> dict[str, np.ndarray]:
    loaded = _load(path) if path.suffix.lower() == ".npz" else None
    names = [tensor.name for tensor in inputs]
    if not isinstance(loaded, dict) or set(loaded) != set(names):
        raise InputError(f"{path}: the model takes .npz files with the arrays {', '.join(names)}")
    for tensor in inputs:
        _check_dtype(path, loaded[tensor.name], tensor)
    return loaded


def _load(path: Path) -> Any:
    """An array from .npy, a dict of arrays from .npz."""
    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a numpy file that can be read ({error})") from error
    if not arrays:
        raise InputError(f"{path}: holds no array")
    return arrays


def _check_dtype(path: Path, array: np.ndarray, wanted: Tensor) -> None:
    if array.dtype != wanted.dtype:
        raise InputError(
            f"{path}: has dtype {array.dtype}, the model takes {wanted.dtype}; save it with "
            f".astype('{wanted.dtype}')"
        )


def _class_count(bundle: Bundle) -> int:
    shapes = [tensor.shape for tensor in bundle.outputs]
    if len(shapes) != 1 or len(shapes[0]) < 2 or any(n != 1 for n in shapes[0][2:]):
        raise InputError(
            f"{bundle.path}: its outputs {shapes} are not one score for each class; "
            "use it from Python with Bundle.run"
        )
    return shapes[0][1]


def _probabilities(scores: np.ndarray, bundle: Bundle) -> np.ndarray:
    import numpy as np

    if bundle.manifest["outputs"][0]["values"] == "probabilities":
        return scores
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()
