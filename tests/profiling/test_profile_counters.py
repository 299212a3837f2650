from __future__ import annotations

import errno
import platform

import pytest

from tvm_mobilenet.profiling import counters

_SOFTWARE = 1  # PERF_TYPE_SOFTWARE: counted by the kernel, so on every machine that allows it
CLOCK = {"task clock": (_SOFTWARE, 1)}


def _work() -> int:
    return sum(range(100_000))


def test_events_are_counted_for_each_run() -> None:
    found = counters.count(_work, runs=5, events=CLOCK)
    if found.missing:
        assert not found.counts and ("not allowed" in found.missing or "none" in found.missing)
        pytest.skip(f"hardware: {found.missing}")
    longer = counters.count(lambda: [_work() for _ in range(20)], runs=5, events=CLOCK)
    assert longer.counts["task clock"] > 4 * found.counts["task clock"] > 0


def test_hardware_counters_or_the_reason() -> None:
    found = counters.count(_work, runs=2)
    assert found.counts or found.missing
    assert set(found.counts) <= set(counters.EVENTS)
    assert all(value >= 0 for value in found.counts.values())


@pytest.mark.parametrize(
    ("code", "said"), [(errno.EACCES, "perf_event_paranoid"), (errno.ENOENT, "virtual machines")]
)
def test_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, code: int, said: str) -> None:
    def refuse(*arguments: int) -> int:
        raise OSError(code, "no")

    monkeypatch.setattr(counters, "_open", refuse)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    found = counters.count(_work)
    assert found.counts == {} and said in found.missing


def test_other_systems_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert "Darwin" in counters.count(_work).missing
