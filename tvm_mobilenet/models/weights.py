"""State dicts from files: PyTorch's own format and safetensors, checked before anything is set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tvm_mobilenet.errors import InputError

WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which trainers nest the weights
OPTIONAL = "num_batches_tracked"  # counts training steps only; old and exported files lack it


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Set module's parameters and buffers from a .pth or .safetensors file, in the module's dtype.

    Accepts the bare state dict, one nested under "state_dict" (or "model", "model_state_dict"),
    and keys with DataParallel's "module." prefix. Pickled code is never executed. The module is
    unchanged unless the whole file fits.

    Raises InputError when the file cannot be read, or does not fit: the message has the first
    missing key, the first unexpected key and the first key of another shape.
    """
    path = Path(path)
    given = _without_prefix(_read(path))
    wanted = module.state_dict()
    _check(path, given, wanted)
    for key, tensor in wanted.items():
        if key.endswith(OPTIONAL) and key not in given:
            given[key] = torch.zeros_like(tensor)
    module.load_state_dict(given)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file makes the two decoders raise almost anything.
    except Exception as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:160]
        raise InputError(
            f"weights {path}: not a readable state dict ({type(error).__name__}: {reason}); "
            "save one with torch.save(module.state_dict(), FILE) or as safetensors"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise InputError(
            f"weights {path}: holds no mapping of names to tensors; "
            "save one with torch.save(module.state_dict(), FILE)"
        )
    return dict(content)


def _without_prefix(given: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "module."
    if given and all(key.startswith(prefix) for key in given):
        return {key.removeprefix(prefix): tensor for key, tensor in given.items()}
    return given


def _check(path: Path, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    missing = [key for key in wanted if key not in given and not key.endswith(OPTIONAL)]
    unexpected = [key for key in given if key not in wanted]
    reshaped = [
        f"{key} is {tuple(given[key].shape)}, not {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in given and given[key].shape != tensor.shape
    ]
    complaints = [
        f"{label} {keys[0]}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
        for label, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("other shape:", reshaped),
        )
        if keys
    ]
    if complaints:
        raise InputError(
            f"weights {path}: of another model: {'; '.join(complaints)}; "
            "check the model's name, --alpha and --classes"
        )
    for key, tensor in given.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"weights {path}: {key} has values that are not finite")
