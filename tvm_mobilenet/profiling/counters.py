"""The processor's own counters, operator by operator, where Linux lets this process read them.

Each thread that works for the network gets a group of events (perf_event_open(2)), which one
read(2) gives; the bundle's entry ``main_counted`` reads all groups between the operators. What
does not fit into the processor's counters at once is counted in further runs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.profiling.machine import vendor

if TYPE_CHECKING:
    import numpy as np

RUNS = 20
_SYSCALL = {"x86_64": 298, "aarch64": 241, "armv7l": 364}  # perf_event_open
_HARDWARE, _CACHE, _RAW = 0, 3, 4  # perf_type_id of include/uapi/linux/perf_event.h
_READ_MISS = 1 << 16
# Linux has no name of its own for L2's misses. Intel since Haswell: L2_RQSTS.MISS; AMD's Zen:
# event 0x64, instruction and data misses; ARMv8: L2D_CACHE_REFILL
_L2_MISSES = {"GenuineIntel": 0x3F24, "AuthenticAMD": 0x0964, "ARM": 0x17}
_SIZE = 64  # bytes of perf_event_attr in its first version, which every kernel takes
_DISABLED, _EXCLUDE_KERNEL, _EXCLUDE_HYPERVISOR = 1 << 0, 1 << 5, 1 << 6
_ENABLED, _RUNNING, _GROUP = 1 << 0, 1 << 1, 1 << 3  # read_format
_HEAD = 3  # words before the values: how many, time enabled, time running
_ENABLE, _WHOLE_GROUP = 0x2400, 1  # ioctl
_PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")

# (descriptors, words) -> readings (runs, places, threads, words): calls the entry some times
Read = Callable[[Sequence[int], int], "np.ndarray"]


@dataclass(frozen=True)
class Event:
    """One thing to count: `name` is its key in rows and JSON, `title` is for people."""

    name: str
    title: str
    kind: int
    config: int


@dataclass(frozen=True)
class Counted:
    """Counts in user space, all threads together, without what reading them costs.

    `operators`: of each operator by event. `missing`: the kernel's reason by the title of an event
    that could not be counted; `hint`: what to do about it.
    """

    operators: tuple[Mapping[str, float], ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""

    @property
    def counts(self) -> dict[str, float]:
        """Of all operators of an inference, by event."""
        names = self.operators[0] if self.operators else ()
        return {name: sum(operator[name] for operator in self.operators) for name in names}

    @property
    def note(self) -> str:
        """What is missing, why, and what to do, in one line; "" when nothing is."""
        reasons: dict[str, list[str]] = {}
        for title, reason in self.missing.items():
            reasons.setdefault(reason, []).append(title)
        listed = "; ".join(f"{', '.join(titles)}: {why}" for why, titles in reasons.items())
        return f"not counted: {listed}{self.hint and f' ({self.hint})'}" if listed else ""


def events() -> tuple[Event, ...]:
    """What is counted on a processor like this one."""
    found = [
        Event("cycles", "cycles", _HARDWARE, 0),
        Event("instructions", "instructions", _HARDWARE, 1),
        Event("l1d_read_misses", "L1 read misses", _CACHE, 0 | _READ_MISS),
        Event("llc_read_misses", "last-level read misses", _CACHE, 2 | _READ_MISS),
    ]
    maker = "ARM" if platform.machine() in ("aarch64", "armv7l") else vendor()
    if maker in _L2_MISSES:
        found.insert(3, Event("l2_misses", "L2 misses", _RAW, _L2_MISSES[maker]))
    return tuple(found)


def row(operators: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Counts of the operators together, instructions a cycle, misses per 1000 instructions.

    None for what was not counted.
    """
    counts: dict[str, float | None] = dict.fromkeys(event.name for event in events())
    for name in operators[0]:
        counts[name] = sum(operator[name] for operator in operators)

    def rate(name: str, per: str, times: float = 1.0) -> float | None:
        above, below = counts.get(name), counts.get(per)
        return None if above is None or not below else times * above / below

    return {
        **counts,
        "ipc": rate("instructions", "cycles"),
        "l1d_mpki": rate("l1d_read_misses", "instructions", 1000),
        "l2_mpki": rate("l2_misses", "instructions", 1000),
        "llc_mpki": rate("llc_read_misses", "instructions", 1000),
    }


