"""Operator specifications: what is computed, independent of how.

A spec is frozen and has a stable JSON form, so that it can key tuning records and travel as a
function attribute through the compiler. `single_spec` has those of single operators and says how
activations lie in memory, `joint_spec` those of operators made of several.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from .joint_spec import (
    DepthwiseSqueezeSpec,
    ExciteSpec,
    Joint,
    ScaledSpec,
    SeparableSpec,
    SqueezeSpec,
)
from .single_spec import (
    FLOAT_BYTES,
    NONE,
    PRECISIONS,
    RELU,
    RELU6,
    Activation,
    ConvSpec,
    DenseSpec,
    ElementwiseSpec,
    LayoutSpec,
    PoolSpec,
    Precision,
    ScaleSpec,
    channel_blocks,
    storage,
    stored_bytes,
)

__all__ = [
    "FLOAT_BYTES",
    "NONE",
    "PRECISIONS",
    "RELU",
    "RELU6",
    "Activation",
    "ConvSpec",
    "DenseSpec",
    "DepthwiseSqueezeSpec",
    "ElementwiseSpec",
    "ExciteSpec",
    "Joint",
    "LayoutSpec",
    "PoolSpec",
    "Precision",
    "ScaleSpec",
    "ScaledSpec",
    "SeparableSpec",
    "Spec",
    "SqueezeSpec",
    "channel_blocks",
    "from_json",
    "storage",
    "stored_bytes",
    "to_json",
]

Spec: TypeAlias = ConvSpec | DenseSpec | PoolSpec | ScaleSpec | ElementwiseSpec | LayoutSpec | Joint
_CLASSES: Mapping[str, type] = {
    cls.__name__: cls
    for cls in (
        ConvSpec,
        SeparableSpec,
        DenseSpec,
        PoolSpec,
        ScaleSpec,
        ScaledSpec,
        SqueezeSpec,
        DepthwiseSqueezeSpec,
        ExciteSpec,
        ElementwiseSpec,
        LayoutSpec,
    )
}


def to_json(spec: Spec) -> str:
    """Stable text form: equal specs give equal text. Infinity is written as in Python's json."""
    return json.dumps({"spec": type(spec).__name__, **_fields(spec)}, sort_keys=True)


def _fields(spec: Spec) -> dict[str, Any]:
    """All fields; float32 is not said, so that it keeps the text it had as the only precision."""
    fields = dataclasses.asdict(spec)
    _drop_float32(fields)
    return fields


def _drop_float32(fields: dict[str, Any]) -> None:
    if fields.get("precision") == "float32":
        del fields["precision"]
        fields.pop("float32_output", None)
    for value in fields.values():
        if isinstance(value, dict):
            _drop_float32(value)


def from_json(text: str) -> Spec:
    """Inverse of :func:`to_json`; raises ``ValueError`` on anything else."""
    data: Any = json.loads(text)
    cls = _CLASSES.get(data.pop("spec", "")) if isinstance(data, dict) else None
    if cls is None:
        raise ValueError(f"not an operator specification: {text[:80]}")
    return _instance(cls, data)


_PARTS: Mapping[str, type] = {  # fields that are dataclasses themselves
    "activation": Activation,
    "depthwise": ConvSpec,
    "pointwise": ConvSpec,
    "scale": ScaleSpec,
    "pool": PoolSpec,
    "squeeze": SqueezeSpec,
    **dict.fromkeys(("dense", "first", "second"), DenseSpec),
}


def _instance(cls: type, data: dict[str, Any]) -> Any:
    fields: dict[str, Any] = {}
    for key, value in data.items():
        part = _PARTS.get(key)
        if part is not None and isinstance(value, dict):
            value = _instance(part, value)
        fields[key] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**fields)
    except TypeError as error:
        raise ValueError(f"not a {cls.__name__}: {error}") from None
