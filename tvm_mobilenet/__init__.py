"""MobileNet from PyTorch or ONNX to fast, verified native code with TVM.

    import tvm_mobilenet as tm

    bundle = tm.build("mobilenet_v1", target="native", output="out")
    logits = bundle.run(x)  # a numpy array of the input's shape

The verbs are those of the command line; see `tvm_mobilenet.api`. Importing this package imports
nothing heavy: TVM, PyTorch and ONNX load when a verb first needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm_mobilenet import deploy, targets
    from tvm_mobilenet.api import bench, build, cost, export, load, profile, report, tune, validate
    from tvm_mobilenet.runtime import Bundle

    __version__: str

__all__ = [
    "Bundle",
    "__version__",
    "bench",
    "build",
    "cost",
    "deploy",
    "export",
    "load",
    "profile",
    "report",
    "targets",
    "tune",
    "validate",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        return version("tvm-mobilenet")
    if name in ("deploy", "targets"):  # deploy is a package that can be called
        return importlib.import_module(f"tvm_mobilenet.{name}")
    if name in __all__:
        return getattr(importlib.import_module("tvm_mobilenet.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
