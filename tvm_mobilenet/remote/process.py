"""A process that holds connections to devices, seen from the one that gives it work.

Not TVM's PopenWorker: that waits for its child without limit (the child times itself, which a
blocked one cannot), and starts in three times as long because it brings PyTorch in.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self, TypeVar

from tvm_mobilenet import child
from tvm_mobilenet.remote.errors import OvertimeError, RemoteError

START_SECONDS = 120.0  # importing TVM on a loaded machine
GRACE_SECONDS = 15.0  # beyond a session's limit: for the device to end it by itself, and to say so
# the worker only calls and is called: no compiler, one thread
_ENVIRONMENT = {"TVM_USE_RUNTIME_LIB": "1", "TVM_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

Result = TypeVar("Result")


class Process:
    """Calls functions in a process of its own, which is started when needed and after an end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the process unless it runs; RemoteError when it does not come up."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._process, self._connection = child.start(
            "tvm_mobilenet.remote.worker", environment=_ENVIRONMENT
        )
        self._receive("start", START_SECONDS)

    def call(
        self, function: Callable[..., Result], *arguments: Any, timeout: float, **named: Any
    ) -> Result:
        """`function(*arguments, **named)` over there; `function` must be a module's.

        Raises what it raises, if that is a RemoteError, else a RemoteError with its message.
        OvertimeError after `timeout` seconds, RemoteError when the process dies; it is ended then.
        """
        self.start()
        try:
            self._connection.send((function, arguments, named))
        except OSError as error:
            raise RemoteError(self._end()) from error
        result: Result = self._receive(function.__name__, timeout)
        return result

    def kill(self) -> None:
        """End the process under a call in another thread, which then raises RemoteError."""
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    def _receive(self, what: str, timeout: float) -> Any:
        reply: tuple[bool, Any] | None = None
        try:
            if self._connection.poll(timeout):
                reply = self._connection.recv()
        except (EOFError, OSError) as error:
            raise RemoteError(self._end()) from error
        if reply is None:
            self.close()
            raise OvertimeError(f"no answer to '{what}' within {timeout:g} s")
        done, result = reply
        if not done:
            raise result
        return result

    def _end(self) -> str:
        """End a process that closed its connection; how it ended."""
        assert self._process is not None
        try:
            how = f"ended with {child.ending(self._process.wait(timeout=5))}"
        except subprocess.TimeoutExpired:
            how = "closed it"
        self.close()
        return f"the process that held the connection {how}"
