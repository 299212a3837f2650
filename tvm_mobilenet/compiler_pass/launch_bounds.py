"""Keep a kernel's demand on registers through TVM's pipeline.

TVM's CUDA generator writes ``__launch_bounds__(threads, blocks)`` from an attribute of the kernel,
but the pass that cuts kernels out of host functions drops it.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.tirx import compilation_pipeline

from tvm_mobilenet.schedules.cuda.gemm import MIN_BLOCKS

PIPELINE = "tvm_mobilenet.cuda"  # a name of TVM's registry of pipelines


@tvm.transform.module_pass(opt_level=0)
def _keep_bounds(mod: tvm.IRModule, context: tvm.transform.PassContext) -> tvm.IRModule:
    """Give every kernel ``f_kernel`` the bound of its host function ``f``."""
    bounds = {
        f"{var.name_hint}_kernel": function.attrs[MIN_BLOCKS]
        for var, function in mod.functions.items()
        if isinstance(function, tirx.PrimFunc) and MIN_BLOCKS in (function.attrs or {})
    }
    for var, function in mod.functions.items():
        if var.name_hint in bounds:
            mod.update_func(var, function.with_attr(MIN_BLOCKS, bounds[var.name_hint]))
    return mod


def _pipeline(**options: Any) -> tuple[Any, Any, Any]:
    lower, host, device = compilation_pipeline.get_tir_pipeline("default", **options)
    return tvm.transform.Sequential([lower, _keep_bounds]), host, device


compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)
