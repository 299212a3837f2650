"""Where the time of a bundle goes: per operator, against this machine's limits, adding up.

`profile` runs the bundle and returns a `Profile`; `Profile.rows` gives flat rows by layer, by
operator or by kind, for tables, CSV and data frames alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import MissingToolError
from tvm_mobilenet.profiling import counters
from tvm_mobilenet.profiling import limits as limits_module
from tvm_mobilenet.profiling.layers import layer_kinds
from tvm_mobilenet.profiling.operators import RUNS, OperatorSamples, Samples, sample_operators
from tvm_mobilenet.profiling.reconciliation import Reconciliation
from tvm_mobilenet.profiling.roofline import Roof, roof
from tvm_mobilenet.profiling.rows import By, OperatorCall, described, grouped, row_of, same

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.profiling.limits import Limits
    from tvm_mobilenet.runtime import Bundle


@dataclass(frozen=True)
class OperatorProfile(OperatorCall):
    """One operator call of the network. Times are in microseconds.

    `time` is the mean over the quieter half of the runs, in which times add up; the others are
    over all steady runs. `flops` counts a multiply-add as two and nothing else, as the MobileNet
    papers do; `bytes` is every tensor read or written once.
    """

    threads: int
    first: float | None
    time: float
    mean: float
    p50: float
    p90: float
    share: float  # of all operators and the overhead together
    flops: int
    bytes: int
    weight_bytes: int
    roof: Roof | None  # None: this machine's limits are not known
    counts: Mapping[str, float] = dataclasses.field(default_factory=dict)  # see `counters.events`


@dataclass(frozen=True)
class Phases:
    """Load, first run, warm-up and steady state, apart."""

    load_seconds: float | None  # None: the bundle was loaded before
    first_ms: float | None
    warm_up_runs: int
    warm_up_ms: float | None  # median of the warm-up runs
    p10_ms: float  # steady state without instruments
    p50_ms: float
    p90_ms: float


@dataclass(frozen=True)
class Profile:
    """A profiled bundle. `samples` are the raw times; everything else is worked out from them."""

    bundle: str
    model: str
    target: str
    cpu: str
    threads: int
    runs: int
    operators: tuple[OperatorProfile, ...]
    reconciliation: Reconciliation
    phases: Phases
    limits: Limits | None
    notes: tuple[str, ...]
    parity: Mapping[str, Any]
    samples: Samples = dataclasses.field(repr=False, compare=False)

    @property
    def mult_adds(self) -> int:
        """Of one inference."""
        return sum(operator.flops for operator in self.operators) // 2

    def rows(self, by: By = "layer") -> list[dict[str, Any]]:
        """Flat rows, the slowest first: `pandas.DataFrame(profile.rows())` works as it is.

        `by`: "layer" is one row a call, "op" one a function (several layers may share one), "kind"
        one a layer kind. Times in microseconds, rates in 1e9 a second; None where not known.
        """
        ranked = sorted(grouped(self.operators, by), key=lambda group: -sum(o.time for o in group))
        rows, cumulative = [], 0.0
        for group in ranked:
            cumulative += sum(operator.share for operator in group)
            figures = _figures(group, cumulative, self._percentiles(group))
            rows.append(row_of(group, by, figures))
        return rows

    def _percentiles(self, group: Sequence[OperatorProfile]) -> tuple[float, float]:
        """Median and 90th percentile, over the runs, of the group's time in a run."""
        import numpy as np

        total = sum(self.samples.operators[o.index].nanoseconds for o in group)
        p50, p90 = np.percentile(total, [50, 90]) / 1e3
        return float(p50), float(p90)


def profile(
    bundle: Bundle | str | Path,
    *,
    threads: int | None = None,
    runs: int = RUNS,
    inputs: Sequence[np.ndarray] | None = None,
    limits: bool = True,
    progress: Callable[[str], None] | None = None,
    on_run: Callable[[int, int], None] | None = None,
) -> Profile:
    """Profile a bundle on this machine; see `operators.sample_operators` for the arguments.

    `limits`: compare with the machine's limits, which are measured the first time (seconds).
    `progress` is told what is done, `on_run` (done, total) after every run.
    """
    say = progress or (lambda message: None)
    from tvm_mobilenet.profiling import machine
    from tvm_mobilenet.runtime import Bundle as Loaded
    from tvm_mobilenet.runtime import library, manifest

    if isinstance(bundle, Loaded):
        path, document = bundle.path, bundle.manifest
    else:
        path = Path(bundle)
        document = manifest.read(path).document
    say(f"profiling {path}: {runs} runs with and {runs} without instruments")
    watch = machine.Watch(tuple(library.usable_cpus()))
    samples = sample_operators(bundle, threads=threads, runs=runs, inputs=inputs, progress=on_run)
    known, notes = None, []
    if (crowding := watch.crowding(samples.threads)) is not None:
        notes.append(
            f"other processes kept {crowding:.1f} CPUs busy: times are too high, P50 least of all; "
            "profile again when the machine is idle"
        )
    if limits:
        try:
            known = limits_module.limits(samples.threads, progress=progress)
        except MissingToolError as error:
            notes.append(f"no share of the roofline: {error}")
    return summarise(
        samples,
        document,
        bundle=str(path),
        cpu=machine.cpu_name(),
        limits=known,
        notes=notes,
    )


