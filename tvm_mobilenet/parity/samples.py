"""Inputs to compare on, and how they are kept in a bundle. Needs numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.parity.judge import SAMPLES

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.frontend import ImportedModel, TensorInfo
    from tvm_mobilenet.imaging import Preprocessing

_COARSE = 8  # pixels: the size of the patches that make an input picture-like


@dataclass(frozen=True)
class Sample:
    """Inputs by name, and PyTorch's outputs for them by name in both precisions.

    float32: of a network at tf32 or float16, PyTorch's at that (see `parity.precision`).
    kind: of the inputs; each is judged by itself. onnxruntime: its outputs, where it was asked.
    """

    inputs: Mapping[str, np.ndarray]
    float32: Mapping[str, np.ndarray]
    float64: Mapping[str, np.ndarray]
    kind: str = field(default=SAMPLES, kw_only=True)
    onnxruntime: Mapping[str, np.ndarray] | None = field(default=None, kw_only=True)


def samples(
    imported: ImportedModel,
    seed: int = 0,
    count: int = 2,
    *,
    images: Sequence[Path] = (),
    preprocessing: Preprocessing | None = None,
) -> list[Mapping[str, np.ndarray]]:
    """`count` seeded inputs, the same on every machine, then one for each of `images`.

    A seeded picture is patches of normal noise under finer normal noise, of mean 0 and variance 1,
    so that neighbouring pixels are alike, as in photographs. Images need the model's
    `preprocessing`; each fills the whole batch.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    made: list[Mapping[str, np.ndarray]] = [
        {info.name: _random(generator, info) for info in imported.inputs} for _ in range(count)
    ]
    if images and (preprocessing is None or len(imported.inputs) != 1):
        raise InputError(f"{imported.name} does not take pictures; leave the images out")
    for path in images:
        from tvm_mobilenet.imaging import load_image

        assert preprocessing is not None
        info = imported.inputs[0]
        picture = np.broadcast_to(load_image(path, preprocessing), info.shape)
        made.append({info.name: picture.copy()})
    return made


def save_samples(path: Path, chosen: Sequence[Sample]) -> None:
    """Write samples as an uncompressed .npz: `<sample>.<input|float32|float64>.<position>`."""
    import numpy as np

    arrays: dict[str, Any] = {}
    for number, sample in enumerate(chosen):
        for kind, values in _kinds(sample).items():
            for position, array in enumerate(values.values()):
                arrays[f"{number}.{kind}.{position}"] = array
    with path.open("wb") as file:
        np.savez(file, **arrays)


def load_samples(
    path: Path, input_names: Sequence[str], output_names: Sequence[str]
) -> list[Sample]:
    """Read what `save_samples` wrote; InputError when the file is not that."""
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            count = 1 + max(int(name.split(".")[0]) for name in file.files)

            def named(number: int, kind: str, names: Sequence[str]) -> dict[str, np.ndarray]:
                return {name: file[f"{number}.{kind}.{i}"] for i, name in enumerate(names)}

            return [
                Sample(
                    named(number, "input", input_names),
                    named(number, "float32", output_names),
                    named(number, "float64", output_names),
                )
                for number in range(count)
            ]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not the samples of a bundle ({error})") from error


def _kinds(sample: Sample) -> dict[str, Mapping[str, np.ndarray]]:
    return {"input": sample.inputs, "float32": sample.float32, "float64": sample.float64}


def _random(generator: np.random.Generator, info: TensorInfo) -> np.ndarray:
    import numpy as np

    dtype = np.dtype(info.dtype)
    if dtype.kind != "f":
        raise InputError(f"input '{info.name}' has dtype {info.dtype}; only float inputs are tried")
    values = generator.standard_normal(info.shape)
    if len(info.shape) == 4:
        *outer, height, width = info.shape
        coarse = generator.standard_normal((*outer, -(-height // _COARSE), -(-width // _COARSE)))
        patches = coarse.repeat(_COARSE, axis=2).repeat(_COARSE, axis=3)[..., :height, :width]
        values = 0.8 * patches + 0.6 * values  # 0.8² + 0.6² = 1
    return values.astype(dtype)
