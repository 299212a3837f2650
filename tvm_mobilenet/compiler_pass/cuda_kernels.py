"""What kernels keep through TVM's pipeline: their demand on registers, how they are launched.

TVM's CUDA generator writes ``__launch_bounds__(threads, blocks)`` from an attribute of the kernel,
and its runtime launches programmatically what says so; but the pass that cuts kernels out of host
functions drops a function's attributes, and only kernels written by hand have the second.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.tirx import compilation_pipeline

from tvm_mobilenet.schedules.cuda.gemm import MIN_BLOCKS

PIPELINE = "tvm_mobilenet.cuda"  # a name of TVM's registry of pipelines
PROGRAMMATIC = "tvm_mobilenet.programmatic_launch"  # attribute of a function
_PARAMETERS = "tirx.kernel_launch_params"
_TAG = "tirx.use_programtic_dependent_launch"  # as TVM spells it
# The next kernel may take the place of blocks that end; what this one reads was written by then.
# As every kernel waits for all of the one before it, none runs beside the last but one.
_MEET = """
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#error programmatic launches need sm_90
#endif
__device__ __forceinline__ void meet_other_kernels() {
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
"""


@tvm.transform.module_pass(opt_level=0)
def _keep_attributes(mod: tvm.IRModule, context: tvm.transform.PassContext) -> tvm.IRModule:
    """Give every kernel ``f_kernel`` what its host function ``f`` says of it."""
    said = {
        f"{var.name_hint}_kernel": function.attrs
        for var, function in mod.functions.items()
        if isinstance(function, tirx.PrimFunc) and function.attrs
    }
    for var, function in mod.functions.items():
        attributes = said.get(var.name_hint, {})
        if MIN_BLOCKS in attributes:
            function = function.with_attr(MIN_BLOCKS, attributes[MIN_BLOCKS])
        if PROGRAMMATIC in attributes:
            function = _programmatic(function)
        mod.update_func(var, function)
    return mod


def _programmatic(kernel: tirx.PrimFunc) -> tirx.PrimFunc:
    """The kernel meets the others first, and is launched beside the end of the one before it."""
    # of what no other pointer reaches, NVRTC moves loads to before the waiting
    kernel = kernel.without_attr("tirx.noalias")
    meet = tirx.Evaluate(cuda_func_call("meet_other_kernels", source_code=_MEET))
    kernel = kernel.with_body(tirx.SeqStmt([meet, kernel.body]))
    return kernel.with_attr(_PARAMETERS, [_TAG, *kernel.attrs[_PARAMETERS]])


def _pipeline(**options: Any) -> tuple[Any, Any, Any]:
    lower, host, device = compilation_pipeline.get_tir_pipeline("default", **options)
    return tvm.transform.Sequential([lower, _keep_attributes]), host, device


compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)
