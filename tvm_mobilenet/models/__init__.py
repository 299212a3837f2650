"""MobileNet V1, V2 and V3 in PyTorch, their weights and their cost. Imports PyTorch when used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.models.catalog import BUILTIN, architecture, create

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BUILTIN", "architecture", "create", "load_weights"]


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Set module's state from a .pth or .safetensors file; see `weights.load_weights`."""
    from tvm_mobilenet.models import weights

    weights.load_weights(module, path)
