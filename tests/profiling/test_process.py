from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tvm_mobilenet.profiling.process import ContestantError, ContestantProcess
from tvm_mobilenet.profiling.subject import Prepared

CPUS = (min(os.sched_getaffinity(0)),)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def test_a_worker_is_pinned_stopped_continued_and_ended(tiny: Prepared, log: Path) -> None:
    with ContestantProcess(CPUS, 1, log) as process:
        pid = process.pid
        process.call(
            "open",
            timeout=120,
            name="onnxruntime",
            artifact=tiny.source.onnx,
            threads=1,
            inputs=tiny.inputs,
        )

        assert os.sched_getaffinity(pid) == set(CPUS)

        process.pause()
        assert _state(pid) == "T"
        with pytest.raises(ContestantError, match="no answer to 'block' within 0 s"):
            process.call("block", timeout=0.2, warm_up=1, runs=1)

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # ended although it was stopped


def test_blocks_have_the_runs_asked_for_and_survive_stops(tiny: Prepared, log: Path) -> None:
    with ContestantProcess(CPUS, 1, log) as process:
        opened = process.call(
            "open",
            timeout=120,
            name="onnxruntime",
            artifact=tiny.source.onnx,
            threads=1,
            inputs=tiny.inputs,
        )
        assert opened.version
        for runs in (1, 7):
            process.pause()
            process.resume()
            block = process.call("block", timeout=60, warm_up=2, runs=runs)
            assert len(block.nanoseconds) == runs
            assert min(block.nanoseconds) > 0
        memory = process.call("memory", timeout=60)
        assert 0 < memory.session < memory.peak


def test_a_refusal_is_one_line_and_the_worker_lives_on(log: Path, tmp_path: Path) -> None:
    with ContestantProcess(CPUS, 1, log) as process:
        for _ in range(2):
            with pytest.raises(ContestantError, match=r"^\w+: .*no-such\.onnx") as caught:
                process.call(
                    "open",
                    timeout=120,
                    name="onnxruntime",
                    artifact=tmp_path / "no-such.onnx",
                    threads=1,
                    inputs=[],
                )
            assert "\n" not in str(caught.value)


def test_a_worker_that_dies_is_reported_with_its_last_words(log: Path) -> None:
    with ContestantProcess(CPUS, 1, log) as process:
        os.kill(process.pid, signal.SIGSEGV)
        with pytest.raises(ContestantError, match="ended in 'memory' with signal SIGSEGV"):
            process.call("memory", timeout=60)
        process.pause()  # of a dead process: returns


def test_a_stopped_worker_does_not_outlive_a_bench_that_is_killed(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tvm_mobilenet.profiling.process import ContestantProcess
process = ContestantProcess({CPUS}, 1, Path({str(tmp_path / "log")!r}))
process.call("memory", timeout=60)
process.pause()
print(process.pid, flush=True)
input()
"""
    bench = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with bench:
        assert bench.stdout is not None
        worker = int(bench.stdout.readline())
        assert _state(worker) == "T"
        bench.kill()
    deadline = time.monotonic() + 30
    while _state(worker) not in ("gone", "Z") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _state(worker) in ("gone", "Z")