def count(read: Read, warm_up: Callable[[], object], wanted: Sequence[Event]) -> Counted:
    """Count events between the places of `read`; see `compiler_pass.counted_entry` for those.

    `warm_up` runs the network once: threads that do nothing in it are left out.
    """
    number = _SYSCALL.get(platform.machine())
    if platform.system() != "Linux" or number is None:
        why = f"not known how to on {platform.system()} on {platform.machine()}"
        return Counted(missing={event.title: why for event in wanted})
    missing: dict[str, str] = {}
    hint = ""
    there = []
    for event in wanted:
        try:
            os.close(_open(number, event, 0, -1))
            there.append(event)
        except OSError as error:
            missing[event.title] = str(error.strerror)
            hint = hint or _hint(error)
    operators: list[dict[str, float]] = []
    while there:
        try:
            with _groups(number, there, warm_up) as (descriptors, fitting):
                counted, never = _of_operators(read(descriptors, _HEAD + len(fitting)), fitting)
        except OSError as error:
            missing |= {event.title: str(error.strerror) for event in there}
            hint = hint or _hint(error)
            break
        missing |= {event.title: "others hold the processor's counters" for event in never}
        operators = operators or [{} for _ in counted]
        for into, one in zip(operators, counted, strict=True):
            into.update(one)
        there = there[len(fitting) :]
    return Counted(tuple(one for one in operators if one), missing, hint)


@contextmanager
def _groups(
    number: int, wanted: Sequence[Event], warm_up: Callable[[], object]
) -> Iterator[tuple[list[int], list[Event]]]:
    """Running groups of the threads that work, and the events in them: the first ones that fit."""
    import fcntl

    with ExitStack() as stack:

        def opened(event: Event, thread: int, group: int) -> int:
            descriptor = _open(number, event, thread, group)
            stack.callback(os.close, descriptor)
            return descriptor

        fitting = list(wanted[:1])
        own = opened(fitting[0], 0, -1)
        for event in wanted[1:]:
            try:
                opened(event, 0, own)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSPC):
                    raise
                break  # the group is full
            fitting.append(event)
        leaders = [own]
        for thread in sorted(int(entry.name) for entry in Path("/proc/self/task").iterdir()):
            if thread != threading.get_native_id():
                leaders.append(opened(fitting[0], thread, -1))
                for event in fitting[1:]:
                    opened(event, thread, leaders[-1])
        for leader in leaders:
            fcntl.ioctl(leader, _ENABLE, _WHOLE_GROUP)
        size = 8 * (_HEAD + len(fitting))
        before = [os.read(leader, size) for leader in leaders]
        warm_up()
        # the times tell of a thread that ran even where every event is rare
        busy = [
            leader
            for leader, then in zip(leaders, before, strict=True)
            if leader == own or os.read(leader, size)[16:] != then[16:]
        ]
        yield busy, fitting


def _of_operators(
    readings: np.ndarray, counted: Sequence[Event]
) -> tuple[list[dict[str, float]], list[Event]]:
    """Counts of each operator by event, and the events that never got a counter.

    Medians over the runs; where events took turns at the counters, scaled by the time that they
    had one, as perf does.
    """
    import numpy as np

    steps = np.diff(readings.astype(np.float64), axis=1)  # (runs, places - 1, threads, words)
    enabled, running = steps[..., 1:2], steps[..., 2:3]
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(enabled == 0, 0.0, enabled / running)  # a sleeping thread counts nothing
        whole = (steps[..., _HEAD:] * scale).sum(axis=2)  # not finite where one had no counter
    whole[~np.isfinite(whole)] = np.nan
    if np.isnan(whole).all(axis=0).any():
        return [{}] * (readings.shape[1] - 4), list(counted)
    values = np.nanmedian(whole, axis=0)
    own = values[-2]  # from the last operator's reading to the one at once after it
    operators = np.maximum(values[1:-2] - own, 0.0)
    names = [event.name for event in counted]
    return [dict(zip(names, map(float, row), strict=True)) for row in operators], []


def _open(number: int, event: Event, thread: int, group: int) -> int:
    """perf_event_open of a thread of ours (0: this one), in the group of that leader (-1: none)."""
    flags = _EXCLUDE_KERNEL | _EXCLUDE_HYPERVISOR | (_DISABLED if group < 0 else 0)
    attributes = struct.pack(
        "=IIQQQQQ", event.kind, _SIZE, event.config, 0, 0, _ENABLED | _RUNNING | _GROUP, flags
    ).ljust(_SIZE, b"\0")
    any_cpu = -1
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.syscall(number, attributes, thread, any_cpu, group, 0)
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return descriptor


def _hint(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        level = int(_PARANOID.read_text()) if _PARANOID.is_file() else 0
        if level > 2:
            return f"perf_event_paranoid is {level}; run: sysctl kernel.perf_event_paranoid=2"
        return "the container forbids it; start it with --cap-add PERFMON or without seccomp"
    if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV):
        return "none here, as in most virtual machines; --instructions counts by stepping"
    return ""
