"""Each operator's output against the reference's same tensor: which layer is wrong.

*Propagated*: the network runs as it is, and errors grow through it. *Isolated*: every operator is
fed the reference's inputs (see `compiler_pass.traced_entry`), so that none inherits another's
error; the first that fails is at fault. The reference is the ONNX graph in PyTorch at float64. What
is allowed is in both ways a multiple of what PyTorch at float32 errs at the same tensor of the
running network, or before it, where PyTorch is by chance more exact in a small one: by itself an
operator may sum in another order than PyTorch (a dense layer of 1280 inputs errs 7 times as much as
PyTorch's, 50 times less than the network up to there).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.parity.judge import FACTOR, Verdict, verdict
from tvm_mobilenet.parity.layout import from_blocked, to_blocked

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from tvm_mobilenet.frontend import ImportedModel

# (inputs by name, trace, feed) -> trace: the traced entry, wherever it runs
Trace = Callable[[Mapping[str, "np.ndarray"], "np.ndarray", "np.ndarray"], "np.ndarray"]


@dataclass(frozen=True)
class OperatorParity:
    """One operator's verdicts; None, with a note, where its result is no tensor of the model.

    index: its place in the order of execution. tensor: the ONNX value that it computes.
    """

    index: int
    symbol: str
    kind: str
    shape: str
    onnx_nodes: tuple[str, ...]
    tensor: str
    propagated: Verdict | None
    isolated: Verdict | None
    note: str = ""

    @property
    def verdict(self) -> str:
        """In a word: passed, AT FAULT (wrong by itself), FAILED (only in the network), or -."""
        if self.isolated is None or self.propagated is None:
            return "-"
        if not self.isolated.passed:
            return "AT FAULT"
        return "passed" if self.propagated.passed else "FAILED"

    @property
    def label(self) -> str:
        """How a message calls it."""
        nodes = f" ({', '.join(self.onnx_nodes)})" if self.onnx_nodes else ""
        return f"operator {self.index} {self.symbol}{nodes}"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "index": self.index,
            "symbol": self.symbol,
            "kind": self.kind,
            "shape": self.shape,
            "onnx_nodes": list(self.onnx_nodes),
            "tensor": self.tensor,
            "propagated": self.propagated and self.propagated.to_json(),
            "isolated": self.isolated and self.isolated.to_json(),
            "note": self.note,
        }


@dataclass(frozen=True)
class PerLayerReport:
    """Every operator in the order of execution, over all samples."""

    operators: tuple[OperatorParity, ...]
    inputs: Sequence[Mapping[str, np.ndarray]] = field(repr=False, compare=False)

    @property
    def samples(self) -> int:
        """How many inputs it was judged on."""
        return len(self.inputs)

    @property
    def at_fault(self) -> tuple[OperatorParity, ...]:
        """Those that compute wrongly from right inputs."""
        return tuple(op for op in self.operators if op.isolated and not op.isolated.passed)

    @property
    def first_wrong(self) -> OperatorParity | None:
        """Where the running network first leaves the reference, if it does."""
        wrong = (op for op in self.operators if op.propagated and not op.propagated.passed)
        return next(wrong, None)

    @property
    def passed(self) -> bool:
        """Whether no operator is wrong in either way."""
        return not self.at_fault and self.first_wrong is None

    def summary(self) -> str:
        """The one line that matters."""
        if self.at_fault:
            first = self.at_fault[0]
            assert first.isolated is not None
            others = len(self.at_fault) - 1
            more = f"; {others} more at fault" if others else ""
            return f"{first.label} is at fault: '{first.tensor}': {first.isolated.problem}{more}"
        if (first_wrong := self.first_wrong) is not None:
            assert first_wrong.propagated is not None
            return (
                f"{first_wrong.label} is right by itself but wrong in the network: "
                f"'{first_wrong.tensor}': {first_wrong.propagated.problem}"
            )
        compared = [op for op in self.operators if op.isolated]
        worst = max((op.isolated.ratio for op in compared if op.isolated), default=0.0)
        return (
            f"all {len(compared)} of {len(self.operators)} operators with a tensor of the model "
            f"agree; by themselves at most {worst:.2f} times PyTorch float32's error in the "
            f"running network (allowed {FACTOR:g})"
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "state": "passed" if self.passed else "failed",
            "summary": self.summary(),
            "samples": self.samples,
            "operators": [operator.to_json() for operator in self.operators],
        }


def per_layer(
    trace: Trace,
    operators: Sequence[Mapping[str, Any]],
    imported: ImportedModel,
    inputs: Sequence[Mapping[str, np.ndarray]],
) -> PerLayerReport:
    """Judge every operator on all inputs.

    operators: as the manifest lists them (`compiler_pass.pipeline.OperatorReport` as a mapping).
    Raises InputError for a bundle without traced results, or a model that does not go with it.
    """
    if any(operator.get("result") is None for operator in operators):
        raise InputError("does not say what its operators compute; build it again")
    reference = Reference(imported, [operator["result"]["tensor"] for operator in operators])
    for operator in operators:
        reference.check(operator["result"])
    runs = [_Run(trace, operators, reference, values) for values in inputs]
    judged: list[OperatorParity] = []
    worst, worst_error = "", 0.0  # the tensor so far in which PyTorch at float32 errs most
    for index, operator in enumerate(operators):
        row = _judged(index, operator, reference, runs, worst)
        if row.propagated is not None and row.propagated.torch_relative_l2 > worst_error:
            worst, worst_error = row.tensor, row.propagated.torch_relative_l2
        judged.append(row)
    return PerLayerReport(tuple(judged), inputs)


class Reference:
    """The model's tensors in PyTorch, all of them or one from those before it."""

    def __init__(self, imported: ImportedModel, tensors: Sequence[str]) -> None:
        """tensors: the ONNX value that each operator computes, in order; "" for none."""
        import torch

        from tvm_mobilenet.parity.reference import OnnxInTorch

        self.imported = imported
        self.tensors = list(tensors)
        module = OnnxInTorch(imported.onnx)
        self._modules = {
            torch.float32: copy.deepcopy(module).float().eval(),
            torch.float64: copy.deepcopy(module).double().eval(),
        }
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.inputs = {info.name: info.shape for info in imported.inputs}

    def check(self, result: Mapping[str, Any]) -> None:
        """InputError when the model has no such tensor."""
        module = next(iter(self._modules.values()))
        if result["tensor"] and not module.has_value(result["tensor"]):
            raise InputError(
                f"{self.imported.source} has no value '{result['tensor']}': the bundle was built "
                "from another model"
            )

    def all(self, values: Mapping[str, np.ndarray], double: bool) -> dict[str, np.ndarray]:
        """Every tensor for the network's inputs."""
        return self._evaluate(values, {name for name in self.tensors if name}, double)

    def one(self, index: int, known: Mapping[str, np.ndarray]) -> np.ndarray:
        """What operator `index` should make of the tensors before it, `known`; float64."""
        name = self.tensors[index]
        before = self.before(index)
        if name in before:  # a change of layout
            return known[name].astype("float64")
        return self._evaluate({other: known[other] for other in before}, {name}, True)[name]

    def model_of(self, index: int, known: Mapping[str, np.ndarray]) -> onnx.ModelProto:
        """Operator `index` as an ONNX model of its own, from the tensors before it that it reads.

        Raises InputError for one that only changes the layout of a tensor.
        """
        from onnx import TensorProto, helper

        module = next(iter(self._modules.values()))
        name = self.tensors[index]
        nodes = module.nodes_between(self.before(index), [name])
        if not nodes:
            raise InputError(f"operator {index} only changes the layout of '{name}'")
        read = {value for node in nodes for value in node.input}
        made = {value for node in nodes for value in node.output}
        inputs = sorted((read - made) & self.before(index))
        graph = helper.make_graph(
            nodes,
            "operator",
            [
                helper.make_tensor_value_info(value, TensorProto.FLOAT, known[value].shape)
                for value in inputs
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
            [tensor for tensor in module.initializers if tensor.name in read],
        )
        opset = helper.make_opsetid("", module.opset)
        return helper.make_model(
            graph, opset_imports=[opset], ir_version=self.imported.onnx.ir_version
        )

    def before(self, index: int) -> set[str]:
        """The tensors that exist before operator `index` runs."""
        return {*self.inputs, *self.tensors[:index]} - {""}

    def _evaluate(
        self, values: Mapping[str, np.ndarray], wanted: set[str], double: bool
    ) -> dict[str, np.ndarray]:
        import torch

        dtype = torch.float64 if double else torch.float32
        given = {name: torch.tensor(array, dtype=dtype) for name, array in values.items()}
        with torch.inference_mode():
            found = self._modules[dtype].values(given, wanted)
        return {name: value.numpy() for name, value in found.items()}


class _Run:
    """One sample: the reference's tensors, and the two traces."""

    def __init__(
        self,
        trace: Trace,
        operators: Sequence[Mapping[str, Any]],
        reference: Reference,
        inputs: Mapping[str, np.ndarray],
    ) -> None:
        import numpy as np

        results = [operator["result"] for operator in operators]
        places = max((r["offset"] + r["elements"] for r in results), default=0)
        empty = np.zeros(max(places, 1), np.float32)
        feed = np.zeros(max(len(results), 1), np.int64)
        self.exact, self.torch32 = (reference.all(inputs, double) for double in (True, False))
        # what float32 can hold of the reference: the isolated operators' inputs
        self.rounded = {name: value.astype(np.float32) for name, value in self.exact.items()}
        for known in (self.exact, self.torch32, self.rounded):
            known.update(inputs)
        self.propagated = trace(inputs, empty, feed)
        fed = empty.copy()
        for number, result in enumerate(results):
            if result["tensor"] and result["elements"]:
                place = slice(result["offset"], result["offset"] + result["elements"])
                fed[place] = to_blocked(self.rounded[result["tensor"]], result["lanes"])
                feed[number] = 1
        self.isolated = trace(inputs, fed, feed)

    def with_torch_error(self, name: str, exact: np.ndarray) -> np.ndarray:
        """A tensor with the error that PyTorch at float32 makes there in the running network."""
        import numpy as np

        theirs, reference = self.torch32[name], self.exact[name]
        finite = np.isfinite(exact) & np.isfinite(theirs) & np.isfinite(reference)
        with np.errstate(invalid="ignore"):  # infinity less infinity, which is not taken
            return np.where(finite, exact + (theirs - reference), theirs)


def _judged(
    index: int,
    operator: Mapping[str, Any],
    reference: Reference,
    runs: Sequence[_Run],
    worst: str,
) -> OperatorParity:
    result = operator["result"]
    name, shape, lanes = result["tensor"], result["shape"], result["lanes"]
    propagated = isolated = None
    note = ""
    if not name or not result["elements"]:
        note = "not compared: its result is no float32 tensor of the model"
    else:
        place = slice(result["offset"], result["offset"] + result["elements"])
        usual = [(run.torch32[worst], run.exact[worst]) for run in runs] if worst else []

        def judged(
            traces: Sequence[np.ndarray], torch32: Sequence[np.ndarray], exact: Sequence[np.ndarray]
        ) -> Verdict:
            got = [from_blocked(trace[place], shape, lanes) for trace in traces]
            return verdict(name, got, torch32, exact, usual=usual)

        propagated = judged(
            [run.propagated for run in runs],
            [run.torch32[name] for run in runs],
            [run.exact[name] for run in runs],
        )
        exact = [reference.one(index, run.rounded) for run in runs]
        isolated = judged(
            [run.isolated for run in runs],
            [run.with_torch_error(name, values) for run, values in zip(runs, exact, strict=True)],
            exact,
        )
    return OperatorParity(
        index,
        str(operator["symbol"]),
        str(operator["kind"]),
        str(operator["shape"]),
        tuple(operator["onnx_nodes"]),
        name,
        propagated,
        isolated,
        note,
    )
