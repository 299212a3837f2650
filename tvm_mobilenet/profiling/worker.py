"""The process that one contestant lives in: `python -m tvm_mobilenet.profiling.worker FD CPUS`.

It answers one request after the other over a connection and is blocked on it, or stopped, while
another contestant is timed. `process.py` is the other end.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and hasattr(os, "sched_setaffinity"):
    # before any import: thread pools are sized and placed by the CPUs that they see
    os.sched_setaffinity(0, [int(cpu) for cpu in sys.argv[2].split(",")])

import gc
import resource
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.child import die_with_parent
from tvm_mobilenet.profiling.contestants import contestant
from tvm_mobilenet.profiling.contestants.base import Contestant, Source

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Opened:
    """What is known of a contestant once it has loaded its model."""

    version: str
    settings: str
    load_seconds: float


@dataclass(frozen=True)
class Block:
    """One uninterrupted series of runs."""

    nanoseconds: tuple[int, ...]  # of each run after the warm-up
    preempted: int  # times that the kernel took a CPU away from a thread of ours
    cpu_seconds: float  # of all threads, warm-up included


@dataclass(frozen=True)
class Memory:
    """Resident memory of the process in bytes; None where the system does not tell."""

    resident: int | None  # now, after the runs
    peak: int | None
    session: int | None  # the part of `resident` that came with runtime, model and runs


class Worker:
    """The requests that a worker answers; each method is one."""

    def __init__(self) -> None:
        self._contestant: Contestant
        self._inputs: list[np.ndarray] = []
        self._baseline: int | None = None

    def convert(self, name: str, source: Source, folder: Path) -> Path:
        """Make contestant `name`'s own form of the model in `folder`; returns where it is."""
        return contestant(name)().convert(source, folder)

    def open(self, name: str, artifact: Path, threads: int, inputs: list[np.ndarray]) -> Opened:
        """Load a model and put the inputs in place."""
        self._contestant = contestant(name)()
        self._baseline = _resident("VmRSS")
        start = time.perf_counter()
        self._contestant.load(artifact, threads)
        seconds = time.perf_counter() - start
        self._inputs = inputs  # several runtimes only look at them, so they must stay alive
        self._contestant.feed(self._inputs)
        gc.collect()
        gc.disable()  # no collection inside a timed run
        return Opened(self._contestant.version(), self._contestant.settings, seconds)

    def outputs(self) -> list[np.ndarray]:
        """The outputs of a second run: a runtime that overwrites its input is found out."""
        self._contestant.run()
        self._contestant.run()
        return self._contestant.outputs()

    def block(self, warm_up: int, runs: int) -> Block:
        """Run `warm_up` times unmeasured, then `runs` times measured."""
        run, clock = self._contestant.run, time.perf_counter_ns
        cpu = time.process_time()
        for _ in range(warm_up):
            run()
        preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        times = []
        for _ in range(runs):
            start = clock()
            run()
            times.append(clock() - start)
        preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - preempted
        return Block(tuple(times), preempted, time.process_time() - cpu)

    def memory(self) -> Memory:
        """Memory up to now."""
        peak, now = _resident("VmHWM"), _resident("VmRSS")
        if now is None or self._baseline is None:
            return Memory(now, peak, None)
        return Memory(now, peak, now - self._baseline)


def _resident(key: str) -> int | None:
    # not ru_maxrss: that keeps the parent's size across fork and exec
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    for line in status.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def main(descriptor: int) -> None:
    """Answer requests until the other end closes."""
    die_with_parent()
    worker = Worker()
    with Connection(descriptor) as connection:
        while True:
            try:
                method, arguments = connection.recv()
            except EOFError:
                return
            reply: tuple[bool, Any]
            try:
                reply = True, getattr(worker, method)(**arguments)
            except Exception as error:  # whatever a foreign runtime raises is its result
                traceback.print_exc()
                reply = False, f"{type(error).__name__}: {error}"
            connection.send(reply)


if __name__ == "__main__":
    from tvm_mobilenet.profiling import worker  # not __main__: its classes must unpickle there

    worker.main(int(sys.argv[1]))
