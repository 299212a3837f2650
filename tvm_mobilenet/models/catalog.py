"""The built-in networks by name: checks what the user asked for and makes the module."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import InputError

if TYPE_CHECKING:
    from tvm_mobilenet.models.layers import MobileNet

# Name -> largest width multiplier that its paper reports (V1's is thinning only).
LARGEST_ALPHA = {
    "mobilenet_v1": 1.0,
    "mobilenet_v1_conv": 1.0,
    "mobilenet_v1_shallow": 1.0,
    "mobilenet_v2": 1.4,
    "mobilenet_v3_small": 1.25,
    "mobilenet_v3_large": 1.25,
}
BUILTIN: tuple[str, ...] = tuple(LARGEST_ALPHA)
SMALLEST_RESOLUTION = 32  # five halvings


def create(
    name: str,
    *,
    alpha: float = 1.0,
    resolution: int = 224,
    classes: int = 1000,
    weights: str | Path | None = None,
    seed: int = 0,
) -> MobileNet:
    """A built-in network in float32 and evaluation mode, with weights.

    alpha is the width multiplier, resolution the height and width of the input in pixels.
    Weights come from the file `weights`, or, without one, from `seed` alone: the same on every
    machine, for every resolution, whatever the state of PyTorch's generator (left untouched).

    Raises InputError for an unknown name, a value out of range or an unusable weights file.
    """
    module = architecture(name, alpha=alpha, resolution=resolution, classes=classes)
    module.to_empty(device="cpu")
    if weights is None:
        from tvm_mobilenet.models.initialise import initialise

        initialise(module, seed)
    else:
        from tvm_mobilenet.models.weights import load_weights

        load_weights(module, weights)
    return module


def architecture(
    name: str, *, alpha: float = 1.0, resolution: int = 224, classes: int = 1000
) -> MobileNet:
    """A built-in network without weights, on PyTorch's meta device: shapes and keys, no memory.

    Raises InputError for an unknown name or a value out of range.
    """
    check(name, alpha=alpha, resolution=resolution, classes=classes)

    import torch

    from tvm_mobilenet.models import v1, v2, v3

    with torch.device("meta"):
        match name:
            case "mobilenet_v1":
                module: MobileNet = v1.MobileNetV1(alpha, resolution, classes)
            case "mobilenet_v1_conv":
                module = v1.MobileNetV1(alpha, resolution, classes, block=v1.FullConvolution)
            case "mobilenet_v1_shallow":
                module = v1.MobileNetV1(alpha, resolution, classes, shallow=True)
            case "mobilenet_v2":
                module = v2.MobileNetV2(alpha, resolution, classes)
            case "mobilenet_v3_small":
                module = v3.MobileNetV3(
                    alpha, resolution, classes, rows=v3.SMALL, last=v3.LAST_SMALL
                )
            case "mobilenet_v3_large":
                module = v3.MobileNetV3(alpha, resolution, classes)
            case _:
                raise AssertionError(name)
    return module.eval()


def check(
    name: str,
    *,
    alpha: float = 1.0,
    resolution: int = 224,
    classes: int = 1000,
) -> None:
    """Raise InputError, without importing PyTorch, when `create` could not make this network."""
    if name not in LARGEST_ALPHA:
        near = difflib.get_close_matches(name, BUILTIN, n=3)
        listing = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(BUILTIN)}"
        raise InputError(f"unknown model {name!r}: {listing}")
    largest = LARGEST_ALPHA[name]
    if not 0 < alpha <= largest:
        raise InputError(f"{name}: alpha {alpha} must be above 0 and at most {largest}")
    if resolution < SMALLEST_RESOLUTION:
        raise InputError(
            f"{name}: resolution {resolution} must be at least {SMALLEST_RESOLUTION} pixels"
        )
    if classes < 1:
        raise InputError(f"{name}: classes {classes} must be at least 1")
