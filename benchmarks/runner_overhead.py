"""What running a bundle costs over calling its compiled network alone, in C++ and in Python.

    python benchmarks/runner_overhead.py BUNDLE [--runs N]

Calls in turns in one process, medians; the inputs lie aligned, so that none is copied. The C++
figure is the runner's own (`runner --bench N --json`), built here with CMake.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Print one line for each way of running."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=20_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runner = build_runner(args.bundle, Path(folder))
        command = [runner, "--bundle", args.bundle, "--json", "--threads", "1"]
        command += ["--bench", str(args.runs)]
        done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    measured = json.loads(done.stdout)
    show("C++ runner", 1000 * measured["latency_ms"]["bare_median"], measured["overhead_us"])
    for name, bare, overhead in python(args.bundle, args.runs):
        show(name, bare, overhead)


def build_runner(bundle: Path, place: Path) -> Path:
    """The bundle's runner, built in `place`."""
    python_ = f"-DPython_EXECUTABLE={sys.executable}"
    for step in (("-S", bundle / "runner", "-B", place, python_), ("--build", place)):
        subprocess.run(["cmake", *map(str, step)], check=True, capture_output=True)
    return place / "runner"


def python(path: Path, runs: int) -> list[tuple[str, float, float]]:
    """Name, microseconds of the bare call and of what `Bundle.run` adds, for both forms."""
    from tvm_mobilenet.runtime import Bundle
    from tvm_mobilenet.runtime.library import tvm_ffi

    bundle = Bundle.load(path, threads=1)
    values = {tensor.name: bundle.new_input(tensor.name) for tensor in bundle.inputs}
    bundle.run(values)
    tensors = [tvm_ffi().from_dlpack(array) for array in values.values()]
    main_, _ = bundle.program.timed_entries()
    found = []
    for name, copy in (("Bundle.run", True), ("Bundle.run, copy=False", False)):

        def call(copy: bool = copy) -> Any:
            return bundle.run(values, copy=copy)

        bare, whole = in_turns([lambda: main_(*tensors), call], runs)
        found.append((name, bare, whole - bare))
    return found


def in_turns(works: list[Callable[[], Any]], runs: int) -> list[float]:
    """The median microseconds of each."""
    times: list[list[int]] = [[] for _ in works]
    for _ in range(runs):
        for work, into in zip(works, times, strict=True):
            start = time.perf_counter_ns()
            work()
            into.append(time.perf_counter_ns() - start)
    return [statistics.median(each) / 1000 for each in times]


def show(name: str, bare: float, overhead: float) -> None:
    """One line on stdout."""
    print(f"{name:24} the network alone {bare:9.2f} us, on top of it {overhead:6.2f} us")


if __name__ == "__main__":
    main()
