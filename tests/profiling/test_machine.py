from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tvm_mobilenet.errors import UsageError
from tvm_mobilenet.profiling import machine
from tvm_mobilenet.profiling.machine import Disturbance


def test_cpus_are_those_that_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)

    picked = machine.pick_cpus(len(allowed))

    assert len(picked) == len(allowed)
    assert set(picked) == allowed


def test_more_threads_than_cpus_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--threads 5000: this process may use \d+ CPUs"):
        machine.pick_cpus(5000)


def test_physical_cores_come_before_their_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    core = {0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5"}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 4, 5})
    monkeypatch.setattr(machine, "_core", core.__getitem__)

    assert machine.pick_cpus(2) == (0, 1)
    assert machine.pick_cpus(3) == (0, 1, 4)


def test_only_high_figures_become_notes() -> None:
    assert Disturbance(0.5, 0.01, 0.0).notes() == ()
    assert Disturbance(0.5, None, None).notes() == ()
    foreign, stolen = Disturbance(3.24, 0.31, 0.05).notes()
    assert foreign.startswith("other processes used 31% of the pinned CPUs (load average 3.2)")
    assert stolen == "the hypervisor took away 5% of the CPUs' time"


def test_what_the_contestants_used_is_not_foreign(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counts = iter([(100.0, 1.0), (107.0, 1.5)])  # 7 s busy and 0.5 s stolen in between
    clock = iter([50.0, 60.0])
    own = iter([3.0, 4.0])
    monkeypatch.setattr(machine, "_busy_and_stolen", lambda cpus: next(counts))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(time, "process_time", lambda: next(own))

    result = machine.Watch((0,)).disturbance(cpu_seconds=4.0)

    assert result.foreign_share == pytest.approx((7.0 - 4.0 - 1.0) / 10.0)
    assert result.steal_share == pytest.approx(0.05)
