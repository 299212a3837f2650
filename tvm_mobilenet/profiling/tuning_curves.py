"""How tuning found the knobs of a bundle's operators, from its records and measurements."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tvm_mobilenet.runtime import manifest

# how TVMScript writes the attribute that `schedules.plain` gives every own function
_SPEC = re.compile(r'"tvm_mobilenet\.spec": ("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True)
class Curve:
    """The search behind one function of a bundle; microseconds of one cold run alone.

    `best` is the best time so far after each measured candidate, in the order of measuring; empty
    where the measurements were not kept, as with the records that come with the package. The
    network's figures are of all calls together inside the network that was tuned; None: not timed.
    """

    symbol: str
    rule: str
    analytic: float
    tuned: float
    best: tuple[float, ...]
    network: str | None
    network_analytic: float | None
    network_tuned: float | None

    def row(self) -> dict[str, Any]:
        """Flat, times as `*_us`."""
        inside = None
        if self.network_analytic is not None and self.network_tuned is not None:
            inside = self.network_analytic / self.network_tuned
        return {
            "symbol": self.symbol,
            "rule": self.rule,
            "analytic_us": self.analytic,
            "tuned_us": self.tuned,
            "speed_up": self.analytic / self.tuned,
            "trials": len(self.best),
            "best_us": list(self.best),
            "network": self.network,
            "network_analytic_us": self.network_analytic,
            "network_tuned_us": self.network_tuned,
            "network_speed_up": inside,
        }


def curves(bundle: Path, logs: Path | None = None) -> list[Curve]:
    """One for each function of a bundle that a tuning record scheduled, in order of execution.

    logs: where records and measurements are, None: those that come with the package. What they no
    longer hold is left out. Raises InputError for a damaged file of records.
    """
    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.records import Setting, applicable, setting_of
    from tvm_mobilenet.tuning.store import MeasuredLog

    contents = manifest.read(bundle)
    document = contents.document
    tuned = {o["symbol"]: o["schedule"] for o in document["operators"] if o["source"] == "tuned"}
    specs = _specs(bundle / manifest.KERNELS, list(tuned))
    if not specs:
        return []
    derived = {"precision": contents.precision, "source": str(bundle), "gpu": None}
    described = {**document["target"], **derived}
    values: dict[str, Any] = {field.name: described[field.name] for field in fields(TargetSpec)}
    values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    target = TargetSpec(**values)
    threads = contents.threads or target.cores
    records = applicable(target, threads, logs)
    setting = setting_of(target, threads, "")
    measured: dict[tuple[str, str, str], list[float]] = {}
    for place in records.places:
        for entry in MeasuredLog(place).read()[0]:
            if entry.seconds is not None and Setting(**entry.setting).fits(setting):
                search = entry.operator, entry.rule, entry.space  # predictions stay apart
                measured.setdefault(search, []).append(1e6 * entry.seconds)
    found = []
    for symbol, spec in specs.items():
        record = records.find(spec, tuned[symbol])
        if record is None:
            continue
        inside = record.in_network
        found.append(
            Curve(
                symbol=symbol,
                rule=record.rule,
                analytic=1e6 * record.baseline_seconds,
                tuned=1e6 * record.seconds,
                best=_best_so_far(measured.get((spec, record.rule, record.space), [])),
                network=None if inside is None else inside.network,
                network_analytic=None if inside is None else 1e6 * inside.baseline_seconds,
                network_tuned=None if inside is None else 1e6 * inside.seconds,
            )
        )
    return found


def _specs(kernels: Path, symbols: Sequence[str]) -> Mapping[str, str]:
    """The specification's JSON of each symbol, as its TVMScript in the bundle has it."""
    if not kernels.is_file():
        return {}
    found = {}
    with zipfile.ZipFile(kernels) as archive:
        names = set(archive.namelist())
        for symbol in symbols:
            if (name := f"{symbol}.py") in names:
                match = _SPEC.search(archive.read(name).decode())
                if match:
                    found[symbol] = str(json.loads(match[1]))
    return found


def _best_so_far(times: Sequence[float]) -> tuple[float, ...]:
    best: list[float] = []
    for time in times:
        best.append(min(time, best[-1]) if best else time)
    return tuple(best)
