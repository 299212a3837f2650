"""The rule by which compiled code passes. Needs numpy only, so that a device can apply it too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.parity.samples import Sample

FACTOR = 3.0  # allowed multiple of float32 PyTorch's own error
FLOOR_ULPS = 4  # an error of so many float32 roundings of the output's scale always passes
EPSILON = 2.0**-23  # float32's rounding step at 1


@dataclass(frozen=True)
class Agreement:
    """Whether the k highest classes are the reference's, over all rows of an output.

    A row counts as compared when the reference's margin between its k-th and next class exceeds
    twice the allowed error, so that allowed errors cannot swap the two.
    """

    k: int
    rows: int
    compared: int
    agreed: int


@dataclass(frozen=True)
class Verdict:
    """One output over all samples. Errors are against PyTorch at float64.

    `max_abs` is in the output's own unit; `relative_l2` is |error|₂ / |reference|₂; `snr_db` is
    -20·log₁₀ of it (infinite without error). `torch_*` are PyTorch's own at float32. `ratio` is the
    larger of both errors over PyTorch's own, that being at least the floor / FACTOR; the output
    passes when `ratio` <= FACTOR, NaN and infinity stand where PyTorch has them, and top-1 and
    top-5 agree. `problem` is the first thing wrong, "" when it passes.
    """

    output: str
    max_abs: float
    relative_l2: float
    snr_db: float
    torch_max_abs: float
    torch_relative_l2: float
    ratio: float
    special_values: int
    misplaced_special_values: int
    top: tuple[Agreement, ...]
    problem: str

    @property
    def passed(self) -> bool:
        """Whether the output is as good as it must be."""
        return not self.problem


@dataclass(frozen=True)
class ParityReport:
    """The verdict on each output; or, when nothing could be run, `not_checked` says why.

    `machine` is what ran the code if not this machine itself, as an emulator's command.
    """

    outputs: tuple[Verdict, ...]
    samples: int
    not_checked: str = ""
    machine: str = ""

    @property
    def checked(self) -> bool:
        """Whether the compiled code was run at all."""
        return not self.not_checked

    @property
    def passed(self) -> bool:
        """Whether it was run and every output passed."""
        return self.checked and all(verdict.passed for verdict in self.outputs)

    def summary(self) -> str:
        """The one line that matters."""
        if not self.checked:
            return f"parity not checked here: {self.not_checked}"
        under = f" under {self.machine}" if self.machine else ""
        for verdict in self.outputs:
            if not verdict.passed:
                return f"parity failed{under}: output '{verdict.output}': {verdict.problem}"
        worst = max(self.outputs, key=lambda verdict: verdict.ratio)
        tops = "".join(
            f", top-{top.k} agree in {top.agreed} of {top.compared} rows"
            for top in worst.top
            if top.compared
        )
        return (
            f"parity passed{under}: max error {worst.max_abs:.2g} against float64 "
            f"(PyTorch float32: {worst.torch_max_abs:.2g}; ratio {worst.ratio:.2f}, "
            f"allowed {FACTOR:g}), SNR {worst.snr_db:.0f} dB{tops}"
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values; an infinite figure is null."""
        state = "passed" if self.passed else "failed" if self.checked else "not checked"
        return {
            "state": state,
            "summary": self.summary(),
            "not_checked": self.not_checked,
            "machine": self.machine,
            "samples": self.samples,
            "factor": FACTOR,
            "floor_ulps": FLOOR_ULPS,
            "outputs": [
                _finite({**asdict(verdict), "passed": verdict.passed}) for verdict in self.outputs
            ],
        }


def judge(
    outputs: Sequence[Mapping[str, np.ndarray]], references: Sequence[Sample]
) -> ParityReport:
    """Compare compiled outputs, one mapping for each sample, with PyTorch's."""
    import numpy as np

    if not references or len(outputs) != len(references):
        raise InputError(f"{len(outputs)} outputs for {len(references)} samples: nothing to judge")
    verdicts = []
    for name in references[0].float64:
        got = [result[name] for result in outputs]
        exact = [sample.float64[name] for sample in references]
        if got[0].shape != exact[0].shape:
            verdicts.append(_wrong_shape(name, got[0], exact[0]))
            continue
        torch32 = [sample.float32[name] for sample in references]
        verdicts.append(_verdict(name, np.stack(got), np.stack(torch32), np.stack(exact)))
    return ParityReport(tuple(verdicts), len(references))


