"""The blocked layout of activations in numpy; `schedules.spec` says what it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def to_blocked(values: np.ndarray, lanes: int) -> np.ndarray:
    """A tensor's elements, flat, as an operator keeps them: (N, C, H, W) in blocks of `lanes`.

    lanes 0: in the tensor's own order, whatever its rank.
    """
    import numpy as np

    if lanes == 0:
        return values.reshape(-1)
    batch, channels, height, width = values.shape
    pixels = values.reshape(batch, channels, height * width)
    blocks = [
        pixels[:, first : first + lanes].transpose(0, 2, 1).reshape(batch, -1)
        for first in range(0, channels, lanes)
    ]
    return np.concatenate(blocks, axis=1).reshape(-1)


def from_blocked(flat: np.ndarray, shape: Sequence[int], lanes: int) -> np.ndarray:
    """The inverse: a tensor of that shape from what an operator keeps."""
    import numpy as np

    if lanes == 0:
        return flat.reshape(shape)
    batch, channels, height, width = shape
    images = flat.reshape(batch, channels * height * width)
    blocks = []
    for first in range(0, channels, lanes):
        block = min(lanes, channels - first)
        start = first * height * width
        part = images[:, start : start + block * height * width]
        blocks.append(part.reshape(batch, height * width, block).transpose(0, 2, 1))
    return np.concatenate(blocks, axis=1).reshape(shape)
