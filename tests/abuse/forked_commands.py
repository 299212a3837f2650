"""The command line in forked processes: killed or refused at a write, and never without an end.

Jobs come on stdin and answers go to stdout, one JSON document a line. Everything is imported once
and then forked, job by job: a network is compiled anew each time.

job: `arguments` of the command line; `place`, a directory, with PLACE/tmp for temporary files;
`change`: the number of the change below PLACE at which the command is killed, or gets the OSError
`error` if that is not 0; 0 for never. answer: `code`, the exit code, minus the signal that ended
it; 100 where it ended well and made fewer changes. What it said is in PLACE.said; each measurement
of tuning that it held for written, in PLACE.measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conftest import Countdown

from tvm_mobilenet import cli

SECONDS = 300  # of CPU time, for the command alone
MEMORY = 8 << 30  # bytes beyond what the process has


def run(arguments: Sequence[str], place: Path, change: int, error: int) -> int:
    """The command in this process; does not return where it is killed."""
    note_measurements(place.with_name(f"{place.name}.measured"))
    tempfile.tempdir = os.environ["TMPDIR"] = str(place / "tmp")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process: a hang in C is seen
    countdown = Countdown(place, change, error)
    countdown.start()
    code = cli.main(arguments)
    return 100 if code == 0 and countdown.left > 0 else code


def note_measurements(path: Path) -> None:
    """Have every line of the tuning log noted once `append` said that it is on the disk."""
    from tvm_mobilenet.tuning.store import MeasuredLog

    append = MeasuredLog.append

    def noted(self: MeasuredLog, entries: Sequence[Any]) -> None:
        append(self, entries)
        with path.open("a") as file:
            file.writelines(f"{json.dumps([e.operator, e.rule, e.knobs])}\n" for e in entries)

    MeasuredLog.append = noted  # type: ignore[method-assign]


def answer(arguments: Sequence[str], place: str, change: int, error: int) -> int:
    """Forks for the command and waits for its end; what it started ends with it."""
    Path(place, "tmp").mkdir(parents=True, exist_ok=True)
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            os.dup2(os.open(f"{place}.said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            os.dup2(2, 1)
            code = run(arguments, Path(place), change, error)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(ProcessLookupError):  # nothing was left
        os.killpg(process, signal.SIGKILL)
    return code


def main() -> None:
    """Answers until stdin ends."""
    import torch  # before the fork, and with nothing computed: neither has threads yet

    import tvm_mobilenet.deploy
    import tvm_mobilenet.frontend.load
    import tvm_mobilenet.parity.reference
    import tvm_mobilenet.tuning.tune  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps({"code": answer(**json.loads(line))}), flush=True)


main()
