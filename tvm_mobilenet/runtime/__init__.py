"""Runs bundles with TVM's runtime library alone: no compiler, no PyTorch, no ONNX.

Needs numpy, tvm_ffi and libtvm_runtime. A bundle holds native code: **loading one runs that code**,
so load bundles only from people you trust. The hashes find damage, not malice.
"""

from __future__ import annotations

from tvm_mobilenet.runtime.bundle import Bundle
from tvm_mobilenet.runtime.manifest import Manifest, Tensor

__all__ = ["Bundle", "Manifest", "Tensor"]
