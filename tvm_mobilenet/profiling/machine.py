"""The machine during a bench: which CPUs to use, and what else they were doing."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from tvm_mobilenet.errors import UsageError
from tvm_mobilenet.runtime import library

FOREIGN_LIMIT = 0.02  # more of the CPUs' time than this taken by others is worth a note
STEAL_LIMIT = 0.01


@dataclass(frozen=True)
class Disturbance:
    """What was not ours during a measurement; None where the system does not tell."""

    load_average: float  # of the last minute, at the end
    foreign_share: float | None  # of the pinned CPUs' time: other processes and interrupts
    steal_share: float | None  # of the pinned CPUs' time: the hypervisor's other guests

    def notes(self) -> tuple[str, ...]:
        """One line for each figure that is high enough to doubt the result."""
        notes = []
        if self.foreign_share is not None and self.foreign_share > FOREIGN_LIMIT:
            notes.append(
                f"other processes used {self.foreign_share:.0%} of the pinned CPUs "
                f"(load average {self.load_average:.1f}): trust the ratios, not the times"
            )
        if self.steal_share is not None and self.steal_share > STEAL_LIMIT:
            notes.append(f"the hypervisor took away {self.steal_share:.0%} of the CPUs' time")
        return tuple(notes)


class Watch:
    """Counts, from its creation on, what the given CPUs do."""

    def __init__(self, cpus: tuple[int, ...]) -> None:
        self._cpus = cpus
        self._start = time.perf_counter()
        self._before = _busy_and_stolen(cpus)
        self._own = time.process_time()

    def disturbance(self, cpu_seconds: float) -> Disturbance:
        """What happened since; `cpu_seconds`: the contestants' own CPU time in between."""
        elapsed = (time.perf_counter() - self._start) * len(self._cpus)
        load = os.getloadavg()[0]
        after = _busy_and_stolen(self._cpus)
        if self._before is None or after is None or elapsed <= 0:
            return Disturbance(load, None, None)
        busy, stolen = (b - a for a, b in zip(self._before, after, strict=True))
        ours = cpu_seconds + time.process_time() - self._own
        return Disturbance(load, max(0.0, busy - ours) / elapsed, stolen / elapsed)

    def crowding(self, threads: int) -> float | None:
        """How many CPUs others used since, where `threads` threads did not find enough free ones.

        None: they did, or the system does not tell. The threads must be this process's.
        """
        share = self.disturbance(0.0).foreign_share
        used = 0.0 if share is None else share * len(self._cpus)
        return used if used > len(self._cpus) - threads + 0.1 else None


def _busy_and_stolen(cpus: tuple[int, ...]) -> tuple[float, float] | None:
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    wanted = {f"cpu{cpu}" for cpu in cpus}
    busy = stolen = 0.0
    for line in stat.read_text().splitlines():
        name, *fields = line.split()
        if name in wanted:
            user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, fields)
            busy += (user + nice + system + irq + softirq) / ticks
            stolen += steal / ticks
    return busy, stolen


def pick_cpus(threads: int) -> tuple[int, ...]:
    """The CPUs for `threads` threads: one a physical core as long as there are enough.

    UsageError when this process may not use that many.
    """
    allowed = sorted(library.usable_cpus())
    if threads > len(allowed):
        raise UsageError(f"--threads {threads}: this process may use {len(allowed)} CPUs")
    first_of_core: dict[str, int] = {}
    for cpu in allowed:
        first_of_core.setdefault(_core(cpu), cpu)
    cores = list(first_of_core.values())
    siblings = [cpu for cpu in allowed if cpu not in cores]
    return tuple((cores + siblings)[:threads])


def _core(cpu: int) -> str:
    siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return siblings.read_text().strip() if siblings.is_file() else str(cpu)


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def vendor() -> str:
    """Who made an x86 processor, as its cpuid says: "GenuineIntel", ...; "" where not told."""
    return _cpuinfo("vendor_id")


def _cpuinfo(key: str) -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    return ""
