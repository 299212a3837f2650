"""A profile as a JSON document, as CSV, and as a trace for Perfetto or chrome://tracing."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError

if TYPE_CHECKING:
    from tvm_mobilenet.profiling.instructions import InstructionProfile
    from tvm_mobilenet.profiling.profile import Profile
    from tvm_mobilenet.profiling.rows import By

TRACED_RUNS = 20
_PROCESS = 1
_RUNS_TRACK, _OPERATORS_TRACK = 1, 2


def check_writable(path: Path, option: str) -> None:
    """Whether a file may be written there: before seconds of measuring, not after.

    Raises InputError for a directory, or where no file can be made or changed.
    """
    try:
        if path.is_dir():
            raise InputError(f"{option} {path}: is a directory; name a file")
        if not path.parent.is_dir():
            raise InputError(f"{option} {path}: there is no directory {path.parent}")
        new = not path.exists()
        path.open("ab").close()  # permissions alone do not tell: a disk may be read-only
        if new:
            path.unlink()
    except OSError as error:
        raise InputError(
            f"{option} {path}: cannot be written ({error.strerror}); name another file"
        ) from error


def document(profile: Profile) -> dict[str, Any]:
    """Everything that is known, with the raw times in nanoseconds; `compare` reads it back."""
    samples, whole = profile.samples, profile.reconciliation
    return {
        "bundle": profile.bundle,
        "model": profile.model,
        "target": profile.target,
        "cpu": profile.cpu,
        "threads": profile.threads,
        "runs": profile.runs,
        "mult_adds": profile.mult_adds,
        "phases": profile.phases,
        "reconciliation": {
            "operators_us": whole.operators,
            "entry_us": whole.entry,
            "exit_us": whole.exit,
            "parts_us": whole.parts,
            "with_instruments_us": whole.timed,
            "without_instruments_us": whole.plain,
            "difference_us": whole.difference,
            "instruments_us": whole.instruments,
            "explained": whole.explained,
        },
        "limits": profile.limits,
        "counters": samples.counted.counts,
        "counters_missing": samples.counted.missing,
        "notes": profile.notes,
        "parity": profile.parity,
        "layers": profile.rows("layer"),
        "ops": profile.rows("op"),
        "kinds": profile.rows("kind"),
        "nanoseconds": {
            "without_instruments": samples.plain,
            "with_instruments": samples.timed,
            "operators": [operator.nanoseconds for operator in samples.operators],
        },
    }


def write_csv(profile: Profile | InstructionProfile, path: Path, by: By = "layer") -> None:
    """Write `profile.rows(by)` with a header line; lists are joined by spaces, knobs are JSON."""
    rows = profile.rows(by)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            nodes, knobs = row["onnx_nodes"], row["knobs"]
            flat = {"onnx_nodes": " ".join(nodes), "knobs": "" if knobs is None else _json(knobs)}
            writer.writerow(row | flat)


def write_trace(profile: Profile, path: Path) -> None:
    """Write the first run and the first steady ones in Chrome's trace event format.

    Perfetto (ui.perfetto.dev) and chrome://tracing open it. Runs follow each other without the
    pauses, in which the bundle ran without instruments.
    """
    trace = {
        "traceEvents": [*_names(profile), *_events(profile)],
        "displayTimeUnit": "ns",
        "otherData": {
            "bundle": profile.bundle,
            "model": profile.model,
            "target": profile.target,
            "cpu": profile.cpu,
            "threads": profile.threads,
        },
    }
    path.write_text(json.dumps(trace), encoding="utf-8")


def _names(profile: Profile) -> Iterator[dict[str, Any]]:
    title = f"{profile.model} on {profile.target}"
    tracks = {_RUNS_TRACK: "runs", _OPERATORS_TRACK: "operators"}
    yield {"ph": "M", "pid": _PROCESS, "name": "process_name", "args": {"name": title}}
    for track, name in tracks.items():
        ids = {"ph": "M", "pid": _PROCESS, "tid": track}
        yield {**ids, "name": "thread_name", "args": {"name": name}}


def _events(profile: Profile) -> Iterator[dict[str, Any]]:
    samples = profile.samples
    runs: list[tuple[str, float, list[float], float]] = []
    firsts = [operator.first for operator in profile.operators if operator.first is not None]
    if samples.first is not None:
        around = max(0.0, samples.first / 1e3 - sum(firsts))  # what the call spent before them
        runs.append(("first run", around, firsts, samples.first / 1e3))
    for run in range(min(TRACED_RUNS, profile.runs)):
        times = [operator.nanoseconds[run] / 1e3 for operator in samples.operators]
        around = 0.0 if samples.entry is None else samples.entry[run] / 1e3
        runs.append((f"run {run}", around, times, samples.timed[run] / 1e3))
    clock = 0.0
    for name, before, times, total in runs:
        yield _event(_RUNS_TRACK, name, "run", clock, float(total), {})
        at = clock + float(before)
        for operator, time in zip(profile.operators, times, strict=True):
            about = {
                "symbol": operator.symbol,
                "onnx_nodes": list(operator.onnx_nodes),
                "shape": operator.shape,
                "schedule": f"{operator.schedule} ({operator.source})",
                "knobs": dict(operator.knobs),
                "threads": operator.threads,
            }
            yield _event(_OPERATORS_TRACK, operator.name, operator.kind, at, float(time), about)
            at += float(time)
        clock += float(total)


def _event(
    track: int, name: str, category: str, start: float, duration: float, about: dict[str, Any]
) -> dict[str, Any]:
    return {
        "ph": "X",  # complete: begin and duration in one, in microseconds
        "pid": _PROCESS,
        "tid": track,
        "name": name,
        "cat": category,
        "ts": round(start, 3),
        "dur": round(duration, 3),
        "args": about,
    }


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
