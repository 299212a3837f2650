"""Builds by the whole command line, each in a process that is killed, or refused, at its Nth write.

    python killed_builds.py MODEL PLACE ERROR N...

Everything is imported once and then forked, N by N: the network is compiled anew each time. Output
and TMPDIR lie in PLACE/N; one JSON line for each tells the exit code, minus the signal; 100 where
it made fewer writes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from conftest import Countdown

from tvm_mobilenet import cli


def build(model: str, place: Path, number: int, error: int) -> int:
    tempfile.tempdir = str(place / "tmp")
    countdown = Countdown(place, number, error)
    countdown.start()
    code = cli.main(["build", model, "--threads", "1", "-o", str(place / "out" / "bundle")])
    return 100 if code == 0 and countdown.left > 0 else code


def main() -> None:
    import torch  # before the fork, and with nothing computed: neither has threads yet

    import tvm_mobilenet.deploy
    import tvm_mobilenet.frontend.load
    import tvm_mobilenet.parity.reference  # noqa: F401

    torch.set_num_threads(1)
    model, where, error, *numbers = sys.argv[1:]
    for number in map(int, numbers):
        place = Path(where) / str(number)
        (place / "tmp").mkdir(parents=True, exist_ok=True)
        process = os.fork()
        if process == 0:
            code = 1
            try:
                os.dup2(os.open(f"{place}.said", os.O_WRONLY | os.O_CREAT), 2)
                os.dup2(2, 1)
                code = build(model, place, number, int(error))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(json.dumps({"number": number, "code": code}), flush=True)


main()
