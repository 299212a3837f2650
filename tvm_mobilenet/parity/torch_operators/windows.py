"""Convolution and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from tvm_mobilenet.parity.torch_operators.call import Call, Unsupported, Value, interleave, operator


@operator("Conv")
def _conv(call: Call) -> Value:
    x, weight, bias = call[0], call[1], call.optional(2)
    window = _Window(call, weight.shape[2:])
    convolve = _by_rank("conv", window.rank)
    return convolve(
        window.pad(x, 0.0),
        weight,
        bias,
        stride=window.strides,
        dilation=window.dilations,
        groups=call.attribute("group", 1),
    )


@operator("MaxPool")
def _max_pool(call: Call) -> Value:
    window = _Window(call, call.attribute("kernel_shape"))
    pool = _by_rank("max_pool", window.rank)
    padded = window.pad(call[0], -math.inf)
    return pool(padded, window.kernel, stride=window.strides, dilation=window.dilations)


@operator("AveragePool")
def _average_pool(call: Call) -> Value:
    x = call[0]
    window = _Window(call, call.attribute("kernel_shape"))
    if any(step != 1 for step in window.dilations):
        raise Unsupported("with dilation has no reference in PyTorch")
    pool = _by_rank("avg_pool", window.rank)
    # What counts towards the divisor: the picture; with count_include_pad its padding as well,
    # but never what ceil_mode adds behind it.
    counted = torch.ones_like(x)
    if call.attribute("count_include_pad", 0):
        counted = functional.pad(counted, window.torch_pads, value=1.0)
        counted = functional.pad(counted, window.torch_ceil_pads(x), value=0.0)
    else:
        counted = window.pad(counted, 0.0)
    total, share = (
        pool(v, window.kernel, stride=window.strides) for v in (window.pad(x, 0.0), counted)
    )
    return total / share


@operator("GlobalAveragePool")
def _global_average_pool(call: Call) -> Value:
    return call[0].mean(dim=list(range(2, call[0].dim())), keepdim=True)


@operator("GlobalMaxPool")
def _global_max_pool(call: Call) -> Value:
    return call[0].amax(dim=list(range(2, call[0].dim())), keepdim=True)


class _Window:
    """Kernel, strides, dilations and padding of a convolution or pooling node."""

    def __init__(self, call: Call, kernel: Sequence[int]) -> None:
        self.kernel = list(kernel)
        self.rank = len(self.kernel)
        self.strides: list[int] = call.attribute("strides", [1] * self.rank)
        self.dilations: list[int] = call.attribute("dilations", [1] * self.rank)
        self._ceil = bool(call.attribute("ceil_mode", 0))
        size = call[0].shape[2:]
        auto = call.attribute("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            before, after = self._same_pads(size, more_behind=auto == "SAME_UPPER")
        else:
            pads = call.attribute("pads", [0] * 2 * self.rank)
            pads = pads if auto == "NOTSET" else [0] * 2 * self.rank
            before, after = pads[: self.rank], pads[self.rank :]
        self._before, self._after = before, after

    @property
    def torch_pads(self) -> list[int]:
        """The node's padding in PyTorch's order: last axis first, before and after."""
        return interleave(self._before, self._after)

    def torch_ceil_pads(self, x: Value) -> list[int]:
        """What ceil_mode adds behind the padded input, in PyTorch's order."""
        return interleave([0] * self.rank, self._ceil_extra(x.shape[2:]))

    def pad(self, x: Value, value: float) -> Value:
        """x with the node's padding and what ceil_mode needs behind it."""
        if any(pad < 0 for pad in (*self._before, *self._after)):
            raise Unsupported("with negative padding has no reference in PyTorch")
        padded = functional.pad(x, self.torch_pads, value=value)
        return functional.pad(padded, self.torch_ceil_pads(x), value=value)

    def _extents(self) -> list[int]:
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    def _same_pads(self, size: Sequence[int], *, more_behind: bool) -> tuple[list[int], list[int]]:
        total = [
            max((-(-n // stride) - 1) * stride + extent - n, 0)
            for n, stride, extent in zip(size, self.strides, self._extents(), strict=True)
        ]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        return (less, more) if more_behind else (more, less)

    def _ceil_extra(self, size: Sequence[int]) -> list[int]:
        """Missing at the end for the last, partial window; none that would start in the padding."""
        if not self._ceil:
            return [0] * self.rank
        extra = []
        for i, extent in enumerate(self._extents()):
            whole = size[i] + self._before[i] + self._after[i]
            stride = self.strides[i]
            windows = -(-(whole - extent) // stride) + 1
            if (windows - 1) * stride >= size[i] + self._before[i]:
                windows -= 1
            extra.append(max((windows - 1) * stride + extent - whole, 0))
        return extra


def _by_rank(name: str, rank: int) -> Callable[..., Value]:
    if rank not in (1, 2, 3):
        raise Unsupported(f"over {rank} axes has no reference in PyTorch")
    function: Callable[..., Value] = getattr(functional, f"{name}{rank}d")
    return function
