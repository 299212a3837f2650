from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tvm_mobilenet import targets
from tvm_mobilenet.errors import MissingToolError
from tvm_mobilenet.profiling import bandwidth, limits, machine
from tvm_mobilenet.profiling.limits import LevelLimit, Limits


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def _limits(gflops: float = 100.0, quiet: bool = True) -> Limits:
    levels = (LevelLimit("L1", 32, 200.0), LevelLimit("memory", 0, 10.0 + gflops))
    return Limits(machine.cpu_name(), 512, 1, gflops, levels, "2026-01-01", quiet)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Limits]:
    """What `measure` gives, one after the other."""
    answers: list[Limits] = []
    monkeypatch.setattr(limits, "measure", lambda target, threads: answers.pop(0))
    return answers


def test_the_kernels_read_every_element_as_often_as_they_say() -> None:
    import tvm

    small = dataclasses.replace(targets.detect(), l1d_kib=4, l2_kib=8, l3_kib=0)
    level = bandwidth.Level("L1", 4, bandwidth.SUMS * small.lanes * 4 * 2)
    threads = 2
    compiled = tvm.compile(bandwidth.kernels(small, threads, [level]), target=small.tvm_target())
    values = np.zeros(threads * level.buffer_bytes // 4, np.float32)
    values[:: small.lanes] = 2.0**-20  # exact sums: a read left out or done twice shows
    out = tvm.runtime.tensor(np.zeros(threads * bandwidth.SUMS * small.lanes, np.float32))
    compiled[level.kernel](tvm.runtime.tensor(values), out)
    expected = values.sum(dtype=np.float64) * level.passes
    assert out.numpy().sum(dtype=np.float64) == expected


def test_levels_fit_in_half_of_what_they_measure() -> None:
    target = targets.load("zen4")
    found = bandwidth.levels(target)
    assert [level.name for level in found] == ["L1", "L2", "L3", "memory"]
    for level in found[:3]:
        assert 0 < level.buffer_bytes <= level.kib * 512
    assert found[-1].buffer_bytes >= 2 * 1024 * target.l3_kib or (
        found[-1].buffer_bytes == bandwidth.MEMORY_LIMIT
    )
    without = bandwidth.levels(dataclasses.replace(target, l3_kib=0))
    assert [level.name for level in without] == ["L1", "L2", "memory"]


@pytest.mark.slow
def test_measured_limits_are_ordered() -> None:
    target = dataclasses.replace(targets.detect(), l3_kib=0)
    found = limits.measure(target, 1)
    assert found.gflops > 0
    rates = [level.gb_per_s for level in found.levels]
    assert rates == sorted(rates, reverse=True)


def test_limits_are_measured_once_and_kept(measured: list[Limits]) -> None:
    measured.append(_limits())
    said: list[str] = []
    assert limits.known(1) is None
    first = limits.limits(1, progress=said.append)
    assert limits.limits(1, progress=said.append) == first == limits.known(1)
    assert len(said) == 1
    assert limits.known(2) is None, "another number of threads has limits of its own"


def test_anew_replaces(measured: list[Limits]) -> None:
    measured += [_limits(100.0), _limits(90.0)]
    limits.limits(1)
    assert limits.limits(1, anew=True).gflops == 90.0
    found = limits.known(1)
    assert found is not None and found.gflops == 90.0


def test_busy_limits_are_measured_again_and_the_better_kept(measured: list[Limits]) -> None:
    measured += [_limits(100.0, quiet=False), _limits(90.0)]
    assert not limits.limits(1).quiet
    again = limits.limits(1)
    assert again.quiet and again.gflops == 100.0 and again.levels[-1].gb_per_s == 110.0
    assert measured == []


@pytest.mark.parametrize("damage", ["", "{", "[1, {}]", '[{"schema_version": 1}]'])
def test_a_damaged_cache_is_measured_anew(measured: list[Limits], damage: str) -> None:
    path = limits.cache_file()
    path.parent.mkdir(parents=True)
    path.write_text(damage)
    measured.append(_limits())
    assert limits.limits(1).gflops == 100.0
    assert limits.known(1) is not None


def test_without_a_compiler_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm.support import cc

    monkeypatch.setattr(cc, "get_cc", lambda: None)
    with pytest.raises(MissingToolError, match="apt-get install g"):
        limits.limits(1)
