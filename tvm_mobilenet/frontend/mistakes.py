"""Operators that TVM 0.27 imports without complaint and then computes wrongly, or cannot compile.

Found by ONNX's own backend tests. A refusal is better than a wrong network: the parity gate would
stop it too, but minutes later and without saying which node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import onnx
from onnx import TensorProto

from tvm_mobilenet.errors import InputError

# What a node's attributes ask for that goes wrong, "" when nothing does.
Fault = Callable[[onnx.NodeProto, Mapping[str, Any]], str]

_CAST_TO = (
    *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BOOL),
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    TensorProto.UINT8,
)


def _cast(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> str:
    to = attributes.get("to", TensorProto.FLOAT)
    return "" if to in _CAST_TO else f"a type of {TensorProto.DataType.Name(to)}"


def _resize(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> str:
    wrong = [name for name in ("antialias", "exclude_outside") if attributes.get(name)]
    if attributes.get("mode") == b"cubic":
        wrong.append("cubic interpolation")
    return ", ".join(wrong)


def _given(name: str, *fine: object) -> Fault:
    """A fault when the attribute is given with a value that is not one of the fine ones."""

    def fault(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> str:
        value = attributes.get(name, fine[0] if fine else None)
        return f"{name} {value!r}" if name in attributes and value not in fine else ""

    return fault


def _always(reason: str) -> Fault:
    return lambda node, attributes: reason


_FAULTS: dict[str, Fault] = {
    "Cast": _cast,
    "CastLike": _cast,
    "ConvTranspose": _given("output_shape"),
    "IsInf": lambda node, attributes: (
        ""
        if attributes.get("detect_positive", 1) and attributes.get("detect_negative", 1)
        else "infinities of one sign"
    ),
    "LayerNormalization": lambda node, attributes: (
        "its second and third output" if any(node.output[1:]) else ""
    ),
    "NonMaxSuppression": _always("numbers of boxes that are not known"),
    "Resize": _resize,
    "RoiAlign": _given("mode", b"avg"),
    "SpaceToDepth": _given("mode", b"DCR"),
    "TopK": _always("any k"),
} | dict.fromkeys(
    (
        *("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty"),
        *("SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence"),
    ),
    _always("sequences"),
)


def check_faults(nodes: Iterable[onnx.NodeProto], where: str, types: Mapping[str, int]) -> None:
    """InputError for a node that TVM would compute wrongly or fail to compile.

    types: of the model's constants, by name, as in `TensorProto.DataType`.
    """
    for node in nodes:
        fault = _FAULTS.get(node.op_type)
        if fault is None:
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "CastLike":
            attributes["to"] = types.get(node.input[1], TensorProto.FLOAT)
        if reason := fault(node, attributes):
            raise InputError(
                f"{where}: node '{node.name}' ({node.op_type}): TVM computes {reason} wrongly or "
                "not at all; take it out of the model"
            )
