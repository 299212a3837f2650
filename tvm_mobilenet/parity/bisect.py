"""Which operator, and which phase of the compiler, breaks parity.

The operator is the first at fault of `per_layer`. It is cut out as an ONNX model of its own, which
is then compiled again and again, each time with one phase of the compiler more and what follows
left plain (`pipeline.Experiment`): own functions as scalar loops, TVM's lowering unscheduled, code
without optimisation. The first phase with which the fault shows brought it in. `cut` builds and
runs it where the network runs: here, under QEMU, on a device, or by emulated CUDA kernels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.parity.cut import Change, Cut, build_cut, cut_out
from tvm_mobilenet.parity.judge import Verdict
from tvm_mobilenet.parity.per_layer import OperatorParity, PerLayerReport

if TYPE_CHECKING:
    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.profiling.remote import Device
    from tvm_mobilenet.schedules.base import Records
    from tvm_mobilenet.targets import TargetSpec

Progress = Callable[[str], None]
# Of the fault's own size, an error below it is rounding: plain loops sum in another order.
_SHARE = 0.25
ELSEWHERE = "outside of the operator"


@dataclass(frozen=True)
class Rung:
    """A build: `Experiment`'s values with `phase` as the last one that is applied.

    recorded: with tuning records. cautious: machine code without optimisation.
    """

    phase: str
    last: str
    recorded: bool
    cautious: bool


_PLAIN = (
    Rung("import", "imported", recorded=False, cautious=True),
    Rung("lower_operators", "operators", recorded=False, cautious=True),
    Rung("join_operators", "joined", recorded=False, cautious=True),
)


def ladder(target: TargetSpec) -> tuple[Rung, ...]:
    """The builds in order, each with one phase more.

    A GPU's kernels run from the CUDA C that is generated of their schedules, which no plainer way
    of generating stands beside: there schedule and code generation are one phase.
    """
    if target.gpu is not None:
        return (
            *_PLAIN,
            Rung("schedule or code generation", "scheduled", recorded=False, cautious=False),
            Rung("tuning record", "scheduled", recorded=True, cautious=False),
        )
    return (
        *_PLAIN,
        Rung("schedule", "scheduled", recorded=False, cautious=True),
        Rung("tuning record", "scheduled", recorded=True, cautious=True),
        Rung("code generation", "scheduled", recorded=True, cautious=False),
    )


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
    device: Device | None = None,
    progress: Progress,
) -> Finding:
    """Find the phase that breaks the first operator at fault in `layers`, which must have failed.

    records: tuned knobs, as the build had them. change: see `pipeline.Experiment`. device: where
    it failed, if not here; every build runs there too.
    Raises InputError where the operator cannot be cut out, and as `build_cut` does.
    """
    operator = layers.at_fault[0] if layers.at_fault else layers.first_wrong
    assert operator is not None, "nothing failed"
    subject = operator.isolated if layers.at_fault else operator.propagated
    assert subject is not None
    cut = cut_out(imported, layers, operator.index)
    steps: list[Step] = []
    for rung in ladder(target):
        progress(f"bisecting: {operator.symbol} up to {rung.phase}")
        verdict = _build(cut, target, rung, records, change, device)
        large = _SHARE * subject.relative_l2, _SHARE * subject.max_abs
        shown = verdict.relative_l2 >= large[0] or verdict.max_abs >= large[1]
        special = verdict.misplaced_special_values > 0
        steps.append(Step(rung.phase, verdict, not verdict.passed and (shown or special)))
        if steps[-1].broken:
            break
    phase = steps[-1].phase if steps[-1].broken else ELSEWHERE
    return Finding(operator, phase, tuple(steps), cut)


def check_target(target: TargetSpec, device: Device | None) -> None:
    """What bisecting for a target needs beside the subject, before any work.

    Raises MissingToolError for a tool that is not here, InputError for a GPU on a device.
    """
    from tvm_mobilenet.deploy import cuda, emulate
    from tvm_mobilenet.deploy.builder import find_compiler
    from tvm_mobilenet.deploy.toolchain import is_cross

    find_compiler(target)
    if target.gpu is not None:
        if device is not None:
            raise InputError(
                f"over RPC only CPUs are judged, and {target.name} is a GPU: leave the RPC options "
                "out, its kernels are emulated here"
            )
        cuda.check_options(target, None, target.precision)  # NVRTC, for the repro's bundle
    elif is_cross(target) and device is None:
        emulate.emulator(target.mtriple, target.qemu_cpu)


def _build(
    cut: Cut,
    target: TargetSpec,
    rung: Rung,
    records: Records | None,
    change: Change | None,
    device: Device | None,
) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        built = build_cut(
            cut,
            target,
            Path(folder),
            last_phase=rung.last,
            records=records if rung.recorded else None,
            change=change,
            cautious=rung.cautious,
            device=device,
        )
        return built.report.outputs[0]
