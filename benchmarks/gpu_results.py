"""gpu.json, which holds what every step of gpu.py gave, and the processes that do the steps.

A kernel that reads where it must not leaves the process no GPU for anything after it, and one that
never ends leaves no process. So a process of its own does the steps, and where it breaks or hangs,
that is what the step gave, and another one goes on.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_report import markdown

Step = Callable[[], dict[str, Any]]
GPU_BROKE = 70  # exit code of a process whose GPU does nothing any more
NAME = "gpu.json"


class Results:
    """OUT/gpu.json and the page beside it; what is done is not done again."""

    def __init__(self, directory: Path, since: str | None = None) -> None:
        """since: when this run began, as `now` says it: what failed after it is not tried again."""
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / NAME
        self.since = since or now()
        self.document: dict[str, Any] = {"schema_version": 1, "steps": {}}
        if self.path.is_file():
            self.document = json.loads(self.path.read_text())

    def do(self, name: str, step: Step) -> None:
        """Do a step and keep what it gives, or why it failed: the others go on."""
        earlier = self.document["steps"].get(name, {})
        if earlier.get("state") == "done":
            return
        if earlier.get("state") == "failed" and earlier["date"] >= self.since:
            return
        sys.stderr.write(f"{name}\n")
        start = time.perf_counter()
        self.set(name, {"state": "running", "date": now()})
        try:
            entry = {"state": "done", **step()}
        except Exception as error:
            traceback.print_exc()
            from tvm_mobilenet.profiling.gpu_bench import told

            entry = {"state": "failed", "error": told(error)}
        entry["seconds"] = round(time.perf_counter() - start, 1)
        self.set(name, entry | {"date": now()})
        if entry["state"] == "failed" and _gpu_broke():
            os._exit(GPU_BROKE)  # not even CUDA's own clean-up comes back from it

    def set(self, name: str, entry: dict[str, Any] | None) -> None:
        """Keep a step's entry, None: forget it; both files are written whole or not at all."""
        self.document["steps"].pop(name, None)
        if entry is not None:
            self.document["steps"][name] = entry
        texts = json.dumps(self.document, indent=1, default=str), markdown(self.document)
        for path, text in zip((self.path, self.path.with_suffix(".md")), texts, strict=True):
            unfinished = path.with_name(f"{path.name}.unfinished")
            unfinished.write_text(text)
            unfinished.replace(path)

    def running(self) -> tuple[str, float] | None:
        """The step that is being done, and for how many seconds."""
        for name, entry in self.document["steps"].items():
            if entry["state"] == "running":
                began = datetime.datetime.fromisoformat(entry["date"])
                return name, (datetime.datetime.now(datetime.UTC) - began).total_seconds()
        return None


def now() -> str:
    """The time in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def in_processes(
    work: Callable[[], int], directory: Path, limit: float | None, step_limit: float
) -> int:
    """Do `work`, which does steps, in one process after another until one gets to its end.

    limit: seconds after which all is over; the step that is cut is done again next time.
    step_limit: seconds that one step may take. Returns what the last process did: 1 for the limit.
    """
    start = time.monotonic()
    while True:
        process = multiprocessing.get_context("fork").Process(target=_lead, args=(work,))
        process.start()
        try:
            reason = None
            while process.is_alive() and reason is None:
                process.join(0.5)
                running = Results(directory).running()
                if limit and time.monotonic() - start > limit:
                    reason = "limit"
                elif running is not None and running[1] > step_limit:
                    reason = f"it was ended after {step_limit:.0f} s, its limit"
        finally:
            _end(process)
        code = process.exitcode or 0
        results = Results(directory)
        running = results.running()
        if reason == "limit":
            if running is not None:
                results.set(running[0], None)
            sys.stderr.write("the limit is reached; start it again to go on\n")
            return 1
        if running is not None:
            what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            error = reason or f"the process ended with {what}"
            results.set(
                running[0],
                {"state": "failed", "error": error, "seconds": running[1], "date": now()},
            )
        elif code != GPU_BROKE:
            return abs(code)


def _lead(work: Callable[[], int]) -> None:
    os.setsid()  # so that what it starts ends with it
    sys.exit(work())


def _end(process: Any) -> None:
    if process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it leads no group yet
            process.kill()
    process.join()


def _gpu_broke() -> bool:
    """Whether CUDA refuses everything in this process from now on."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
