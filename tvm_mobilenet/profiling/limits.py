"""What this machine can do at most: multiply-adds, and bytes from each level of its memory.

Measured once for a machine and a number of threads and kept in the user's cache directory.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.profiling import bandwidth, machine, peak

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

SCHEMA_VERSION = 1
SECONDS = 0.2  # that each figure is measured for, at least
CALLS = 10

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LevelLimit:
    """What can be read from one level: ``kib`` a core can keep there (0: no limit)."""

    name: str
    kib: int
    gb_per_s: float  # of all threads together, 1e9 bytes


@dataclass(frozen=True)
class Limits:
    """This machine's limits in float32 on ``threads`` threads; the best of many tries each."""

    cpu: str
    vector_bits: int
    threads: int
    gflops: float  # a multiply-add counted as two
    levels: tuple[LevelLimit, ...]  # the nearest first; the last has no limit of size
    measured_on: str  # date
    quiet: bool  # whether enough CPUs had nothing else to do meanwhile

    def __str__(self) -> str:
        rates = ", ".join(f"{level.name} {level.gb_per_s:.0f}" for level in self.levels)
        return f"{_count(self.threads)}: {self.gflops:.0f} GFLOP/s; GB/s: {rates}"

    def microseconds(self, size: int, working_set: int) -> dict[str, float]:
        """The least time to move `size` bytes out of a `working_set` that is used over and over.

        Level by level, the nearest first: each serves the part of the working set that it can
        keep and no nearer one does, its share of the bytes.
        """
        times, held = {}, 0
        for level in self.levels:
            private = level.name in ("L1", "L2")
            room = level.kib * 1024 * (self.threads if private else 1) if level.kib else working_set
            part = max(0, min(room, working_set) - held)
            held += part
            # bytes at 1e9 bytes a second are nanoseconds
            times[level.name] = size * part / max(working_set, 1) / level.gb_per_s / 1e3
        return times


def cache_file() -> Path:
    """Where limits are kept: below $XDG_CACHE_HOME, else ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "tvm-mobilenet" / "limits.json"


def known(threads: int) -> Limits | None:
    """The one of `all_known` on that many threads, or None."""
    return next((found for found in all_known() if found.threads == threads), None)


def all_known() -> list[Limits]:
    """The limits kept for this machine, measured with this TVM, by number of threads."""
    entries = map(_from_json, _read(cache_file()))
    found = [limits for limits in entries if limits and limits.cpu == machine.cpu_name()]
    return sorted(found, key=lambda limits: limits.threads)


def limits(threads: int, *, anew: bool = False, progress: Progress | None = None) -> Limits:
    """The limits kept for this machine, else (or with `anew`) measured now and kept.

    Limits measured on a busy machine are measured again when asked for again, and the better of
    each figure kept. Measuring takes a few seconds and a C++ compiler: MissingToolError where
    there is none.
    """
    kept = known(threads)
    if kept and kept.quiet and not anew:
        return kept
    if progress:
        progress(f"measuring this machine's limits on {_count(threads)}")
    from tvm_mobilenet import targets

    found = measure(targets.detect(), threads)
    if kept and not anew:
        found = _better(kept, found)
    _keep(found)
    return found


def measure(target: TargetSpec, threads: int) -> Limits:
    """Measure `target`'s limits, which must be this machine; nothing is kept."""
    import numpy as np

    from tvm_mobilenet.runtime import library
    from tvm_mobilenet.runtime.bundle import aligned

    ffi = library.tvm_ffi()
    library.use_threads(threads, exactly=True)
    levels = bandwidth.levels(target)
    module = peak.kernel(target, threads)
    module.update(bandwidth.kernels(target, threads, levels))
    cpus = tuple(library.usable_cpus())
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        kernels = ffi.load_module(peak.link(module, target, Path(folder) / "limits.so"))
        watch = machine.Watch(cpus)
        arguments = [ffi.from_dlpack(aligned(x)) for x in peak.arguments(target, threads)]
        seconds = _fastest(kernels[peak.KERNEL], arguments)
        gflops = peak.flops(target, threads) / seconds / 1e9
        out = aligned(np.zeros(threads * bandwidth.SUMS * target.lanes, np.float32))
        found = []
        for level in levels:
            data = aligned(np.zeros(threads * level.buffer_bytes // 4, np.float32))
            data += 0  # gives every page memory of its own: fresh ones are all the same
            arguments = [ffi.from_dlpack(data), ffi.from_dlpack(out)]
            seconds = _fastest(kernels[level.kernel], arguments)
            moved = threads * level.buffer_bytes * level.passes
            found.append(LevelLimit(level.name, level.kib, moved / seconds / 1e9))
        quiet = watch.crowding(threads) is None
    return Limits(
        cpu=machine.cpu_name(),
        vector_bits=target.vector_bits,
        threads=threads,
        gflops=gflops,
        levels=tuple(found),
        measured_on=time.strftime("%Y-%m-%d"),
        quiet=quiet,
    )


def _better(one: Limits, other: Limits) -> Limits:
    """The higher of each figure of two measurements of one machine."""
    pairs = zip(one.levels, other.levels, strict=True)
    levels = tuple(max(pair, key=lambda level: level.gb_per_s) for pair in pairs)
    return dataclasses.replace(other, gflops=max(one.gflops, other.gflops), levels=levels)


def _fastest(call: Callable[..., Any], arguments: list[Any]) -> float:
    """Seconds of the fastest call: a limit is what undisturbed code reaches."""
    best = float("inf")
    calls, until = 0, time.perf_counter() + SECONDS
    while calls < CALLS or time.perf_counter() < until:
        start = time.perf_counter()
        call(*arguments)
        best = min(best, time.perf_counter() - start)
        calls += 1
    return best


def _count(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def _keep(found: Limits) -> None:
    """Write them beside those of other machines and thread counts; a full disk is no failure."""
    path = cache_file()
    same = (found.cpu, found.threads)
    others = [e for e in _read(path) if (e.get("cpu"), e.get("threads")) != same]
    entry = {**dataclasses.asdict(found), "schema_version": SCHEMA_VERSION, "tvm": _tvm_version()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump([*others, entry], file, indent=1)
        Path(file.name).replace(path)
    except OSError:
        return  # a read-only home: measured again next time


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []


def _from_json(entry: dict[str, Any]) -> Limits | None:
    """None for what another version of this package or of TVM wrote."""
    if (entry.get("schema_version"), entry.get("tvm")) != (SCHEMA_VERSION, _tvm_version()):
        return None
    values = {f.name: entry.get(f.name) for f in dataclasses.fields(Limits)}
    try:
        levels = tuple(LevelLimit(**level) for level in entry["levels"])
    except (KeyError, TypeError):
        return None
    return Limits(**{**values, "levels": levels})  # type: ignore[arg-type]


def _tvm_version() -> str:
    return version("apache-tvm")
