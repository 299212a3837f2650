"""The processor's own counters over whole inferences, where Linux lets this process read them."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

RUNS = 20
_SYSCALL = {"x86_64": 298, "aarch64": 241, "armv7l": 364}  # perf_event_open
_HARDWARE, _CACHE = 0, 3  # perf_type_id
_READ_MISS = 1 << 16
# name -> type and config of include/uapi/linux/perf_event.h
EVENTS: Mapping[str, tuple[int, int]] = {
    "cycles": (_HARDWARE, 0),
    "instructions": (_HARDWARE, 1),
    "L1 read misses": (_CACHE, 0 | _READ_MISS),
    "last-level read misses": (_CACHE, 2 | _READ_MISS),
}
_SIZE = 64  # bytes of perf_event_attr in its first version, which every kernel takes
_DISABLED, _EXCLUDE_KERNEL, _EXCLUDE_HYPERVISOR = 1 << 0, 1 << 5, 1 << 6
_ENABLED_AND_RUNNING = 1 | 2  # read_format: times that tell of multiplexing
_ENABLE, _DISABLE = 0x2400, 0x2401  # ioctl


@dataclass(frozen=True)
class Counted:
    """Counts of one inference, all threads together; `missing` says why there are none or few."""

    counts: Mapping[str, float]
    missing: str


def count(
    call: Callable[[], object],
    *,
    runs: int = RUNS,
    events: Mapping[str, tuple[int, int]] = EVENTS,
) -> Counted:
    """Count events in user space while `call` runs `runs` times, in every thread there is now."""
    number = _SYSCALL.get(platform.machine())
    if platform.system() != "Linux" or number is None:
        return Counted({}, f"not known how to read them on {platform.system()}")
    counts: dict[str, float] = {}
    reasons: dict[str, None] = {}
    for name, (kind, config) in events.items():
        opened: list[int] = []
        try:
            for thread in _threads():
                opened.append(_open(number, kind, config, thread))
            counts[name] = _counted(call, runs, opened)
        except OSError as error:
            reasons[_reason(error)] = None
        finally:
            for descriptor in opened:
                os.close(descriptor)
    return Counted(counts, "; ".join(reasons))


def _threads() -> list[int]:
    return sorted(int(entry.name) for entry in Path("/proc/self/task").iterdir())


def _open(number: int, kind: int, config: int, thread: int) -> int:
    flags = _DISABLED | _EXCLUDE_KERNEL | _EXCLUDE_HYPERVISOR
    attributes = struct.pack(
        "=IIQQQQQ", kind, _SIZE, config, 0, 0, _ENABLED_AND_RUNNING, flags
    ).ljust(_SIZE, b"\0")
    any_cpu, no_group = -1, -1
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.syscall(number, attributes, thread, any_cpu, no_group, 0)
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return descriptor


def _counted(call: Callable[[], object], runs: int, opened: list[int]) -> float:
    import fcntl

    for descriptor in opened:
        fcntl.ioctl(descriptor, _ENABLE, 0)
    for _ in range(runs):
        call()
    for descriptor in opened:
        fcntl.ioctl(descriptor, _DISABLE, 0)
    total = 0.0
    for descriptor in opened:
        value, enabled, running = struct.unpack("=QQQ", os.read(descriptor, 24))
        total += value * enabled / running if running else 0.0
    return total / runs


def _reason(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "not allowed; run: sysctl kernel.perf_event_paranoid=2"
    if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV):
        return "this processor offers none here, as in most virtual machines"
    return str(error.strerror)
