"""PyTorch module or ONNX file -> Relax, with diagnostics a user can act on.

`load_model` takes whatever the command line's MODEL may be, `export_onnx` writes checked ONNX and
`import_onnx` turns ONNX into an `ImportedModel`: a Relax module with static shapes, all constants
bound in, and few spellings.

What the compiler may rely on after `import_onnx`
-------------------------------------------------
One Relax function `main`; its parameters are the graph's real inputs in order, static shapes,
float32; it returns one tensor, or a tuple when the model has several outputs. One dataflow block,
no dead binding, no trivial binding (`a = b`), no constant subexpression left: a call always has a
non-constant argument. Constants are `tvm.ir.GenericConst` (`.value.numpy()`). NCHW = batch,
channels, height, width; OIHW = output channels, input channels per group, kernel height and width.

=====================  ============================================================================
operation              Relax
=====================  ============================================================================
convolution            `relax.nn.conv2d(x, const[O,I/g,kh,kw])`, data NCHW, kernel OIHW, out NCHW,
                       strides [2], padding [4] = top, left, bottom, right (may be asymmetric),
                       dilation [2], groups; depthwise is groups == I; no `auto_pad` and no zero
                       `Pad` in front of it is left
its bias               `relax.add(conv, const[1,O,1,1])`, constant on the right, at most one
batch norm             folded into the convolution or Gemm before it, also when spelled out as
                       factors and terms; one that cannot be folded (it follows an activation, or
                       the convolution has other users) is `multiply(x, const[1,C,1,1])`, then
                       `add(_, const[1,C,1,1])`
ReLU                   `relax.nn.relu(x)` (also for Clip(0, none))
ReLU6, Clip, Min/Max   `relax.clip(x, low, high)`, bounds PrimValue float64, both finite; a ReLU
                       before it is merged; one-sided bounds keep TVM's form
hard-sigmoid           `clip(add(multiply(x, const[] alpha), const[] beta), 0.0, 1.0)`
hard-swish             `multiply(x, divide(clip(add(x, const[] 3), 0.0, 6.0), const[] 6))`, from
                       HardSwish, `x * relu6(x + 3) / 6` in every order, `x * HardSigmoid(x)`
squeeze-excite         `multiply` of [N,C,1,1] and [N,C,H,W], in the model's own operand order
residual               `relax.add(a, b)`, equal shapes, neither constant
global pooling         `relax.mean(x, axis=[2, 3], keepdims=True)`, from GlobalAveragePool,
                       ReduceMean and an AveragePool over the whole picture; when the model drops
                       the axes a `reshape` follows
Flatten, Reshape,      `relax.reshape(x, R.shape([...]))`, static
Squeeze, Unsqueeze
fully connected        `relax.matmul(x[N,K], const[K,M])`, transposition, alpha and beta folded
                       in, then `add(_, const[M])`
=====================  ============================================================================

Scalars (`const[]`) have shape (). Anything else keeps TVM's own import form, which may hold
`relax.call_tir` of PrimFuncs that the importer made: legalise it and schedule it by the fallback.

`ImportedModel.node_names` maps each binding's name to the ONNX nodes that it computes; names are
unique within the function and derive from the ONNX value (`/a/a.0/Conv_output_0` becomes
`a_a_0_Conv_output_0`; inner steps of a node get its operator appended, `..._conv2d`, `..._clip`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm_mobilenet.frontend.export import EXPORTERS, export_onnx
    from tvm_mobilenet.frontend.load import LoadedModule, load_model, load_module
    from tvm_mobilenet.frontend.model import ImportedModel, TensorInfo
    from tvm_mobilenet.frontend.onnx_to_relax import import_onnx

__all__ = [
    "EXPORTERS",
    "ImportedModel",
    "LoadedModule",
    "TensorInfo",
    "export_onnx",
    "import_onnx",
    "load_model",
    "load_module",
]

_HOME = {
    "EXPORTERS": "export",
    "export_onnx": "export",
    "LoadedModule": "load",
    "load_model": "load",
    "load_module": "load",
    "ImportedModel": "model",
    "TensorInfo": "model",
    "import_onnx": "onnx_to_relax",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
