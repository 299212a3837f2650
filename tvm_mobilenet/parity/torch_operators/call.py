"""One ONNX node as its reference sees it, and the table of the references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import onnx

Value = torch.Tensor


class Unsupported(Exception):
    """An operator's attribute or shape that this reference does not compute."""


class Call:
    """One node's arguments (None where an optional one is left out) and attributes."""

    def __init__(
        self,
        arguments: Sequence[Value | None],
        attributes: Mapping[str, Any],
        opset: int,
        precision: torch.dtype,
    ) -> None:
        self.arguments, self.attributes = arguments, attributes
        self.opset, self.precision = opset, precision

    def __getitem__(self, position: int) -> Value:
        value = self.optional(position)
        if value is None:
            raise Unsupported(f"lacks its input {position}")
        return value

    def optional(self, position: int) -> Value | None:
        """The argument at that position, or None."""
        return self.arguments[position] if position < len(self.arguments) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute's value, or the default."""
        return self.attributes.get(name, default)

    def integers(self, position: int, name: str) -> list[int] | None:
        """Whole numbers given as an argument (newer opsets) or as an attribute (older ones)."""
        value = self.optional(position)
        if value is not None:
            return [int(number) for number in value.flatten().tolist()]
        return self.attribute(name)


Operator = Callable[[Call], "Value | Sequence[Value]"]
OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    def register(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


def elementwise(**functions: Callable[..., Value]) -> None:
    def operator(function: Callable[..., Value]) -> Operator:
        return lambda call: function(*(call[i] for i in range(len(call.arguments))))

    OPERATORS.update({name: operator(function) for name, function in functions.items()})


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    values = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    return {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in values.items()
    }


def tensor_of(proto: onnx.TensorProto) -> Value:
    import onnx

    array = torch.from_numpy(onnx.numpy_helper.to_array(proto).copy())
    return array.float() if array.is_floating_point() else array


def interleave(before: Sequence[int], after: Sequence[int]) -> list[int]:
    pairs = list(zip(before, after, strict=True))
    return [pad for pair in reversed(pairs) for pad in pair]
