"""Inputs that find what pictures hide: each kind is judged by itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.frontend import ImportedModel, TensorInfo

# a denormal float32 is below 2**-126 = 1.2e-38; LARGE leaves float32 room for a network's sums
DENORMAL, LARGE = 1e-40, 1e6

Array = Callable[["np.random.Generator", "TensorInfo"], "np.ndarray"]


def adversarial(
    imported: ImportedModel, seed: int = 0
) -> list[tuple[str, Mapping[str, np.ndarray]]]:
    """Kind and inputs by name, the same on every machine.

    *zeros* leave the biases alone, *constants* show what padding does at the borders, *denormals*
    a flush to zero, *large* values an overflow or a lost bound; *NaN* and *infinity*, one value
    of each image, must come out where they do in PyTorch. *impulses*, a 1 among zeros in each
    corner and another channel each time, show wrong padding and exchanged channels. Raises
    InputError for an input that is not float.
    """
    import numpy as np

    found: list[tuple[str, Mapping[str, np.ndarray]]] = []
    for kind, arrays in _KINDS.items():
        for array in arrays():
            generator = np.random.default_rng(seed)
            values = {info.name: array(generator, _float(info)) for info in imported.inputs}
            found.append((kind, values))
    return found


def _float(info: TensorInfo) -> TensorInfo:
    if not info.dtype.startswith("float"):
        raise InputError(f"input '{info.name}' has dtype {info.dtype}; only float inputs are tried")
    return info


def _filled(value: float) -> Array:
    import numpy as np

    return lambda generator, info: np.full(info.shape, value, info.dtype)


def _scaled(scale: float) -> Array:
    return lambda generator, info: (scale * generator.standard_normal(info.shape)).astype(
        info.dtype
    )


def _with_one(value: float) -> Array:
    """Normal values, and in each image one `value` near the middle of the last channel."""

    def array(generator: np.random.Generator, info: TensorInfo) -> np.ndarray:
        values = _scaled(1.0)(generator, info)
        values[_position(info, 0.5, -1)] = value
        return values

    return array


def _impulse(corner: int) -> Array:
    """Zeros, and in each image a 1 in one of four corners (0 to 3) of one channel."""

    def array(generator: np.random.Generator, info: TensorInfo) -> np.ndarray:
        import numpy as np

        values = np.zeros(info.shape, info.dtype)
        values[_position(info, corner, corner)] = 1
        return values

    return array


def _position(info: TensorInfo, where: float, channel: int) -> tuple[slice | int, ...]:
    """Of one value in each image: its middle (where 0.5), or a corner by two bits."""
    place: list[slice | int] = [slice(None)]
    if info.shape[1:]:
        place.append(channel % info.shape[1])
    for axis, extent in enumerate(info.shape[2:]):
        far = where if where == 0.5 else (int(where) >> axis) & 1
        place.append(int(far * (extent - 1)))
    return tuple(place)


def _kinds() -> Mapping[str, Callable[[], Iterator[Array]]]:
    return {
        "zeros": lambda: iter([_filled(0.0)]),
        "constants": lambda: iter([_filled(1.0), _filled(-1.0)]),
        "denormals": lambda: iter([_scaled(DENORMAL)]),
        "large": lambda: iter([_scaled(LARGE)]),
        "NaN": lambda: iter([_with_one(float("nan"))]),
        "infinity": lambda: iter([_with_one(float("inf")), _with_one(float("-inf"))]),
        "impulses": lambda: map(_impulse, itertools.islice(itertools.count(), 4)),
    }


_KINDS = _kinds()
KINDS = tuple(_KINDS)
