"""The reference: a model in PyTorch, at float32 and at float64.

The judge is the user's own PyTorch module where there is one; a model that came as ONNX is
evaluated by `OnnxInTorch`, which shares no code with the importer or the compiler.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.parity.judge import SAMPLES
from tvm_mobilenet.parity.samples import Sample
from tvm_mobilenet.parity.torch_operators import (
    OPERATORS,
    Call,
    Unsupported,
    Value,
    attributes_of,
    tensor_of,
)

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from tvm_mobilenet.frontend import ImportedModel

Peer = Callable[[Mapping[str, "np.ndarray"]], Mapping[str, "np.ndarray"]]  # inputs to outputs


def evaluate(
    imported: ImportedModel,
    inputs: Sequence[Mapping[str, np.ndarray]],
    *,
    kinds: Sequence[str] | None = None,
    peer: Peer | None = None,
) -> list[Sample]:
    """PyTorch's outputs at float32 and float64 for each mapping of inputs by name.

    kinds: of each of the inputs (None: all `SAMPLES`). peer: another float32 implementation of the
    model, whose outputs are noted beside (see `parity.onnxruntime_outputs`).
    """
    module = imported.module if imported.module is not None else OnnxInTorch(imported.onnx)
    single = copy.deepcopy(module).float().eval()
    double = copy.deepcopy(module).double().eval()
    names = [info.name for info in imported.outputs]

    def outputs(model: nn.Module, values: Mapping[str, np.ndarray], dtype: torch.dtype) -> Any:
        arguments = [torch.tensor(values[info.name], dtype=dtype) for info in imported.inputs]
        with torch.inference_mode():
            results = torch.utils._pytree.tree_leaves(model(*arguments))
        if len(results) != len(names):
            raise InputError(
                f"{imported.name}: PyTorch gives {len(results)} outputs, the model has {len(names)}"
            )
        return {name: result.numpy() for name, result in zip(names, results, strict=True)}

    return [
        Sample(
            values,
            outputs(single, values, torch.float32),
            outputs(double, values, torch.float64),
            kind=kind,
            onnxruntime=None if peer is None else peer(values),
        )
        for values, kind in zip(inputs, kinds or [SAMPLES] * len(inputs), strict=True)
    ]


def onnxruntime_outputs(imported: ImportedModel) -> Peer | None:
    """ONNX Runtime on the model, on one thread; None where it is missing or refuses the model."""
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # fatal: what it refuses is said by the result
    try:
        session = onnxruntime.InferenceSession(
            imported.onnx.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except (errors.InvalidGraph, errors.NotImplemented, errors.Fail, errors.InvalidArgument):
        return None
    names = [info.name for info in imported.outputs]
    return lambda values: dict(zip(names, session.run(names, dict(values)), strict=True))


class OnnxInTorch(nn.Module):
    """An ONNX graph of the MobileNet family as a PyTorch module.

    Takes the graph's inputs in order and returns its outputs as a tuple. `.double()` makes it
    compute at float64: every float constant and cast follows the module's precision.
    Raises InputError naming node, operator and opset for anything it does not know.
    """

    precision: torch.Tensor

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        import onnx
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
        self.opset = next(
            (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0
        )
        self.register_buffer("precision", torch.zeros(()))
        self._buffer_of: dict[str, str] = {}
        for number, tensor in enumerate(model.graph.initializer):
            self._buffer_of[tensor.name] = f"constant_{number}"
            self.register_buffer(f"constant_{number}", tensor_of(tensor))
        self.input_names = [
            entry.name for entry in model.graph.input if entry.name not in self._buffer_of
        ]
        self.output_names = [entry.name for entry in model.graph.output]
        self.initializers = list(model.graph.initializer)
        self._nodes = list(model.graph.node)
        for number, node in enumerate(self._nodes):
            if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
                raise self._error(number, "has no reference in PyTorch")
        self._producer = {
            name: number for number, node in enumerate(self._nodes) for name in node.output if name
        }

    def forward(self, *inputs: Value) -> tuple[Value, ...]:
        """The graph's outputs for its inputs, both in the graph's order."""
        given = dict(zip(self.input_names, inputs, strict=True))
        values = self.values(given, self.output_names)
        return tuple(values[name] for name in self.output_names)

    def values(self, given: Mapping[str, Value], wanted: Iterable[str]) -> dict[str, Value]:
        """Any of the graph's values by name, worked out from any others that lead to them.

        Nothing behind a given value is evaluated; those not wanted are dropped after their last
        use. Raises InputError naming a node that cannot be evaluated, KeyError for a value that
        does not follow from what is given.
        """
        kept = set(wanted)
        values: dict[str, Value] = {
            name: getattr(self, buffer) for name, buffer in self._buffer_of.items()
        }
        values |= given
        numbers = self._between(given, kept)
        last_use = {name: i for i in numbers for name in self._nodes[i].input}
        for number in numbers:
            node = self._nodes[number]
            arguments = [values[name] if name else None for name in node.input]
            call = Call(arguments, attributes_of(node), self.opset, self.precision.dtype)
            try:
                results = OPERATORS[node.op_type](call)
            except Unsupported as error:
                raise self._error(number, str(error)) from error
            except (RuntimeError, IndexError, ValueError) as error:
                raise self._error(number, f"cannot be evaluated ({error})") from error
            if isinstance(results, torch.Tensor):
                results = (results,)
            # An optional second output (Dropout's mask) may be missing: nothing may use it.
            for name, result in zip(node.output, results, strict=False):
                values.setdefault(name, result)  # what is given stays
            for name in node.input:
                if last_use.get(name) == number and name not in kept:
                    values.pop(name, None)
        return {name: values[name] for name in kept}

    def has_value(self, name: str) -> bool:
        """Whether the graph has a value of that name."""
        return name in self._producer or name in self._buffer_of or name in self.input_names

    def nodes_between(self, given: Iterable[str], wanted: Iterable[str]) -> list[onnx.NodeProto]:
        """The nodes by which wanted values follow from given ones, in order."""
        return [self._nodes[number] for number in self._between(given, wanted)]

    def _between(self, given: Iterable[str], wanted: Iterable[str]) -> list[int]:
        known = {*given, *self._buffer_of, ""}
        numbers: set[int] = set()
        missing = [name for name in wanted if name not in known]
        while missing:
            number = self._producer.get(missing.pop())
            if number is not None and number not in numbers:
                numbers.add(number)
                missing += [name for name in self._nodes[number].input if name not in known]
        return sorted(numbers)

    def _error(self, number: int, problem: str) -> InputError:
        node = self._nodes[number]
        name = f"'{node.name}'" if node.name else f"number {number}"
        domain = f"{node.domain}." if node.domain else ""
        return InputError(
            f"node {name}: operator {domain}{node.op_type} (opset {self.opset}) {problem}; "
            "parity needs the model as a PyTorch module or without it"
        )
