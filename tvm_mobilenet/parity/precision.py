"""What PyTorch computes at a reduced precision: the measure for tf32 and float16.

At float32 a network may err three times as much as PyTorch at float32 does. At tf32 and float16
the same rule holds with the error of PyTorch computing at that precision: the model's own graph
(`reference.OnnxInTorch`, which shares no code with the importer or the compiler) at float32, with
values rounded where the compiled network rounds them:

- float16: every tensor that an operator of ours writes, and every weight that one reads;
- operators on tensor cores: both factors of the product, to float16 or to tf32, which has 10 bits
  of mantissa in float32's range.

Of the compiled network only that is taken: which tensors and nodes. A wrong number in it changes
nothing here. Biases, sums and activation functions are float32 in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import ParityError
from tvm_mobilenet.parity.judge import SAMPLES
from tvm_mobilenet.parity.samples import Sample

if TYPE_CHECKING:
    import numpy as np
    import torch

    from tvm_mobilenet.compiler_pass.pipeline import Compiled
    from tvm_mobilenet.frontend import ImportedModel

FLOAT16_MAX = 65504.0
TENSOR_CORES = "cuda-tensor-"  # how the names of their schedules begin
_PRODUCTS = ("Conv", "Gemm", "MatMul")  # operators with a weight as second input
_TF32_DROPPED = 13  # bits of float32's mantissa that tf32 has not


@dataclass(frozen=True)
class RoundingPoints:
    """Where a compiled network rounds.

    stored: ONNX values that are float16 in memory. weights: nodes whose weight is. factors: nodes
    whose product runs on tensor cores.
    """

    stored: frozenset[str]
    weights: frozenset[str]
    factors: frozenset[str]


def at_precision(
    samples: Sequence[Sample], imported: ImportedModel, compiled: Compiled
) -> list[Sample]:
    """`simulated` at the precision of a compiled network."""
    operators = [dataclasses.asdict(operator) for operator in compiled.operators]
    return simulated(samples, imported, compiled.target.precision, operators)


def simulated(
    samples: Sequence[Sample],
    imported: ImportedModel,
    precision: str,
    operators: Sequence[Mapping[str, Any]],
) -> list[Sample]:
    """The samples with PyTorch's outputs at `precision` where those at float32 were.

    Raises ParityError when a tensor does not fit float16 on ordinary inputs.
    """
    if precision == "float32":
        return list(samples)
    model = _Rounded(imported, precision, rounding_points(operators))
    found = []
    for sample in samples:
        outputs, beyond = model.outputs(sample.inputs)
        if beyond and sample.kind == SAMPLES:
            raise ParityError(
                f"float16 overflows: '{beyond[0][0]}' reaches {beyond[0][1]:.3g}, float16 ends at "
                f"{FLOAT16_MAX:g}; use --precision tf32 or float32"
            )
        found.append(dataclasses.replace(sample, float32=outputs))
    return found


def rounding_points(operators: Sequence[Mapping[str, Any]]) -> RoundingPoints:
    """Of a network whose operators are given as the manifest lists them."""
    half = [op for op in operators if (op["result"] or {}).get("dtype") == "float16"]
    own = [op for op in operators if op["kind"] != "other"]
    tensor = [op for op in own if op["schedule"].startswith(TENSOR_CORES)]
    return RoundingPoints(
        stored=frozenset(op["result"]["tensor"] for op in half) - {""},
        # float16 is a whole network's: a dense layer that writes float32 reads it, too
        weights=frozenset(node for op in own if half for node in op["onnx_nodes"]),
        factors=frozenset(node for op in tensor for node in op["onnx_nodes"]),
    )


class _Rounded:
    """The model's graph in PyTorch at float32, rounding as a compiled network does."""

    def __init__(self, imported: ImportedModel, precision: str, points: RoundingPoints) -> None:
        from tvm_mobilenet.parity.reference import OnnxInTorch

        self._imported, self._points = imported, points
        self._module = OnnxInTorch(imported.onnx).float().eval()
        self._round: Callable[[torch.Tensor], torch.Tensor] = (
            _to_float16 if precision == "float16" else _to_tf32
        )

    def outputs(
        self, inputs: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], list[tuple[str, float]]]:
        """The outputs by name; what overflowed, with its largest value, in order."""
        import torch

        known = {name: torch.tensor(value) for name, value in inputs.items()}
        beyond: list[tuple[str, float]] = []

        def value(name: str) -> torch.Tensor:
            if name not in known:
                known[name] = self._module.values(known, {name})[name]
            return known[name]

        def rounded(name: str) -> torch.Tensor:
            exact = value(name)
            result = self._round(exact)
            if (torch.isinf(result) & torch.isfinite(exact)).any():
                finite = exact[torch.isfinite(exact)]
                beyond.append((name, float(finite.abs().max())))
            return result

        wanted = [info.name for info in self._imported.outputs]
        with torch.inference_mode():
            for name in self._points.stored & known.keys():  # inputs in another layout
                known[name] = rounded(name)
            for node in self._module.nodes_between(known, wanted):
                if node.op_type in _PRODUCTS:
                    factors = [node.input[1]] if node.name in self._points.weights else []
                    if node.name in self._points.factors:
                        depthwise = _groups(node) > 1  # in one kernel with the product, not of it
                        factors = factors if depthwise else list(node.input[:2])
                    if factors:
                        given = {**known, **{name: rounded(name) for name in factors}}
                        output = node.output[0]
                        known[output] = self._module.values(given, {output})[output]
                for name in self._points.stored.intersection(node.output):
                    known[name] = rounded(name)
            return {name: value(name).numpy() for name in wanted}, beyond


def _groups(node: Any) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)


def _to_float16(values: torch.Tensor) -> torch.Tensor:
    """To the nearest float16, ties to even, as the device converts; still float32."""
    return values.half().float()


def _to_tf32(values: torch.Tensor) -> torch.Tensor:
    """To the nearest tf32, ties away from zero, as cvt.rna.tf32.f32 does; still float32."""
    import torch

    bits = values.contiguous().view(torch.int32)
    nearest = (bits + (1 << (_TF32_DROPPED - 1))) & -(1 << _TF32_DROPPED)
    return torch.where(torch.isfinite(values), nearest.view(torch.float32), values)
