from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tvm_mobilenet.profiling.process import ContestantError, ContestantProcess
from tvm_mobilenet.profiling.subject import Prepared

CPUS = (min(os.sched_getaffinity(0)),)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


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
