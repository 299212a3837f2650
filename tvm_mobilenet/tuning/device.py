"""Where finalists run: this machine, or a device over TVM's RPC. Both do the same two things.

``errors``  a kernel and its plain function on equal arguments: how far apart they are
``race``    whole networks in turns: seconds per round, per operator or end to end
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tvm_mobilenet.errors import NothingMeasuredError
from tvm_mobilenet.tuning import check, turns
from tvm_mobilenet.tuning.measure import first_line, pin

if TYPE_CHECKING:
    from tvm_mobilenet.remote.tracker import Grant
    from tvm_mobilenet.tuning.check import Job

CHECK_SECONDS = 60.0  # for one kernel
RACE_SECONDS = 300.0
WAIT_SECONDS = 600.0  # for a device that others use
_GRACE_SECONDS = 15.0

Libraries = Sequence[tuple[str, int]]  # path, number of operator calls


class Checker(Protocol):
    """What runs kernels once."""

    def errors(self, jobs: Sequence[Job]) -> list[float | str]:
        """For each kernel `check.difference`, or in one line why there is none."""


class Device(Checker, Protocol):
    """What runs finalists."""

    def race(self, libraries: Libraries, inputs: Sequence[np.ndarray], timed: bool) -> np.ndarray:
        """Seconds (networks, rounds, calls) or, not ``timed``, (networks, rounds, 1).

        Raises NothingMeasuredError when the networks do not run.
        """


@dataclass(frozen=True)
class Local:
    """This machine, in a process of its own pinned to ``cpus``: a crash costs one kernel."""

    cpus: tuple[int, ...]

    def errors(self, jobs: Sequence[Job]) -> list[float | str]:
        from tvm.support.popen_pool import PopenPoolExecutor, StatusKind

        pool = PopenPoolExecutor(max_workers=1, timeout=CHECK_SECONDS)
        try:
            return [
                done.value if done.status == StatusKind.COMPLETE else first_line(done.value)
                for done in pool.map_with_error_catching(check.error_here, jobs)
            ]
        finally:
            pool.shutdown(wait=False)

    def race(self, libraries: Libraries, inputs: Sequence[np.ndarray], timed: bool) -> np.ndarray:
        from tvm.support.popen_pool import PopenWorker

        worker = PopenWorker(initializer=partial(pin, self.cpus))
        try:
            worker.send(turns.race_here, (libraries, inputs, timed), timeout=RACE_SECONDS)
            times: np.ndarray = worker.recv()
        except (TimeoutError, ChildProcessError, RuntimeError) as error:
            raise NothingMeasuredError(
                f"running the compiled networks failed: {first_line(error) or repr(error)}"
            ) from error
        finally:
            worker.kill()
        return times


@dataclass(frozen=True)
class Remote:
    """A device of an RPC tracker. ``compiler``: what links for it, None: this machine's own."""

    tracker: str
    key: str
    threads: int
    compiler: Any = None

    def errors(self, jobs: Sequence[Job]) -> list[float | str]:
        from tvm_mobilenet.remote.errors import RemoteError

        found: list[float | str] = []
        with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-tune-") as folder:
            for number, job in enumerate(jobs):
                library = Path(folder) / f"{number}.so"
                try:
                    pair = check.compile_pair(job, library, self.compiler)
                    outputs = self._call(check.outputs_there, library, pair, seconds=CHECK_SECONDS)
                    found.append(check.difference(*outputs))
                except (RemoteError, RuntimeError, ValueError, TypeError) as error:
                    found.append(first_line(error))
        return found

    def race(self, libraries: Libraries, inputs: Sequence[np.ndarray], timed: bool) -> np.ndarray:
        from tvm_mobilenet.remote.errors import RemoteError

        try:
            times: np.ndarray = self._call(
                turns.race_there, libraries, inputs, timed, self.threads, seconds=RACE_SECONDS
            )
        except RemoteError as error:
            raise NothingMeasuredError(f"running the compiled networks failed: {error}") from error
        return times

    def _call(self, function: Any, *arguments: Any, seconds: float) -> Any:
        """`function(grant, *arguments, seconds=...)` in a process that holds the connection."""
        from tvm_mobilenet.remote.process import Process
        from tvm_mobilenet.remote.tracker import Address, Tracker

        with Process() as process:
            process.start()  # before a device is asked for: it waits for us only seconds
            tracker = Tracker(Address.parse(self.tracker))
            grant: Grant = tracker.request(self.key, wait_seconds=WAIT_SECONDS)
            return process.call(
                function, grant, *arguments, seconds=seconds, timeout=seconds + _GRACE_SECONDS
            )
