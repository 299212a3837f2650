"""The process that holds connections: what it answers, and how it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tvm_mobilenet.remote.errors import LostDeviceError, OvertimeError, RemoteError
from tvm_mobilenet.remote.process import Process

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with Process() as running:
        yield running


LOSE = "from tvm_mobilenet.remote.errors import *; raise LostDeviceError('no device')"


def test_answers_and_errors_come_back(process: Process) -> None:
    assert process.call(divmod, 17, 5, timeout=60) == (3, 2)
    with pytest.raises(RemoteError, match="ZeroDivisionError: "):
        process.call(divmod, 1, 0, timeout=60)
    with pytest.raises(LostDeviceError, match=r"^no device$"):
        process.call(exec, LOSE, timeout=60)


def test_one_that_does_not_answer_is_ended_and_started_anew(process: Process) -> None:
    first = process.call(os.getpid, timeout=60)
    with pytest.raises(OvertimeError, match=r"no answer to 'sleep' within 0\.1 s"):
        process.call(time.sleep, 600, timeout=0.1)
    second = process.call(os.getpid, timeout=60)
    assert second != first
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_one_that_dies_says_how(process: Process) -> None:
    with pytest.raises(RemoteError, match="ended with signal SIGKILL"):
        process.call(signal.raise_signal, signal.SIGKILL, timeout=60)
    with pytest.raises(RemoteError, match="ended with exit code 3"):
        process.call(os._exit, 3, timeout=60)
    assert process.call(abs, -1, timeout=60) == 1
