"""Which operator, and which phase of the compiler, breaks parity.

The operator is the first at fault of `per_layer`. It is cut out as an ONNX model of its own, which
is then compiled again and again, each time with one phase of the compiler more and what follows
left plain (`pipeline.Experiment`): own functions as scalar loops, TVM's lowering unscheduled, code
without optimisation. The first phase with which the fault shows brought it in. What is built for
another kind of machine runs under QEMU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.parity.judge import ParityReport, Verdict, judge
from tvm_mobilenet.parity.per_layer import OperatorParity, PerLayerReport, Reference
from tvm_mobilenet.parity.samples import Sample

if TYPE_CHECKING:
    import onnx
    import tvm

    from tvm_mobilenet.compiler_pass.pipeline import Compiled
    from tvm_mobilenet.deploy.device import Runner
    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.schedules.base import Records
    from tvm_mobilenet.targets import TargetSpec

Progress = Callable[[str], None]
Change = Callable[[str, "tvm.IRModule"], "tvm.IRModule"]
# Of the fault's own size, an error below it is rounding: plain loops sum in another order.
_SHARE = 0.25
# What each phase is called, and `Experiment`'s values with it as the last one; with records or not.
_LADDER: tuple[tuple[str, str, bool, bool], ...] = (
    ("import", "imported", False, True),
    ("lower_operators", "operators", False, True),
    ("fuse_separable", "joined", False, True),
    ("schedule", "scheduled", False, True),
    ("tuning record", "scheduled", True, True),
    ("code generation", "scheduled", True, False),
)
ELSEWHERE = "outside of the operator"


@dataclass(frozen=True)
class Cut:
    """One operator as a model of its own, with inputs and what they must give."""

    model: onnx.ModelProto
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class BuiltCut:
    """The operator compiled and linked, and the verdict on it; `runner` as in `builder.Proven`."""

    compiled: Compiled
    library: Path
    runner: Runner | None
    report: ParityReport


@dataclass(frozen=True)
class Step:
    """A build with the phases up to this one, and what it gave."""

    phase: str
    verdict: Verdict
    broken: bool


@dataclass(frozen=True)
class Finding:
    """What bisecting found. `phase`: of the ladder, or `ELSEWHERE` when no build of the operator
    alone shows the fault.
    """

    operator: OperatorParity
    phase: str
    steps: tuple[Step, ...]
    cut: Cut

    def summary(self) -> str:
        """The one line that matters."""
        where = f"{self.operator.label} breaks parity"
        if self.phase == ELSEWHERE:
            return (
                f"{where}, but not when this compiler builds it alone: the memory plan, or a "
                "library that is not what this compiler makes of the model"
            )
        return f"{where} in phase '{self.phase}': '{self.operator.tensor}'"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "summary": self.summary(),
            "operator": self.operator.to_json(),
            "phase": self.phase,
            "steps": [
                {"phase": s.phase, "broken": s.broken, "verdict": s.verdict.to_json()}
                for s in self.steps
            ],
        }


def bisect(
    imported: ImportedModel,
    target: TargetSpec,
    layers: PerLayerReport,
    *,
    records: Records | None,
    change: Change | None = None,
    progress: Progress,
) -> Finding:
    """Find the phase that breaks the first operator at fault in `layers`, which must have failed.

    records: tuned knobs, as the build had them. change: see `pipeline.Experiment`.
    Raises InputError where the operator cannot be cut out.
    """
    operator = layers.at_fault[0] if layers.at_fault else layers.first_wrong
    assert operator is not None, "nothing failed"
    subject = operator.isolated if layers.at_fault else operator.propagated
    assert subject is not None
    cut = cut_out(imported, layers, operator.index)
    steps: list[Step] = []
    for phase, last, recorded, cautious in _LADDER:
        progress(f"bisecting: {operator.symbol} up to {phase}")
        verdict = _build(
            cut, target, last, records if recorded else None, change, cautious=cautious
        )
        large = _SHARE * subject.relative_l2, _SHARE * subject.max_abs
        shown = verdict.relative_l2 >= large[0] or verdict.max_abs >= large[1]
        special = verdict.misplaced_special_values > 0
        steps.append(Step(phase, verdict, not verdict.passed and (shown or special)))
        if steps[-1].broken:
            break
    phase = steps[-1].phase if steps[-1].broken else ELSEWHERE
    return Finding(operator, phase, tuple(steps), cut)


def cut_out(
    imported: ImportedModel,
    layers: PerLayerReport,
    index: int,
) -> Cut:
    """Operator `index` as a model from the tensors before it to its own."""
    import numpy as np

    reference = Reference(imported, [operator.tensor for operator in layers.operators])
    samples = []
    for values in layers.inputs:
        exact = {**reference.all(values, double=True), **values}
        theirs = reference.all(values, double=False)
        known = {name: value.astype(np.float32) for name, value in exact.items()}
        name = reference.tensors[index]
        right = reference.one(index, known)
        error = np.where(np.isfinite(theirs[name]), theirs[name] - exact[name], 0.0)
        samples.append(
            Sample(known, {name: right + error}, {name: right})  # PyTorch's error as in the network
        )
    model = reference.model_of(index, samples[0].inputs)
    names = [entry.name for entry in model.graph.input]
    return Cut(
        model,
        tuple(replace(s, inputs={name: s.inputs[name] for name in names}) for s in samples),
    )


def build_cut(
    cut: Cut,
    target: TargetSpec,
    folder: Path,
    *,
    last_phase: str = "scheduled",
    records: Records | None = None,
    change: Change | None = None,
    cautious: bool = False,
) -> BuiltCut:
    """The cut-out operator compiled, linked in the directory and judged; **runs its code**.

    last_phase, change, cautious: see `pipeline.Experiment`. Raises InputError where code for
    another kind of machine cannot be run under QEMU, MissingToolError.
    """
    from tvm_mobilenet import frontend
    from tvm_mobilenet.compiler_pass.pipeline import Experiment, compile_model
    from tvm_mobilenet.deploy import device, emulate
    from tvm_mobilenet.deploy.builder import find_compiler
    from tvm_mobilenet.deploy.library import export_library
    from tvm_mobilenet.deploy.validate import program_of
    from tvm_mobilenet.runtime import manifest

    experiment = Experiment(last_phase, cautious_code=cautious)
    if change is not None:
        experiment = replace(experiment, change=change)
    compiled = compile_model(
        frontend.import_onnx(cut.model, name="operator"),
        target,
        records=records,
        experiment=experiment,
    )
    library, compiler = folder / manifest.LIBRARY, find_compiler(target)
    if compiler is None:
        program = program_of(compiled, export_library(compiled, library))
        report = judge([program.run(sample.inputs) for sample in cut.samples], cut.samples)
        return BuiltCut(compiled, library, None, report)
    objects = folder / "objects"
    objects.mkdir()
    export_library(compiled, library, toolchain=compiler, objects=objects)
    runner = device.build_runner(compiled, objects, compiler, folder / "runner")
    report = emulate.prove(runner.path, target, cut.samples)
    if not report.checked:
        raise InputError(f"--bisect runs parts of the network under QEMU: {report.not_checked}")
    return BuiltCut(compiled, library, runner, report)


def _build(
    cut: Cut,
    target: TargetSpec,
    last_phase: str,
    records: Records | None,
    change: Change | None,
    *,
    cautious: bool,
) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        built = build_cut(
            cut,
            target,
            Path(folder),
            last_phase=last_phase,
            records=records,
            change=change,
            cautious=cautious,
        )
        return built.report.outputs[0]
