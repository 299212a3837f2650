"""What an operator of a compiled network is called, and what kind of layer it is."""

from __future__ import annotations

from collections.abc import Sequence

KINDS = (
    *("stem", "depthwise", "pointwise", "separable", "conv"),  # separable: both in one function
    *("squeeze-excite", "dense", "pool", "other"),
)


def layer_name(onnx_nodes: Sequence[str], symbol: str) -> str:
    """The first ONNX node that an operator stands for, else its function's name."""
    return onnx_nodes[0] if onnx_nodes else symbol


def layer_kinds(operators: Sequence[str]) -> list[str]:
    """The layer kind, of KINDS, of each operator, given what the compiler calls them in order.

    Squeeze-excite is a pooling, dense layers ("squeeze" and "excite" where they are joined), and
    what the compiler gives that name: their product with a feature map, or, where that is "scaled",
    the first part of a pointwise convolution; what follows a pooling without one is the network's
    head.
    """
    kinds = [kind if kind in KINDS else "other" for kind in operators]
    pooling = None
    for i, operator in enumerate(operators):
        if operator in ("pool", "squeeze"):
            pooling = i
        elif operator == "depthwise-squeeze":
            kinds[i], pooling = "depthwise", i + 1
        elif operator == "squeeze-excite" and pooling is not None:
            kinds[pooling : i + 1] = ["squeeze-excite"] * (i + 1 - pooling)
            pooling = None
        elif operator == "scaled":
            kinds[i] = "pointwise"
            if pooling is not None:
                kinds[pooling:i] = ["squeeze-excite"] * (i - pooling)
            pooling = None
        elif operator not in ("dense", "elementwise", "excite"):
            pooling = None
    return kinds
