"""What the frontend hands to the compiler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    import torch
    import tvm


@dataclass(frozen=True)
class TensorInfo:
    """An input or output as the user knows it: ONNX name, static shape, numpy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ImportedModel:
    """A model in Relax, with all that is needed to check it and to speak of it to its user.

    name: short name, used for bundles and reports.
    mod: Relax module in the normal forms that `tvm_mobilenet.frontend` documents.
    onnx: the ONNX model as the user gave it, with static shapes (and opset 14 or later); `mod`
        computes the same function.
    inputs, outputs: in the order of `main`'s parameters and results, under their ONNX names.
    module: the PyTorch module when there was one.
    source: what the user gave (built-in name, file, `package.module:function`, class name).
    node_names: Relax binding -> names of the ONNX nodes that it computes or helps to compute.
    value_names: Relax binding -> the ONNX value that it is, where it is one.
    """

    name: str
    mod: tvm.IRModule
    onnx: onnx.ModelProto
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    module: torch.nn.Module | None
    source: str
    node_names: Mapping[str, tuple[str, ...]]
    value_names: Mapping[str, str]
