"""The rule by which compiled code passes. Needs numpy only, so that a device can apply it too.

Of every output the largest error and the L2 error against PyTorch at float64 must each be within

    FACTOR · max(own · (1 + FEW_VALUES / n),  FLOOR_ULPS · 2⁻²³ · size / FACTOR)

where `own` is the same error of PyTorch at float32, `size` the output's largest value or its L2
norm, and n the number of its values over all samples. The two terms beside `own` are what chance
and the order of summation make of it:

- The own error is itself a random figure. The ratio of two errors of n normal values is √F(n, n)
  distributed: without anything being wrong it exceeds 3 for n = 4 in one of 36 cases, for n = 20 in
  one of 250 000; and the values of one image err alike, so that fewer count. The term is 1 % for
  two images of 1000 classes.
- PyTorch sums in blocks, compiled code term by term. Each of the K roundings of a plain sum is at
  most u = 2⁻²⁴ of it, so that their random walk is √K · u (Higham and Mary, "A new approach to
  probabilistic rounding error analysis", SIAM J. Sci. Comput. 41, 2019): 17.9 roundings of 2⁻²³ for
  1280 terms, MobileNetV2's and V3's longest sum.

docs/parity.md has what this changes, measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.parity.per_layer import PerLayerReport
    from tvm_mobilenet.parity.samples import Sample

FACTOR = 3.0  # allowed multiple of float32 PyTorch's own error
FLOOR_ULPS = 18  # so many float32 roundings of the output's size always pass: sums of 1280 terms
FEW_VALUES = 20  # PyTorch's own error of n values counts 1 + FEW_VALUES / n times
EPSILON = 2.0**-23  # float32's rounding step at 1
ULP_BOUNDS = (0, *(2**i for i in range(17)))  # of the histogram's bins, inclusive
SAMPLES = "samples"  # the kind of inputs that look like pictures


@dataclass(frozen=True)
class Agreement:
    """Whether the k highest classes are the reference's, over all rows of an output.

    A row counts as compared when the reference's margin between its k-th and next class exceeds
    twice the allowed error, so that allowed errors cannot swap the two. `margin` is the smallest
    of a compared row, in the output's unit; None where none was compared.
    """

    k: int
    rows: int
    compared: int
    agreed: int
    margin: float | None


@dataclass(frozen=True)
class Verdict:
    """One output over all samples of one kind (`inputs`). Errors are against PyTorch at float64.

    `max_abs` is in the output's own unit; `relative_l2` is |error|₂ / |reference|₂; `snr_db` is
    -20·log₁₀ of it (infinite without error); `cosine` that of the angle between output and
    reference. `ulps` counts values by their distance to the reference rounded to float32, in
    float32 numbers: 0, 1, 2, then up to 4, 8, ... (`ULP_BOUNDS`) and more. `torch_*` are
    PyTorch's own at float32, `onnxruntime_*` ONNX Runtime's where it was asked. `allowed_*` is what
    each error may be (the module's text), and `ratio` FACTOR times the larger of both errors over
    what it may be; the output passes when `ratio` <= FACTOR, NaN and infinity stand where PyTorch
    has them, and top-1 and top-5 agree. `problem` is the first thing wrong, "" when it passes.
    """

    output: str
    inputs: str
    max_abs: float
    relative_l2: float
    snr_db: float
    cosine: float
    ulps: tuple[int, ...]
    torch_max_abs: float
    torch_relative_l2: float
    allowed_max_abs: float
    allowed_relative_l2: float
    onnxruntime_max_abs: float | None
    onnxruntime_relative_l2: float | None
    ratio: float
    special_values: int
    misplaced_special_values: int
    top: tuple[Agreement, ...]
    problem: str

    @property
    def passed(self) -> bool:
        """Whether the output is as good as it must be."""
        return not self.problem

    @property
    def label(self) -> str:
        """How a message calls it."""
        return f"output '{self.output}'" + (f" on {self.inputs}" if self.inputs != SAMPLES else "")

    def to_json(self) -> dict[str, Any]:
        """As JSON values; an infinite figure is null."""
        return _finite({**asdict(self), "passed": self.passed})


@dataclass(frozen=True)
class ParityReport:
    """The verdict on each output; or, when nothing could be run, `not_checked` says why.

    `machine` is what ran the code if not this machine itself, as an emulator's command. `layers`:
    of each operator, where that was asked for. `precision`: what PyTorch computed at for the
    allowed error, see `parity.precision`.
    """

    outputs: tuple[Verdict, ...]
    samples: int
    not_checked: str = ""
    machine: str = ""
    layers: PerLayerReport | None = None
    precision: str = "float32"

    @property
    def checked(self) -> bool:
        """Whether the compiled code was run at all."""
        return not self.not_checked

    @property
    def passed(self) -> bool:
        """Whether it was run and every output passed."""
        layers = self.layers is None or self.layers.passed
        return self.checked and layers and all(verdict.passed for verdict in self.outputs)

    def summary(self) -> str:
        """The one line that matters."""
        if not self.checked:
            return f"parity not checked here: {self.not_checked}"
        under = f" under {self.machine}" if self.machine else ""
        if self.layers is not None and not self.layers.passed:
            return f"parity failed{under}: {self.layers.summary()}"
        for verdict in self.outputs:
            if not verdict.passed:
                return f"parity failed{under}: {verdict.label}: {verdict.problem}"
        worst = max(self.outputs, key=lambda verdict: verdict.ratio)
        tops = "".join(
            f", top-{top.k} agree in {top.agreed} of {top.compared} rows"
            for top in worst.top
            if top.compared
        )
        return (
            f"parity passed{under}: max error {worst.max_abs:.2g} against float64 "
            f"(PyTorch {self.precision}: {worst.torch_max_abs:.2g}; ratio {worst.ratio:.2f}, "
            f"allowed {FACTOR:g}), SNR {worst.snr_db:.0f} dB{tops}"
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values; an infinite figure is null."""
        state = "passed" if self.passed else "failed" if self.checked else "not checked"
        layers = {} if self.layers is None else {"layers": self.layers.to_json()}
        return {
            **layers,
            "state": state,
            "summary": self.summary(),
            "not_checked": self.not_checked,
            "machine": self.machine,
            "precision": self.precision,
            "samples": self.samples,
            "factor": FACTOR,
            "floor_ulps": FLOOR_ULPS,
            "few_values": FEW_VALUES,
            "ulp_bounds": list(ULP_BOUNDS),
            "outputs": [verdict.to_json() for verdict in self.outputs],
        }


def judge(
    outputs: Sequence[Mapping[str, np.ndarray]],
    references: Sequence[Sample],
    precision: str = "float32",
) -> ParityReport:
    """Compare compiled outputs, one mapping for each sample, with PyTorch's.

    precision: what the samples' `float32` were computed at, see `parity.precision`.
    """
    if not references or len(outputs) != len(references):
        raise InputError(f"{len(outputs)} outputs for {len(references)} samples: nothing to judge")
    verdicts: list[Verdict] = []
    usual = [sample for sample in references if sample.kind == SAMPLES]
    for kind in dict.fromkeys(sample.kind for sample in references):
        pairs = [
            (output, sample)
            for output, sample in zip(outputs, references, strict=True)
            if sample.kind == kind
        ]
        verdicts += [
            verdict(
                name,
                [output[name] for output, _ in pairs],
                [sample.float32[name] for _, sample in pairs],
                [sample.float64[name] for _, sample in pairs],
                [s.onnxruntime[name] for _, s in pairs if s.onnxruntime is not None],
                inputs=kind,
                usual=[(sample.float32[name], sample.float64[name]) for sample in usual],
                precision=precision,
            )
            for name in references[0].float64
        ]
    return ParityReport(tuple(verdicts), len(references), precision=precision)


def verdict(
    name: str,
    results: Sequence[np.ndarray],
    torch32s: Sequence[np.ndarray],
    exacts: Sequence[np.ndarray],
    onnxruntimes: Sequence[np.ndarray] = (),
    *,
    inputs: str = SAMPLES,
    usual: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    precision: str = "float32",
) -> Verdict:
    """The verdict on one tensor, of which there is one a sample.

    results: the compiled code's; torch32s, exacts: PyTorch's at float32 and float64; onnxruntimes:
    ONNX Runtime's, if it was asked on all. usual: pairs of PyTorch's on ordinary samples; where
    PyTorch is by chance more exact on odd inputs, its relative error on those is allowed all the
    same.
    """
    import numpy as np

    if results[0].shape != exacts[0].shape:
        return _wrong_shape(name, inputs, results[0], exacts[0])
    got, torch32, exact = map(np.stack, (results, torch32s, exacts))
    finite = np.isfinite(got) & np.isfinite(torch32) & np.isfinite(exact)
    special = ~np.isfinite(torch32)
    misplaced = int(np.count_nonzero(_kind_of_value(got) != _kind_of_value(torch32)))
    reference = exact[finite].astype(np.float64)
    error = got[finite].astype(np.float64) - reference
    torch_error = torch32[finite].astype(np.float64) - reference

    max_abs, torch_max_abs = _max_abs(error), _max_abs(torch_error)
    norm = float(np.linalg.norm(reference))
    relative, torch_relative = (_over(float(np.linalg.norm(e)), norm) for e in (error, torch_error))
    floor_max, floor_relative = _floor(usual)
    scale = _max_abs(reference)
    factor = _factor(reference.size)
    allowed = max(factor * torch_max_abs, floor_max * scale)
    allowed_relative = max(factor * torch_relative, floor_relative)
    ratio = max(_over(FACTOR * max_abs, allowed), _over(FACTOR * relative, allowed_relative))
    top = _agreements(got, exact, 2 * allowed)
    peer_max_abs = peer_relative = None
    if len(onnxruntimes) == len(results):
        peer_error = np.stack(onnxruntimes)[finite].astype(np.float64) - reference
        peer_error = peer_error[np.isfinite(peer_error)]
        peer_max_abs, peer_relative = (
            _max_abs(peer_error),
            _over(float(np.linalg.norm(peer_error)), norm),
        )
    return Verdict(
        output=name,
        inputs=inputs,
        max_abs=max_abs,
        relative_l2=relative,
        snr_db=-20 * math.log10(relative) if relative else math.inf,
        cosine=_cosine(got[finite].astype(np.float64), reference),
        ulps=_ulps(got[finite], reference),
        torch_max_abs=torch_max_abs,
        torch_relative_l2=torch_relative,
        allowed_max_abs=allowed,
        allowed_relative_l2=allowed_relative,
        onnxruntime_max_abs=peer_max_abs,
        onnxruntime_relative_l2=peer_relative,
        ratio=ratio,
        special_values=int(np.count_nonzero(special)),
        misplaced_special_values=misplaced,
        top=top,
        problem=_problem(max_abs, torch_max_abs, ratio, misplaced, top, precision),
    )


def _problem(
    max_abs: float,
    torch_max_abs: float,
    ratio: float,
    misplaced: int,
    top: Sequence[Agreement],
    precision: str,
) -> str:
    if misplaced:
        return f"NaN or infinity differs from PyTorch's in {misplaced} values"
    if ratio > FACTOR:
        return (
            f"error is {ratio:.3g} times PyTorch {precision}'s own (allowed {FACTOR:g}); max "
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
        distance = ranked[:, k - 1] - ranked[:, k]
        compared = distance > margin
        ours, theirs = (np.sort(np.argsort(-a, axis=1)[:, :k], axis=1) for a in (rows, wanted))
        agreed = compared & (ours == theirs).all(axis=1)
        smallest = float(distance[compared].min()) if compared.any() else None
        agreements.append(Agreement(k, len(rows), int(compared.sum()), int(agreed.sum()), smallest))
    return tuple(agreements)


def _wrong_shape(name: str, inputs: str, got: np.ndarray, exact: np.ndarray) -> Verdict:
    return Verdict(
        output=name,
        inputs=inputs,
        max_abs=math.inf,
        relative_l2=math.inf,
        snr_db=-math.inf,
        cosine=0.0,
        ulps=(),
        torch_max_abs=0.0,
        torch_relative_l2=0.0,
        allowed_max_abs=0.0,
        allowed_relative_l2=0.0,
        onnxruntime_max_abs=None,
        onnxruntime_relative_l2=None,
        ratio=math.inf,
        special_values=0,
        misplaced_special_values=0,
        top=(),
        problem=f"its shape is {got.shape}, PyTorch's {exact.shape}",
    )


def _factor(values: int) -> float:
    """The allowed multiple of PyTorch's own error of so many values."""
    return FACTOR * (1 + FEW_VALUES / max(values, 1))


def _floor(usual: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """What always passes: of the largest value, and of the norm, both relative."""
    import numpy as np

    floor = FLOOR_ULPS * EPSILON
    if not usual:
        return floor, floor
    torch32, exact = (np.stack(arrays).astype(np.float64) for arrays in zip(*usual, strict=True))
    finite = np.isfinite(torch32) & np.isfinite(exact)
    error, reference = torch32[finite] - exact[finite], exact[finite]
    largest = _over(_max_abs(error), _max_abs(reference))
    relative = _over(float(np.linalg.norm(error)), float(np.linalg.norm(reference)))
    factor = _factor(reference.size)
    return max(floor, factor * largest), max(floor, factor * relative)


def _cosine(values: np.ndarray, reference: np.ndarray) -> float:
    """Of the angle between two vectors; 1 for two zero vectors, 0 where only one is zero."""
    import numpy as np

    first, second = float(np.linalg.norm(values)), float(np.linalg.norm(reference))
    if not first or not second:
        return float(first == second)
    return float(np.dot(values / first, reference / second))


def _ulps(values: np.ndarray, reference: np.ndarray) -> tuple[int, ...]:
    """Counts of distances between float32 numbers, by `ULP_BOUNDS` and beyond the last."""
    import numpy as np

    def ordered(numbers: np.ndarray) -> np.ndarray:
        """float32 as integers that count its numbers upwards; both zeros are 0."""
        bits = numbers.astype(np.float32).view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    distance = abs(ordered(values) - ordered(reference))
    bins = np.searchsorted(ULP_BOUNDS, distance, side="left")
    return tuple(np.bincount(bins, minlength=len(ULP_BOUNDS) + 1).tolist())


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
