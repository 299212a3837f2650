"""The network once more under another name, with calls of ours between those of its kernels.

The kernels, their order and the memory plan are those of ``main``, which stays as it is: what such
an entry shows is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax.utils import copy_with_new_vars

from .relax_graph import bindings_of, is_kernel_call


class ExtraEntry:
    """A copy of ``main`` under way; `calls` are its kernels' calls."""

    def __init__(self, mod: tvm.IRModule) -> None:
        """mod: after memory planning, before shapes are lowered."""
        self._main = copy_with_new_vars(mod["main"])
        self._builder = relax.BlockBuilder(mod)
        self._bindings: list[Any] = []
        self._own = bindings_of(self._main)
        self.calls = [binding.value for binding in self._own if is_kernel_call(binding.value)]

    def function(self, function: tirx.PrimFunc, name: str) -> Any:
        """Add a function to the module; what `call` takes."""
        return self._builder.add_func(function, name)

    def copy_main(
        self, after: Callable[[int, Any], None], before: Callable[[], None] = lambda: None
    ) -> None:
        """Do what ``main`` does, with the calls of `before` and `after` between.

        before: asked once, ahead of the first operator. after: asked behind every operator, with
        its number, from 0, and its call.
        """
        operator = 0
        for binding in self._own:
            kernel = is_kernel_call(binding.value)
            if kernel and operator == 0:
                before()
            self._bindings.append(binding)
            if kernel:
                after(operator, binding.value)
                operator += 1

    def call(self, function: Any, tensors: Sequence[Any], *numbers: int) -> None:
        """Call a function of ours next."""
        call = relax.Call(function, [*tensors, *map(relax.prim_value, numbers)])
        nothing = relax.Var("nothing", relax.TupleType([]))
        self._bindings.append(relax.VarBinding(nothing, call))

    def module(self, name: str, parameters: Sequence[relax.Var]) -> tvm.IRModule:
        """The module with the entry, which takes ``main``'s inputs and these parameters."""
        main = self._main
        inputs = [*main.params, *parameters]
        entry = relax.Function(
            inputs,
            relax.SeqExpr([relax.BindingBlock(self._bindings)], main.body.body),
            main.ret_ty,
            is_pure=False,
            attrs=main.attrs,
        ).with_attr({"global_symbol": name, "num_input": len(inputs)})
        self._builder.add_func(entry, name)
        return self._builder.get()
