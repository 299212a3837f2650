"""A process that is killed, or gets an error, at the Nth thing that it does to the file system.

Python reports every call that opens, renames, makes or removes a file before it happens, and can
stop it: see PEP 578. Writes, truncations and flushes of descriptors are not reported, so these are
replaced; a killed write leaves half of its bytes.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

_CHANGES = {"os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.truncate"}
_UNTOUCHED, _REFUSED, _FINISHED = 0, 3, 7
Action = Callable[[], object]


class Countdown:
    """Acts at the Nth change below a directory."""

    def __init__(self, directory: Path, number: int, error: int) -> None:
        self._directory, self.left, self._error = f"{directory}/", number, error

    def start(self) -> None:
        sys.addaudithook(self._hook)
        for name in ("write", "fsync", "ftruncate"):
            self._wrap(name)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or "w" in (mode or "")
            if writes and self._concerns(path):
                self._step()
        elif event in _CHANGES and any(map(self._concerns, arguments)):
            self._step()

    def _concerns(self, path: Any) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(
            self._directory
        )

    def _wrap(self, name: str) -> None:
        original = getattr(os, name)

        def wrapped(descriptor: int, *rest: Any) -> Any:
            if self._concerns(Path(f"/proc/self/fd/{descriptor}").readlink()):
                self._step(lambda: name == "write" and original(descriptor, *_half(rest)))
            return original(descriptor, *rest)

        setattr(os, name, wrapped)

    def _step(self, before: Action = lambda: None) -> None:
        self.left -= 1
        if self.left == 0:
            if self._error:
                raise OSError(self._error, os.strerror(self._error))
            before()
            os.kill(os.getpid(), signal.SIGKILL)


def _half(rest: tuple[Any, ...]) -> tuple[Any, ...]:
    return (rest[0][: len(rest[0]) // 2],)


class Interrupted:
    """Runs an action in forked processes, once for each change that it makes."""

    def __call__(
        self, action: Action, directory: Path, number: int, error: int = 0
    ) -> tuple[str, str]:
        """How it ended and its message: "killed"; "refused", with one of our own errors;
        "finished" all the same; "untouched", having made fewer changes.

        number: the change at which it is killed, or gets the OSError of that number.
        """
        from tvm_mobilenet.errors import TvmMobilenetError

        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            code = 1
            try:
                countdown = Countdown(directory, number, error)
                countdown.start()
                action()
                code = _UNTOUCHED if countdown.left > 0 else _FINISHED
            except TvmMobilenetError as problem:
                os.write(writer, str(problem).encode())
                code = _REFUSED
            except BaseException as problem:
                os.write(writer, f"{type(problem).__name__}: {problem}".encode())
            finally:
                os._exit(code)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            message = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        ends = {
            _UNTOUCHED: "untouched",
            _FINISHED: "finished",
            _REFUSED: "refused",
            -signal.SIGKILL: "killed",
        }
        assert status in ends, f"change {number}: {message}"
        return ends[status], message


class Commands:
    """The command line in processes forked from one that has imported everything."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("forked_commands.py")
        self._process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(
        self, arguments: Sequence[object], place: Path, change: int = 0, error: int = 0
    ) -> tuple[int, str]:
        """Exit code, as forked_commands.py tells it, and all that the command said."""
        job = {"arguments": [str(argument) for argument in arguments], "place": str(place)}
        assert self._process.stdin is not None and self._process.stdout is not None
        print(
            json.dumps({**job, "change": change, "error": error}),
            file=self._process.stdin,
            flush=True,
        )
        code = json.loads(self._process.stdout.readline())["code"]
        return code, place.with_name(f"{place.name}.said").read_text()

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    """commands(arguments, place, change, error) -> exit code, what was said."""
    running = Commands()
    yield running
    running.close()


@pytest.fixture
def numbers() -> Callable[[int, int], Iterable[int]]:
    """numbers(count, of) -> at which changes to kill: `count` of the first `of`, others each time.

    ABUSE_ALL=1: at every one, until there are no more. ABUSE_SEED: those of an earlier run.
    """
    if os.environ.get("ABUSE_ALL"):
        return lambda count, of: itertools.count(1)
    seed = int(os.environ.get("ABUSE_SEED") or secrets.randbelow(10**6))
    sys.stdout.write(f"ABUSE_SEED={seed}\n")
    return lambda count, of: sorted(random.Random(seed).sample(range(1, of + 1), count))


@pytest.fixture
def interrupted() -> Interrupted:
    """interrupted(action, directory, number, error) -> how it ended, its message."""
    return Interrupted()
