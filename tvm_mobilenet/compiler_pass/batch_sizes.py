"""One executable for several batch sizes: the network for each is a function of its own.

Kernels are compiled for a batch, so every size gets its own, scheduled for it. TVM keeps equal
constants of an executable once: weights that are packed alike are stored once.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.relax.utils import copy_with_new_vars

from .relax_graph import bindings_of, is_kernel_call


def entry_name(batch: int) -> str:
    """The name of the network's function for a batch size other than the first."""
    return f"main_batch_{batch}"


def add_entry(mod: tvm.IRModule, other: tvm.IRModule, batch: int) -> tuple[tvm.IRModule, dict]:
    """``mod`` with the network of ``other``, both after memory planning, as `entry_name`.

    Also returns the new name of each kernel of ``other`` by its old one. A kernel that ``mod`` has
    already, as one that a batch does not change, is shared.
    """
    builder = relax.BlockBuilder(mod)
    renamed: dict[str, str] = {}
    kernels: dict[Any, Any] = {}

    def kernel(var: Any) -> Any:
        if var not in kernels:
            kernels[var] = builder.add_func(other[var], f"{var.name_hint}_batch_{batch}")
            renamed[var.name_hint] = kernels[var].name_hint
        return kernels[var]

    main = copy_with_new_vars(other["main"])
    bindings = []
    for binding in bindings_of(main):
        value = binding.value
        if is_kernel_call(value):
            call = relax.Call(kernel(value.op), value.args, value.attrs, value.ty_args)
            binding = relax.VarBinding(binding.var, call)
        bindings.append(binding)
    entry = relax.Function(
        main.params,
        relax.SeqExpr([relax.BindingBlock(bindings)], main.body.body),
        main.ret_ty,
        is_pure=False,
        attrs=main.attrs,
    ).with_attr("global_symbol", entry_name(batch))
    builder.add_func(entry, entry_name(batch))
    return builder.get(), renamed
