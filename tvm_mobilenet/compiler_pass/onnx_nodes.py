"""The ONNX nodes behind operators that are not ours, by the tensors that they compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from .operator_reports import OperatorReport


def name_the_rest(
    operators: Sequence[OperatorReport], model: onnx.ModelProto
) -> tuple[OperatorReport, ...]:
    """``operators``, those without ONNX nodes with theirs, as far as their result is known.

    TVM's fusion keeps no account of what it joins, so the model is walked from an operator's
    result back to the results of other operators.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    place = {node.name: i for i, node in enumerate(model.graph.node)}
    owned = {name for operator in operators for name in operator.onnx_nodes}
    computed = {operator.result.tensor for operator in operators if operator.result}

    def behind(tensor: str) -> tuple[str, ...]:
        found: set[str] = set()
        waiting = [tensor]
        while waiting:
            node = makers.get(waiting.pop())
            if node is None or node.op_type == "Constant" or node.name in owned | found:
                continue
            found.add(node.name)
            waiting += [name for name in node.input if name not in computed]
        return tuple(sorted(found, key=lambda name: place[name]))

    return tuple(
        dataclasses.replace(operator, onnx_nodes=behind(operator.result.tensor))
        if operator.result and operator.result.tensor and not operator.onnx_nodes
        else operator
        for operator in operators
    )
