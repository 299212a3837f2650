"""The tool judged by itself: are planted faults caught, and found in the operator they are in?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.parity.faults import FAULTS, Fault, Planted
from tvm_mobilenet.parity.judge import ParityReport, Verdict, judge
from tvm_mobilenet.parity.per_layer import PerLayerReport, per_layer

if TYPE_CHECKING:
    import tvm

    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.parity.samples import Sample
    from tvm_mobilenet.targets import TargetSpec

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One build, with a fault in it or with none (`fault` "").

    planted: the operator that got the fault, as the report on it says. caught: whether the build
    failed. located: whether exactly the planted operator is said to be at fault.
    """

    fault: str
    phase: str
    planted: str
    caught: bool
    located: bool
    found: str
    ratio: float

    @property
    def passed(self) -> bool:
        """Whether the tool said what is true of this build."""
        return self.located and self.caught == bool(self.fault)


@dataclass(frozen=True)
class SelfTest:
    """All trials; the first has no fault and must pass."""

    trials: tuple[Trial, ...]

    @property
    def passed(self) -> bool:
        """Whether the tool told the truth about each build."""
        return all(trial.passed for trial in self.trials)

    def summary(self) -> str:
        """The one line that matters."""
        faults = [trial for trial in self.trials if trial.fault]
        for trial in self.trials:
            if trial.passed:
                continue
            if not trial.fault:
                return f"self-test failed: a sound build was faulted: {trial.found}"
            if not trial.caught:
                return f"self-test failed: missed '{trial.fault}' in {trial.planted}"
            return (
                f"self-test failed: '{trial.fault}' was planted into {trial.planted} and looked "
                f"for in {trial.found or 'no operator'}"
            )
        return f"self-test passed: {len(faults)} of {len(faults)} planted faults caught and located"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "state": "passed" if self.passed else "failed",
            "summary": self.summary(),
            "trials": [{**vars(trial), "passed": trial.passed} for trial in self.trials],
        }


def self_test(
    imported: ImportedModel,
    target: TargetSpec,
    *,
    faults: Sequence[Fault] = FAULTS,
    progress: Progress,
) -> SelfTest:
    """Build a model once soundly and once with each fault, and judge every build.

    Raises InputError for a target whose code cannot run here, or a model without an operator that
    a fault suits.
    """
    from tvm_mobilenet.errors import InputError
    from tvm_mobilenet.parity import samples
    from tvm_mobilenet.parity.reference import evaluate

    check_target(target)
    references = evaluate(imported, samples(imported))
    trials = []
    for fault in (None, *faults):
        progress(f"planting: {fault.name}" if fault else "building without a fault")
        planted = Planted(fault, target) if fault else None
        outputs, layers = judged_build(imported, target, references, planted or _nothing)
        index = planted.index if planted else None
        if fault and index is None:
            raise InputError(f"{imported.name} has no operator for the fault '{fault.name}'")
        at_fault = layers.at_fault
        worst: Verdict | None = at_fault[0].isolated if at_fault else None
        trials.append(
            Trial(
                fault=fault.name if fault else "",
                phase=fault.phase if fault else "",
                planted="" if index is None else layers.operators[index].label,
                caught=not (outputs.passed and layers.passed),
                located=[op.index for op in at_fault] == ([] if index is None else [index]),
                found="; ".join(op.label for op in at_fault),
                ratio=worst.ratio if worst else max(v.ratio for v in outputs.outputs),
            )
        )
    return SelfTest(tuple(trials))


def check_target(target: TargetSpec) -> None:
    """InputError for a target whose faulty code cannot run on this machine's CPU."""
    from tvm_mobilenet.deploy.builder import why_not_here
    from tvm_mobilenet.errors import InputError

    if reason := why_not_here(target) if target.gpu is None else "it is a GPU":
        raise InputError(
            f"--self-test runs faulty code on this CPU, and not for {target.name}: {reason}; leave "
            "--target out"
        )


def judged_build(
    imported: ImportedModel,
    target: TargetSpec,
    references: Sequence[Sample],
    change: Callable[[str, tvm.IRModule], tvm.IRModule],
) -> tuple[ParityReport, PerLayerReport]:
    """Build with a change between the compiler's phases; the outputs' report and the operators'."""
    from tvm_mobilenet.compiler_pass.pipeline import Experiment, compile_model
    from tvm_mobilenet.deploy.library import export_library
    from tvm_mobilenet.deploy.validate import operators_of, program_of
    from tvm_mobilenet.runtime import manifest

    compiled = compile_model(
        imported, target, records=_no_records, experiment=Experiment(change=change)
    )
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        library = export_library(compiled, Path(folder) / manifest.LIBRARY)
        program = program_of(compiled, library)
        outputs = judge([program.run(sample.inputs) for sample in references], references)
        inputs = [sample.inputs for sample in references]
        return outputs, per_layer(program.trace, operators_of(compiled), imported, inputs)


def _nothing(phase: str, mod: tvm.IRModule) -> tvm.IRModule:
    return mod


def _no_records(spec: object, rule: str) -> None:
    """Records that have none: every operator is known to have its analytic knobs."""
