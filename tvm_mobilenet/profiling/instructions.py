"""What each operator executes: under QEMU, or of a bundle for this machine by single-stepping.

A count repeats to the last instruction. It is a proxy for time that knows no caches and no latency.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_mobilenet.profiling.layers import layer_kinds
from tvm_mobilenet.profiling.rows import By, OperatorCall, described, grouped, row_of
from tvm_mobilenet.runtime import host, manifest

NOTE = (
    "instructions are a proxy for time that knows no caches and no latency; 'profile --rpc' times "
    "the operators on the device itself"
)
OWN_NOTE = (
    "instructions are a proxy for time that knows no caches and no latency; 'profile' without "
    "--instructions times the operators"
)


@dataclass(frozen=True)
class OperatorInstructions(OperatorCall):
    """One operator call: executed instructions on one thread.

    `floor`: its mult-adds as vector instructions of the target, the least that could compute it.
    """

    mult_adds: int
    instructions: int
    floor: float
    share: float  # of the whole inference


@dataclass(frozen=True)
class InstructionProfile:
    """A bundle's executed instructions; `total` is of one inference, all operators and the rest."""

    bundle: str
    model: str
    target: str
    machine: str  # QEMU's command, or singlestep.MACHINE
    total: int
    operators: tuple[OperatorInstructions, ...]
    parity: Mapping[str, Any]
    notes: tuple[str, ...] = (NOTE,)

    @property
    def rest(self) -> int:
        """Outside of operators: the runner's loop from one to the next."""
        return self.total - sum(operator.instructions for operator in self.operators)

    @property
    def mult_adds(self) -> int:
        """Of one inference."""
        return sum(operator.mult_adds for operator in self.operators)

    def rows(self, by: By = "layer") -> list[dict[str, Any]]:
        """Flat rows, the most instructions first, by "layer", "op" or "kind" as `Profile.rows`."""
        ranked = sorted(
            grouped(self.operators, by), key=lambda group: -sum(o.instructions for o in group)
        )
        rows, cumulative = [], 0.0
        for group in ranked:
            cumulative += sum(operator.share for operator in group)
            rows.append(row_of(group, by, _figures(group, cumulative)))
        return rows

    def document(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "bundle": self.bundle,
            "model": self.model,
            "target": self.target,
            "machine": self.machine,
            "mult_adds": self.mult_adds,
            "instructions": self.total,
            "outside_operators": self.rest,
            "layers": self.rows("layer"),
            "ops": self.rows("op"),
            "kinds": self.rows("kind"),
            "parity": self.parity,
            "notes": list(self.notes),
        }


def profile_instructions(
    bundle: str | Path,
    *,
    progress: Callable[[str], None] | None = None,
    on_operator: Callable[[int, int], None] | None = None,
) -> InstructionProfile:
    """Count what one inference of a bundle executes on one thread. **Runs its code.**

    Of a bundle for another kind of machine under QEMU, else by stepping through it here: slow
    (`progress` is told how slow), so `on_operator` gets operators done and in all.
    Raises InputError for what is no such bundle or where stepping is not allowed, MissingToolError
    without QEMU or a C compiler, ParityError when QEMU's program is ended by a signal, as by an
    instruction that the core lacks.
    """
    from tvm_mobilenet.deploy import emulate
    from tvm_mobilenet.profiling import singlestep

    directory = Path(bundle)
    contents = manifest.read(directory)
    manifest.check_files(directory, contents, hashes=True)
    document = contents.document
    target = document["target"]
    lanes = int(target["vector_bits"]) // 32
    listed = document["operators"]
    own = contents.architecture == host.architecture()
    machine = singlestep.MACHINE
    if not own:
        machine = " ".join(emulate.emulator(target["mtriple"], target.get("qemu_cpu", "")))
    tell = progress or (lambda text: None)
    tell(f"counting the instructions of {bundle} under {machine}")
    if own:
        least = sum(int(operator["mult_adds"]) for operator in listed) / lanes
        counted = singlestep.count_instructions(
            directory,
            on_operator,
            lambda pace: tell(
                f"{1e6 * pace:.1f} us a step, at least {least / 1e6:.2f} million steps: "
                f"{least * pace:.0f} s or more, often twice that"
            ),
        )
    else:
        counted = emulate.count_instructions(directory)
    kinds = layer_kinds([str(operator["kind"]) for operator in listed])
    operators = tuple(
        OperatorInstructions(
            **described(i, kind, operator),
            mult_adds=int(operator["mult_adds"]),
            instructions=executed,
            floor=int(operator["mult_adds"]) / lanes,
            share=executed / counted.total,
        )
        for i, (operator, kind, executed) in enumerate(
            zip(listed, kinds, counted.operators, strict=True)
        )
    )
    return InstructionProfile(
        bundle=str(bundle),
        model=str(document["model"]["name"]),
        target=str(target["name"]),
        machine=machine,
        total=counted.total,
        operators=operators,
        parity=document["parity"],
        notes=(OWN_NOTE if own else NOTE,),
    )


def _figures(group: Sequence[OperatorInstructions], cumulative: float) -> dict[str, Any]:
    executed, mult_adds = (
        sum(getattr(operator, name) for operator in group) for name in ("instructions", "mult_adds")
    )
    floor = sum(operator.floor for operator in group)
    return {
        "instructions": executed,
        "share": sum(operator.share for operator in group),
        "cumulative_share": cumulative,
        "mult_adds": mult_adds,
        "floor": floor,
        "over_floor": executed / floor if floor else None,
    }