def summarise(
    samples: Samples,
    document: Mapping[str, Any],
    *,
    bundle: str,
    cpu: str,
    limits: Limits | None,
    notes: Iterable[str] = (),
) -> Profile:
    """Work out a profile from raw samples and the bundle's manifest; nothing is measured."""
    import numpy as np

    quiet = _quieter_half(samples.timed)
    timed = float(samples.timed[quiet].mean()) / 1e3
    entry, exit_ = (
        None if part is None else float(part[quiet].mean()) / 1e3
        for part in (samples.entry, samples.exit)
    )
    kinds = layer_kinds([operator.kind for operator in samples.operators])
    weights = sum(_bytes(o, "weight_bytes") for o in samples.operators)
    counts = samples.counted.operators or ({},) * len(kinds)
    operators = tuple(
        _operator(operator, kind, quiet, timed, samples.threads, limits, weights, counted)
        for operator, kind, counted in zip(samples.operators, kinds, counts, strict=True)
    )
    reconciliation = Reconciliation(
        operators=sum(operator.time for operator in operators),
        entry=entry,
        exit=exit_,
        timed=timed,
        plain=float(samples.plain[_quieter_half(samples.plain)].mean()) / 1e3,
        instruments=None
        if entry is None
        else float(np.median(samples.timed - samples.plain)) / 1e3,
        memory=None
        if samples.call is None or entry is None or exit_ is None
        else (min(samples.call.taking / 1e3, entry), min(samples.call.giving / 1e3, exit_)),
    )
    p10, p50, p90 = (float(p) / 1e6 for p in np.percentile(samples.plain, [10, 50, 90]))
    phases = Phases(
        load_seconds=samples.load_seconds,
        first_ms=None if samples.first is None else samples.first / 1e6,
        warm_up_runs=len(samples.warm_up),
        warm_up_ms=float(np.median(samples.warm_up)) / 1e6 if len(samples.warm_up) else None,
        p10_ms=p10,
        p50_ms=p50,
        p90_ms=p90,
    )
    notes = list(notes)
    if samples.counted.note:
        notes.append(samples.counted.note)
    if limits and not limits.quiet:
        notes.append(
            "this machine's limits were measured while it was busy: they may be too low; "
            "profile again when it is idle"
        )
    return Profile(
        bundle=bundle,
        model=str(document["model"]["name"]),
        target=str(document["target"]["name"]),
        cpu=cpu,
        threads=samples.threads,
        runs=len(samples.timed),
        operators=operators,
        reconciliation=reconciliation,
        phases=phases,
        limits=limits,
        notes=tuple(notes),
        parity=document["parity"],
        samples=samples,
    )


def _operator(
    samples: OperatorSamples,
    kind: str,
    quiet: np.ndarray,
    whole: float,
    threads: int,
    limits: Limits | None,
    all_weights: int,
    counts: Mapping[str, float],
) -> OperatorProfile:
    import numpy as np

    description = samples.description
    microseconds = samples.nanoseconds / 1e3
    p50, p90 = np.percentile(microseconds, [50, 90])
    time = float(microseconds[quiet].mean())
    flops, moved = 2 * int(description["mult_adds"]), _bytes(samples, "bytes")
    weights = min(_bytes(samples, "weight_bytes"), moved)
    used = threads if description["parallel"] else 1
    return OperatorProfile(
        **described(samples.index, kind, description),
        threads=used,
        first=None if samples.first is None else samples.first / 1e3,
        time=time,
        mean=float(microseconds.mean()),
        p50=float(p50),
        p90=float(p90),
        share=time / whole,
        flops=flops,
        bytes=moved,
        weight_bytes=weights,
        roof=None if limits is None else roof(flops, weights, moved - weights, all_weights, limits),
        counts=counts,
    )


def _figures(
    group: Sequence[OperatorProfile], cumulative: float, percentiles: tuple[float, float]
) -> dict[str, Any]:
    """Of a row; `percentiles`: median and 90th of the calls' sum."""
    time, flops, moved = (
        sum(getattr(operator, name) for operator in group) for name in ("time", "flops", "bytes")
    )
    firsts = [operator.first for operator in group]
    roofs = [operator.roof for operator in group if operator.roof is not None]
    least = sum(r.microseconds for r in roofs) if len(roofs) == len(group) else None
    return {
        "first_us": None if None in firsts else sum(filter(None, firsts)),
        "time_us": time,
        "mean_us": sum(operator.mean for operator in group),
        "p50_us": percentiles[0],
        "p90_us": percentiles[1],
        "share": sum(operator.share for operator in group),
        "cumulative_share": cumulative,
        "flops": flops,
        "bytes": moved,
        "gflops": flops / time / 1e3,
        "gb_per_s": moved / time / 1e3,
        "intensity": flops / moved if moved else None,
        "roof_us": least,
        "roof_share": None if least is None else least / time,
        "bound": same([o.roof.bound for o in group if o.roof]),
        "threads": max(operator.threads for operator in group),
        **counters.row([operator.counts for operator in group]),
    }


def _bytes(samples: OperatorSamples, key: str) -> int:
    return int(samples.description[key])


def _quieter_half(totals: np.ndarray) -> np.ndarray:
    """The indices of the faster half of the runs, at least one."""
    import numpy as np

    order: np.ndarray = np.argsort(totals, kind="stable")[: (len(totals) + 1) // 2]
    return order
