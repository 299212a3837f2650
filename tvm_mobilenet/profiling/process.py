"""A contestant's process seen from the bench: start it, ask it, stop and continue it, end it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Self

from tvm_mobilenet import child

_WORKER = "tvm_mobilenet.profiling.worker"
_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TVM_NUM_THREADS")


class ContestantError(Exception):
    """A contestant failed, died or did not answer; the message is one line."""


class ContestantProcess:
    """One worker process, pinned to `cpus`.

    Between its blocks it is stopped with SIGSTOP: thread pools of several runtimes spin for a
    while after the last run (ONNX Runtime, OpenMP, ours) and would take the CPUs from whoever is
    timed next. What a stop costs (sleeping threads, cold caches) the warm-up of each block repays.
    """

    def __init__(self, cpus: tuple[int, ...], threads: int, log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process, self._connection = child.start(
                _WORKER,
                ",".join(map(str, cpus)),
                environment=dict.fromkeys(_COUNTS, str(threads)),
                stdout=output,
                stderr=output,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def call(self, method: str, *, timeout: float, **arguments: Any) -> Any:
        """Ask the worker (see `worker.Worker`) and wait for its answer, `timeout` seconds at most.

        Raises ContestantError when it fails, dies or does not answer in time.
        """
        try:
            self._connection.send((method, arguments))
            if not self._connection.poll(timeout):
                raise ContestantError(f"no answer to '{method}' within {timeout:.0f} s")
            done, result = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ContestantError(self._last_words(method)) from error
        if not done:
            raise ContestantError(" ".join(result.split())[:300])
        return result

    def pause(self) -> None:
        """Stop every thread of the process; returns when it has stopped."""
        self._process.send_signal(signal.SIGSTOP)
        # One that died instead never stops: its end is seen here, and reported by the next `call`.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a stopped process go on."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process, stopped or not."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _last_words(self, method: str) -> str:
        try:
            how = child.ending(self._process.wait(timeout=10))
        except subprocess.TimeoutExpired:
            return f"its process closed the connection in '{method}'"
        lines = self._log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its process ended in '{method}' with {how}" + (f": {last[:200]}" if last else "")
