"""What no model may ask for: refused at once, before anything takes time or memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence

import onnx

from tvm_mobilenet.errors import InputError

MAX_ELEMENTS = 2**31 - 1  # kernels count in 32 bits
# MobileNetV3-large has 300; a thousand times fewer than what exhausts a machine's patience.
MAX_NODES = 5_000
MAX_OPERANDS = 20_000
_WINDOWED = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")
_LEAST = {"kernel_shape": 1, "strides": 1, "dilations": 1, "group": 1, "pads": 0}
# The judge holds an operator's input and output at float64 and float32.
_BYTES_AN_ELEMENT = 2 * (8 + 4)


def check_size(nodes: Iterable[onnx.NodeProto], where: str) -> None:
    """InputError for a graph of more nodes, or operands, than any network of this family has."""
    operands = 0
    for count, node in enumerate(nodes, 1):
        operands += len(node.input)
        if count > MAX_NODES or operands > MAX_OPERANDS:
            raise InputError(
                f"{where}: the graph has more than {MAX_NODES} nodes or {MAX_OPERANDS} operands, "
                "the most that is built; is it a MobileNet?"
            )


def check_windows(nodes: Iterable[onnx.NodeProto], where: str) -> None:
    """InputError for kernels, strides, dilations and padding that no convolution or pool has.

    TVM checks few of them, and computes something else or divides by zero.
    """
    for node in nodes:
        if node.op_type not in _WINDOWED:
            continue
        attributes = {a.name: list(a.ints) or [a.i] for a in node.attribute if a.name in _LEAST}
        for name, values in attributes.items():
            if min(values) < _LEAST[name]:
                raise InputError(
                    f"{where}: node '{node.name}' ({node.op_type}) has {name} {values}; each must "
                    f"be at least {_LEAST[name]}"
                )
        kernel = attributes.get("kernel_shape", [])
        pads = attributes.get("pads", [])
        if node.op_type != "Conv" and len(pads) == 2 * len(kernel):
            dilations = attributes.get("dilations", [1] * len(kernel))
            extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=False)]
            if any(pad >= extent for pad, extent in zip(pads, 2 * extents, strict=False)):
                raise InputError(
                    f"{where}: node '{node.name}' ({node.op_type}) has pads {pads} for a kernel "
                    f"of {kernel}: whole windows would lie in the padding"
                )


def check_shape(shape: Sequence[int], where: str) -> None:
    """InputError for a tensor that cannot be indexed, or not be proven right in this memory.

    where: begins the message; names the tensor or its maker.
    """
    count = math.prod(shape)
    if min(shape, default=1) < 1:
        raise InputError(f"{where} has the shape {list(shape)}; each size must be at least 1")
    if count > MAX_ELEMENTS:
        raise InputError(f"{where} has {count} elements; a tensor must have 1 to {MAX_ELEMENTS}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if count * _BYTES_AN_ELEMENT > memory:
        raise InputError(
            f"{where} has {count} elements, which take "
            f"{count * _BYTES_AN_ELEMENT / 2**30:.0f} GiB to prove right; this machine has "
            f"{memory / 2**30:.0f}"
        )
