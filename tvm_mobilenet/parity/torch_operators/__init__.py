"""ONNX's operators in PyTorch, by name: `OPERATORS`.

It follows onnx.ai/onnx/operators, opset 13 and later.
"""

from __future__ import annotations

from tvm_mobilenet.parity.torch_operators import elementwise, shape, windows
from tvm_mobilenet.parity.torch_operators.call import (
    OPERATORS,
    Call,
    Unsupported,
    Value,
    attributes_of,
    tensor_of,
)

__all__ = [
    "OPERATORS",
    "Call",
    "Unsupported",
    "Value",
    "attributes_of",
    "elementwise",
    "shape",
    "tensor_of",
    "windows",
]