def _verdict(name: str, got: np.ndarray, torch32: np.ndarray, exact: np.ndarray) -> Verdict:
    """All samples of one output, stacked along a new first axis."""
    import numpy as np

    finite = np.isfinite(got) & np.isfinite(torch32) & np.isfinite(exact)
    special = ~np.isfinite(torch32)
    misplaced = int(np.count_nonzero(_kind_of_value(got) != _kind_of_value(torch32)))
    reference = exact[finite].astype(np.float64)
    error = got[finite].astype(np.float64) - reference
    torch_error = torch32[finite].astype(np.float64) - reference

    max_abs, torch_max_abs = _max_abs(error), _max_abs(torch_error)
    norm = float(np.linalg.norm(reference))
    relative, torch_relative = (_over(float(np.linalg.norm(e)), norm) for e in (error, torch_error))
    floor = FLOOR_ULPS * EPSILON
    scale = _max_abs(reference)
    allowed = max(FACTOR * torch_max_abs, floor * scale)
    ratio = max(
        _over(FACTOR * max_abs, allowed),
        _over(FACTOR * relative, max(FACTOR * torch_relative, floor)),
    )
    top = _agreements(got, exact, 2 * allowed)
    return Verdict(
        output=name,
        max_abs=max_abs,
        relative_l2=relative,
        snr_db=-20 * math.log10(relative) if relative else math.inf,
        torch_max_abs=torch_max_abs,
        torch_relative_l2=torch_relative,
        ratio=ratio,
        special_values=int(np.count_nonzero(special)),
        misplaced_special_values=misplaced,
        top=top,
        problem=_problem(max_abs, torch_max_abs, ratio, misplaced, top),
    )


def _problem(
    max_abs: float, torch_max_abs: float, ratio: float, misplaced: int, top: Sequence[Agreement]
) -> str:
    if misplaced:
        return f"NaN or infinity differs from PyTorch's in {misplaced} values"
    if ratio > FACTOR:
        return (
            f"error is {ratio:.3g} times PyTorch float32's own (allowed {FACTOR:g}); max "
            f"{max_abs:.2g} against {torch_max_abs:.2g}"
        )
    for agreement in top:
        if agreement.agreed < agreement.compared:
            wrong = agreement.compared - agreement.agreed
            return f"top-{agreement.k} differs in {wrong} of {agreement.compared} rows"
    return ""


def _agreements(got: np.ndarray, exact: np.ndarray, margin: float) -> tuple[Agreement, ...]:
    """Top-1 and top-5 of an output of class scores, [samples, batch, classes] or with 1s behind."""
    import numpy as np

    if exact.ndim < 3 or math.prod(exact.shape[3:]) != 1:
        return ()
    rows, wanted = (array.reshape(-1, exact.shape[2]) for array in (got, exact))
    usable = np.isfinite(rows).all(axis=1) & np.isfinite(wanted).all(axis=1)
    rows, wanted = rows[usable], wanted[usable]
    agreements = []
    for k in (1, 5):
        if wanted.shape[1] <= k:
            continue
        ranked = -np.sort(-wanted, axis=1)
        compared = ranked[:, k - 1] - ranked[:, k] > margin
        ours, theirs = (np.sort(np.argsort(-a, axis=1)[:, :k], axis=1) for a in (rows, wanted))
        agreed = compared & (ours == theirs).all(axis=1)
        agreements.append(Agreement(k, len(rows), int(compared.sum()), int(agreed.sum())))
    return tuple(agreements)


def _wrong_shape(name: str, got: np.ndarray, exact: np.ndarray) -> Verdict:
    problem = f"its shape is {got.shape}, PyTorch's {exact.shape}"
    nothing, endless = 0.0, math.inf
    return Verdict(
        name, endless, endless, -endless, nothing, nothing, endless, 0, 0, (), problem=problem
    )


def _kind_of_value(values: np.ndarray) -> np.ndarray:
    """0 finite, 1 infinity, -1 minus infinity, 2 NaN."""
    import numpy as np

    return np.where(np.isnan(values), 2, np.where(np.isinf(values), np.sign(values), 0))


def _max_abs(values: np.ndarray) -> float:
    return float(abs(values).max()) if values.size else 0.0


def _over(value: float, base: float) -> float:
    """value / base, where nothing over nothing is 0."""
    return value / base if base else math.inf if value else 0.0


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
