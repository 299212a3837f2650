"""A read-only view of a Relax main function: bindings in order, users of each value."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax


@dataclass(frozen=True, eq=False)  # two steps are the same only if they are one object
class Step:
    """One binding ``var = call``."""

    var: relax.Var
    value: Any

    def is_call(self, op: str) -> bool:
        return isinstance(self.value, relax.Call) and getattr(self.value.op, "name", "") == op


class RelaxGraph:
    """Bindings of a straight-line Relax function (a single dataflow block, as imported)."""

    def __init__(self, function: relax.Function) -> None:
        self.function = function
        self.steps = [Step(binding.var, binding.value) for binding in bindings_of(function)]
        self._users: dict[Any, list[Step]] = defaultdict(list)
        for step in self.steps:
            for operand in _operands(step.value):
                self._users[operand].append(step)
        self.returned = list(_operands(function.body.body)) or [function.body.body]
        self._returned = set(self.returned)

    def users(self, var: relax.Var) -> list[Step]:
        """Steps that read ``var``, one entry per step."""
        return list(dict.fromkeys(self._users[var]))

    def sole_user(self, var: relax.Var) -> Step | None:
        """The only step that reads ``var``, or None if it has several, none, or is returned."""
        users = self.users(var)
        return users[0] if len(users) == 1 and var not in self._returned else None


def bindings_of(function: relax.Function) -> list[Any]:
    """The bindings of a straight-line function, in order."""
    return [binding for block in function.body.blocks for binding in block.bindings]


def is_kernel_call(value: Any) -> bool:
    """Whether a bound value calls a kernel: after lowering nothing else has a global name."""
    return isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar)


def _operands(value: Any) -> list[relax.Var]:
    found: list[relax.Var] = []

    def visit(expr: Any) -> None:
        if isinstance(expr, relax.Var):
            found.append(expr)

    relax.analysis.post_order_visit(value, visit)
    return found


def shape_of(expr: Any) -> tuple[int, ...]:
    """Static shape of a tensor expression."""
    return tuple(int(extent) for extent in expr.ty.shape)


def constant_of(expr: Any) -> np.ndarray | None:
    """Value of a constant expression, or None."""
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


def scalar_of(expr: Any) -> float | None:
    """Value of a constant with a single element, or None."""
    value = constant_of(expr)
    return float(value.reshape(())) if value is not None and value.size == 1 else None
