"""ONNX's own backend tests: every case of an operator that we accept passes or is refused cleanly.

Each case is built twice where that makes a difference: as it is given, with every operand an input,
and as exporters write it, with all operands but the first float32 one as constants.

    pytest -s tests/parity/test_onnx_backend.py                  # prints the counts
    BACKEND_STEP=1 pytest -s tests/parity/test_onnx_backend.py   # of every case
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx.parser
import pytest
import tvm
from onnx import ModelProto, TensorProto, numpy_helper
from tvm import relax

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.compiler_pass.pipeline import compile_model
from tvm_mobilenet.errors import InputError

STEP = int(os.environ.get("BACKEND_STEP", "20"))  # one case in so many
GROUP = 24  # cases compiled side by side
# Where TVM differs for a reason that no refusal of an operator can express.
KNOWN = {
    "test_attention_4d_causal_nonpad_negative_offset_structural_empty_expanded": "TVM's maximum "
    "starts at -3.4e38: that of -inf alone is not -inf",
    "test_mod_float_edge_cases_fmod_0_float32": "x modulo 0 and modulo infinity",
    "test_mish": "log(1 + exp(x)) in float32: 1.26e-3 off where 1e-3 is allowed",
    "test_mish_expanded": "log(1 + exp(x)) in float32: 1.26e-3 off where 1e-3 is allowed",
}
REASONS = (
    "only float32 inputs can be built",
    "only float32 models can be built",
    "cannot be imported",
    "do not depend on the inputs",
    "in training mode",
    "whose size depends on data",
    "has no shape",
    "is no tensor",
    "cannot be raised to",
    "not valid ONNX",
    "it must be at least 1",
    "a tensor must have 1 to",
    "dynamic",
    "wrongly or not at all",
)
KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")


@dataclass(frozen=True)
class Case:
    """A model with inputs and the outputs that are wanted of it."""

    name: str
    model: ModelProto
    data_sets: Sequence[tuple[Sequence[Any], Sequence[Any]]]
    rtol: float
    atol: float

    @property
    def operators(self) -> frozenset[str]:
        return frozenset(node.op_type for node in self.model.graph.node)


@functools.cache
def every_case() -> list[Case]:
    """The cases of operators that the importer knows."""
    from onnx.backend.test.loader import load_model_tests
    from tvm.relax.frontend.onnx.onnx_frontend import _get_convert_map

    known = {*_get_convert_map(), "Constant", "If"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflows that the cases want
        found = [test for kind in KINDS for test in load_model_tests(kind=kind)]
    cases = []
    for test in found:
        model = test.model or onnx.load(Path(test.model_dir) / "model.onnx")
        sets = [tuple(map(arrays, data)) for data in test.data_sets or ()]
        case = Case(test.name, model, sets, test.rtol, test.atol)
        domains = {node.domain for node in model.graph.node}
        if case.operators <= known and domains <= {"", "ai.onnx"}:
            cases.append(case if sets else with_data(case, Path(test.model_dir)))
    return cases


def arrays(values: Sequence[Any]) -> list[Any]:
    """The values; those of types that numpy lacks come as protobuf."""
    return [
        numpy_helper.to_array(value) if isinstance(value, TensorProto) else value
        for value in values
    ]


def with_data(case: Case, directory: Path) -> Case:
    """The case with the inputs and outputs that lie beside its model."""
    sets = []
    for folder in sorted(directory.glob("test_data_set_*")):
        inputs, outputs = (
            [
                numpy_helper.to_array(onnx.load_tensor(folder / f"{kind}_{i}.pb"))
                for i in range(len(list(folder.glob(f"{kind}_*.pb"))))
            ]
            for kind in ("input", "output")
        )
        sets.append((inputs, outputs))
    return Case(case.name, case.model, sets, case.rtol, case.atol)


def variants(case: Case) -> Iterator[tuple[str, Case]]:
    """The case as it is, and as an exporter would have written it."""
    names = [value.name for value in case.model.graph.input]
    constants = {tensor.name for tensor in case.model.graph.initializer}
    floats = [
        value.name
        for value in case.model.graph.input
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in constants
    ]
    yield "as given", case
    for number, (inputs, outputs) in enumerate(case.data_sets if len(names) > 1 else ()):
        given = dict(zip([n for n in names if n not in constants], inputs, strict=False))
        bound = [name for name in given if name not in floats[:1]]
        if not bound or any(not isinstance(given[name], np.ndarray) for name in bound):
            return
        model = ModelProto()
        model.CopyFrom(case.model)
        model.graph.initializer.extend(numpy_helper.from_array(given[name], name) for name in bound)
        kept = [value for value in model.graph.input if value.name not in bound]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        left = [given[name] for name in given if name not in bound]
        variant = Case(case.name, model, [(left, outputs)], case.rtol, case.atol)
        yield f"with constants {number}", variant


def refusal(case: Case) -> str:
    """Why the frontend refuses the case, one line; "" when it does not."""
    try:
        frontend.import_onnx(case.model)
    except InputError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


def wrong(cases: Sequence[Case]) -> dict[int, str]:
    """What is wrong with which of the cases, compiled side by side as one model."""
    whole = ModelProto()
    for number, case in enumerate(cases):
        model = onnx.compose.add_prefix(case.model, f"c{number}_")
        if number == 0:
            whole.CopyFrom(model)
        else:
            for field in ("node", "initializer", "input", "output"):
                getattr(whole.graph, field).extend(getattr(model.graph, field))
    model = frontend.import_onnx(whole)
    executable = compile_model(model, targets.load("x86-64-v3")).executable
    machine = relax.VirtualMachine(executable, tvm.cpu())
    found: dict[int, str] = {}
    for turn in range(max(len(case.data_sets) for case in cases)):
        values: dict[str, np.ndarray] = {}
        wanted: list[tuple[int, np.ndarray]] = []
        for number, case in enumerate(cases):
            inputs, outputs = case.data_sets[min(turn, len(case.data_sets) - 1)]
            names = [f"c{number}_{value.name}" for value in case.model.graph.input]
            values |= dict(zip(names, inputs, strict=False))
            wanted += [(number, output) for output in outputs]
        result = machine["main"](*(tvm.runtime.tensor(values[i.name]) for i in model.inputs))
        results = [result] if len(model.outputs) == 1 else list(result)
        for got, (number, expected) in zip(results, wanted, strict=True):
            if problem := difference(got.numpy(), expected, cases[number]):
                found[number] = problem
    return found


def difference(got: np.ndarray, expected: np.ndarray, case: Case) -> str:
    if got.dtype != expected.dtype:
        return f"{got.dtype} instead of {expected.dtype}"
    try:
        np.testing.assert_allclose(got, expected, rtol=case.rtol, atol=case.atol)
    except AssertionError as error:
        return " ".join(str(error).split())
    return ""


def failures(cases: Sequence[Case]) -> dict[int, str]:
    """As `wrong`; a group that does not compile is halved until the culprit is known."""
    try:
        return wrong(cases)
    except Exception as error:  # whatever a compiler may raise: that is what is looked for
        if len(cases) == 1:
            return {0: f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"}
    half = len(cases) // 2
    behind = {half + number: text for number, text in failures(cases[half:]).items()}
    return failures(cases[:half]) | behind


def tried(cases: Sequence[Case]) -> tuple[Counter[str], list[str]]:
    """How many variants passed and were refused, by reason, and the failures."""
    counts: Counter[str] = Counter()
    accepted: dict[tuple[int, int], list[tuple[str, Case]]] = defaultdict(list)
    bad: list[str] = []
    for case in cases:
        for label, variant in variants(case):
            try:
                reason = refusal(variant)
            except Exception as error:  # a refusal that is not clean
                bad.append(f"{case.name} {label}: {type(error).__name__}: {error}")
                continue
            if reason:
                counts["refused: " + kind_of_refusal(reason)] += 1
            else:
                key = (variant.model.opset_import[0].version, variant.model.ir_version)
                accepted[key].append((f"{case.name} {label}", variant))
    for alike in accepted.values():
        for start in range(0, len(alike), GROUP):
            group = alike[start : start + GROUP]
            found = failures([variant for _, variant in group])
            counts["passed"] += len(group) - len(found)
            bad += [f"{group[number][0]}: {text}" for number, text in found.items()]
    return counts, bad


def kind_of_refusal(reason: str) -> str:
    """The reason without what is particular to one model."""
    for words in REASONS:
        if words in reason:
            return words
    return reason


@pytest.mark.slow
@pytest.mark.needs_cpu("avx2", "fma")
def test_every_case_passes_or_is_refused() -> None:
    cases = [case for case in every_case() if case.name not in KNOWN][::STEP]
    counts, bad = tried(cases)
    sys.stdout.write(f"\n{len(cases)} cases, {sum(counts.values())} variants\n")
    for what, count in counts.most_common():
        sys.stdout.write(f"{count:6} {what}\n")
    assert not bad, "\n".join(bad)
    assert counts["passed"] > len(cases) // 3


@pytest.mark.slow
@pytest.mark.needs_cpu("avx2", "fma")
def test_what_is_known_to_differ_still_does() -> None:
    cases = [case for case in every_case() if case.name in KNOWN]
    assert len(cases) == len(KNOWN)
    _, bad = tried(cases)
    assert {line.split(" ")[0] for line in bad} == set(KNOWN)


def test_a_cast_to_few_bits_is_refused() -> None:
    """What the whole run found: TVM casts to 8 bit floats and smaller types wrongly."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[2,3] x) => (float8e4m3fn[2,3] y) { y = CastLike(x, like) }"""
    )
    tensor = onnx.helper.make_tensor("like", TensorProto.FLOAT8E4M3FN, [1], [1.0])
    model.graph.initializer.append(tensor)
    with pytest.raises(InputError, match=r"CastLike.*FLOAT8E4M3FN wrongly or not at all"):
        frontend.import_onnx(model)
