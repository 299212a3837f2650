"""Operators that move, pick, convert or make values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from tvm_mobilenet.parity.torch_operators.call import (
    Call,
    Unsupported,
    Value,
    interleave,
    operator,
    tensor_of,
)


@operator("Flatten")
def _flatten(call: Call) -> Value:
    axis = call.attribute("axis", 1) % (call[0].dim() + 1)
    return call[0].reshape(math.prod(call[0].shape[:axis]), -1)


@operator("Reshape")
def _reshape(call: Call) -> Value:
    shape = [int(n) for n in call[1].tolist()]
    if not call.attribute("allowzero", 0):
        shape = [call[0].shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return call[0].reshape(shape)


@operator("Squeeze")
def _squeeze(call: Call) -> Value:
    axes = call.integers(1, "axes")
    return call[0].squeeze() if axes is None else call[0].squeeze(tuple(axes))


@operator("Unsqueeze")
def _unsqueeze(call: Call) -> Value:
    result = call[0]
    axes = call.integers(1, "axes") or []
    rank = result.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        result = result.unsqueeze(axis)
    return result


@operator("Transpose")
def _transpose(call: Call) -> Value:
    return call[0].permute(call.attribute("perm", list(range(call[0].dim()))[::-1]))


@operator("Concat")
def _concat(call: Call) -> Value:
    return torch.cat([call[i] for i in range(len(call.arguments))], dim=call.attribute("axis"))


@operator("Split")
def _split(call: Call) -> Sequence[Value]:
    axis = call.attribute("axis", 0)
    parts = call.integers(1, "split")
    if parts is None:
        count = call.attribute("num_outputs")
        if count is None:
            raise Unsupported("without sizes has no reference in PyTorch")
        return torch.split(call[0], -(-call[0].shape[axis] // count), dim=axis)
    return torch.split(call[0], parts, dim=axis)


@operator("Expand")
def _expand(call: Call) -> Value:
    shape = torch.broadcast_shapes(call[0].shape, tuple(int(n) for n in call[1].tolist()))
    return call[0].expand(shape)


@operator("Pad")
def _pad(call: Call) -> Value:
    x, pads = call[0], call.integers(1, "pads") or []
    axes = call.integers(3, "axes")
    axes = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]
    before, after = [0] * x.dim(), [0] * x.dim()
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[len(axes) + i]
    mode = call.attribute("mode", "constant")
    if mode == "constant":
        value = call.optional(2)
        fill = 0.0 if value is None else float(value)
        return functional.pad(x, interleave(before, after), value=fill)
    if any((*before[:2], *after[:2])):
        raise Unsupported(f"in mode {mode} over batch or channels has no reference in PyTorch")
    torch_mode = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode]
    return functional.pad(x, interleave(before[2:], after[2:]), mode=torch_mode)


@operator("Shape")
def _shape(call: Call) -> Value:
    shape = list(call[0].shape)[call.attribute("start", 0) : call.attribute("end")]
    return torch.tensor(shape, dtype=torch.int64)


@operator("Gather")
def _gather(call: Call) -> Value:
    data, axis = call[0], call.attribute("axis", 0) % call[0].dim()
    indices = call[1] % data.shape[axis]
    picked = data.index_select(axis, indices.flatten())
    return picked.reshape(*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])


@operator("Slice")
def _slice(call: Call) -> Value:
    starts, ends = call.integers(1, "starts") or [], call.integers(2, "ends") or []
    axes, steps = call.integers(3, "axes"), call.integers(4, "steps")
    result = call[0]
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = axes[i] if axes else i, steps[i] if steps else 1
        chosen = range(result.shape[axis])[start:end:step]
        result = result.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64))
    return result


@operator("Cast")
def _cast(call: Call) -> Value:
    return call[0].to(torch_type(call.attribute("to"), call.precision))


@operator("Constant")
def _constant(call: Call) -> Value:
    for name, value in call.attributes.items():
        if name == "value":
            tensor = tensor_of(value)
        elif name in ("value_float", "value_floats", "value_int", "value_ints"):
            tensor = torch.tensor(value)
        else:
            break
        return tensor.to(call.precision) if tensor.is_floating_point() else tensor
    raise Unsupported("of this kind has no reference in PyTorch")


@operator("ConstantOfShape")
def _constant_of_shape(call: Call) -> Value:
    value = call.attribute("value")
    fill = torch.zeros(1) if value is None else tensor_of(value)
    dtype = call.precision if fill.is_floating_point() else fill.dtype
    return torch.full([int(n) for n in call[0].tolist()], fill.item(), dtype=dtype)


def torch_type(onnx_type: int, precision: torch.dtype) -> torch.dtype:
    import onnx

    name = onnx.helper.tensor_dtype_to_np_dtype(onnx_type).name
    if name in ("float16", "float32", "float64", "bfloat16"):
        return precision
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise Unsupported(f"to {name} has no reference in PyTorch")
    return dtype
