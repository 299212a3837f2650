"""From an image file to a network's input, as the network's authors evaluated it.

Resize so that the shorter side is 256/224 of the network's, crop the centre, scale to [0, 1],
subtract the mean, divide by the standard deviation; RGB, planar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# MobileNetV1's own code maps pixels to [-1, 1].
HALF = (0.5, 0.5, 0.5)
# ImageNet's statistics, which torchvision's V2 and V3 weights (and most others) were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_SHARE = 224 / 256  # of the resized shorter side


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become input: size in pixels, then (value / 255 - mean) / std per channel.

    `assumed`: the model does not tell; mean or std was chosen by its name.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    assumed: bool = False

    def to_json(self) -> dict[str, Any]:
        """JSON values, with the fixed steps spelled out for other readers."""
        return {
            **asdict(self),
            "resize": {
                "shorter_side_over_crop": 1 / CROP_SHARE,
                "interpolation": "bilinear, antialiased",
            },
            "crop": "centre",
            "scale": 1 / 255,
            "channels": "RGB" if len(self.mean) == 3 else "grey",
            "layout": "NCHW",
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Preprocessing:
        """What `to_json` wrote."""
        return Preprocessing(
            int(values["height"]),
            int(values["width"]),
            tuple(map(float, values["mean"])),
            tuple(map(float, values["std"])),
            bool(values["assumed"]),
        )


def choose_preprocessing(
    name: str,
    input_shape: Sequence[int],
    *,
    built_in: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Preprocessing | None:
    """The pre-processing of a model with that name and input shape [N, C, H, W].

    mobilenet_v1 (and its baselines) takes [-1, 1]; everything else is taken to need ImageNet's
    statistics, as V2 and V3 do. Of a model that is not `built_in` that is assumed, by its name
    alone. `mean` and `std`, one number or one a channel, replace them.
    None when the input is no picture of one or three channels.
    Raises InputError for a wrong count, or a standard deviation that is not positive.
    """
    if len(input_shape) != 4 or input_shape[1] not in (1, 3):
        if mean is not None or std is not None:
            raise InputError(f"{name}: mean and std need an input [N, 1 or 3, H, W]")
        return None
    channels, height, width = input_shape[1:]
    first_version = name.startswith("mobilenet_v1")
    default_mean, default_std = (HALF, HALF) if first_version else (IMAGENET_MEAN, IMAGENET_STD)
    chosen_std = _per_channel("std", std, default_std, channels)
    if min(chosen_std) <= 0:
        raise InputError(f"std must be positive, not {min(chosen_std):g}")
    return Preprocessing(
        height,
        width,
        _per_channel("mean", mean, default_mean, channels),
        chosen_std,
        assumed=not built_in and (mean is None or std is None),
    )


def load_image(path: str | Path, preprocessing: Preprocessing) -> np.ndarray:
    """One picture as float32 [1, C, height, width]. InputError when the file is no image."""
    import numpy as np
    from PIL import Image, ImageOps

    wanted = "RGB" if len(preprocessing.mean) == 3 else "L"
    try:
        with Image.open(path) as image:
            picture = ImageOps.exif_transpose(image).convert(wanted)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not an image that can be read ({error})") from error
    pixels = np.asarray(_resize_and_crop(picture, preprocessing), np.float32)
    planes = pixels.reshape(preprocessing.height, preprocessing.width, -1).transpose(2, 0, 1)
    mean, std = (
        np.array(values, np.float32)[:, None, None]
        for values in (preprocessing.mean, preprocessing.std)
    )
    return np.ascontiguousarray((planes / np.float32(255) - mean) / std)[None]


def _resize_and_crop(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    from PIL import Image

    height, width = preprocessing.height, preprocessing.width
    scale = max(width / image.width, height / image.height) / CROP_SHARE
    size = (
        max(round(image.width * scale), width),
        max(round(image.height * scale), height),
    )
    resized = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return resized.crop((left, top, left + width, top + height))


def _per_channel(
    what: str, given: Sequence[float] | None, default: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    if given is None:
        # Grey pictures: the mean over the colours' statistics.
        return default if channels == 3 else (sum(default) / 3,)
    if len(given) not in (1, channels):
        raise InputError(f"{what} has {len(given)} values, the input {channels} channels")
    return tuple(map(float, given)) if len(given) == channels else (float(given[0]),) * channels
