"""Counters of each operator, with the kernel's own software events where it has no others."""

from __future__ import annotations

import errno
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tvm_mobilenet.profiling import counters
from tvm_mobilenet.profiling.counters import Event
from tvm_mobilenet.profiling.operators import Counting, Runner, sample_operators, stored_inputs
from tvm_mobilenet.profiling.profile import summarise
from tvm_mobilenet.runtime import Bundle, library, manifest
from tvm_mobilenet.runtime.bundle import aligned

_SOFTWARE = 1  # PERF_TYPE_SOFTWARE: counted by the kernel, so wherever perf events are allowed
CLOCK = Event("task_clock", "task clock", _SOFTWARE, 1)
FAULTS = Event("page_faults", "page faults", _SOFTWARE, 2)
NEVER = Event("nonsense", "nonsense", _SOFTWARE, 10_000)
CYCLES, INSTRUCTIONS = (
    Event(name, name, 0, i) for i, name in enumerate(["cycles", "instructions"])
)
OPERATORS = 5  # of the small bundle


def _allowed() -> str:
    """Why the kernel counts nothing for this process; "" where it does."""
    number = counters._SYSCALL.get(platform.machine())
    if platform.system() != "Linux" or number is None:
        return "no Linux"
    try:
        os.close(counters._open(number, CLOCK, 0, -1))
    except OSError as error:
        return str(error.strerror)
    return ""


needs_events = pytest.mark.skipif(bool(_allowed()), reason=f"hardware: perf events: {_allowed()}")


@needs_events
@pytest.mark.parametrize("threads", [1, 2])
def test_operators_are_counted_by_the_kernel(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    if threads > len(os.sched_getaffinity(0)):
        pytest.skip("hardware: a single CPU")
    monkeypatch.setattr(counters, "events", lambda: (CLOCK, NEVER, FAULTS))
    samples = sample_operators(small_bundle, threads=threads, runs=20)
    found = samples.counted
    assert len(found.operators) == OPERATORS
    assert all(set(counts) == {"task_clock", "page_faults"} for counts in found.operators)
    assert set(found.missing) == {"nonsense"}
    # as long as the clock says, and all threads together at most so many times that
    clocked = sum(float(np.median(operator.nanoseconds)) for operator in samples.operators)
    assert 0.2 * clocked < found.counts["task_clock"] < 20 * threads * clocked
    document = manifest.read(small_bundle).document
    profiled = summarise(samples, document, bundle="b", cpu="c", limits=None)
    assert sum(row["task_clock"] for row in profiled.rows("kind")) == pytest.approx(
        found.counts["task_clock"]
    )
    assert profiled.rows()[0]["ipc"] is None
    assert any(note.startswith("not counted: nonsense: ") for note in profiled.notes)


def test_the_counted_entry_computes_what_the_plain_one_does(
    small_bundle: Path, tmp_path: Path
) -> None:
    """And reads every group at every place: files stand in for them, read at their offsets."""
    words, threads, places = 2, 2, OPERATORS + 4
    files = [tmp_path / str(thread) for thread in range(threads)]
    for thread, file in enumerate(files):
        (1000 * thread + np.arange(places * words)).tofile(file)
    with Bundle.load(small_bundle, threads=1) as bundle:
        [x] = stored_inputs(bundle)
        expected = bundle.run(x)
        ffi = library.tvm_ffi()
        readings = aligned(np.zeros((places, threads, words), np.int64))
        stamps = aligned(np.zeros(places, np.int64))
        opened = [file.open("rb", buffering=0) for file in files]
        descriptors = aligned(np.array([file.fileno() for file in opened]))
        arguments = map(ffi.from_dlpack, (aligned(x), descriptors, readings, stamps))
        found = np.from_dlpack(bundle.program.counted_entry()(*arguments))
        for file in opened:
            file.close()
    np.testing.assert_array_equal(found, expected)
    assert (np.diff(stamps) > 0).all()
    for thread in range(threads):
        in_turn = 1000 * thread + np.arange(places * words).reshape(places, words)
        np.testing.assert_array_equal(readings[:, thread], in_turn)


def _readings(steps: Sequence[Sequence[Sequence[float]]]) -> np.ndarray:
    """One run; steps: what each thread's enabled, running and value grow by between places."""
    grown = np.cumsum([[[0] * 3] * len(steps[0]), *steps], axis=0)
    nr = np.ones((*grown.shape[:2], 1))
    return np.concatenate([nr, grown], axis=2)[None]


# the call, two operators, a reading by itself, the way back
ONE_THREAD = [[[9, 9, 7]], [[10, 10, 105]], [[10, 10, 25]], [[1, 1, 5]], [[1, 1, 6]]]


def test_a_reading_itself_is_taken_off() -> None:
    found, never = counters._of_operators(_readings(ONE_THREAD), [CYCLES])
    assert found == [{"cycles": 100.0}, {"cycles": 20.0}] and never == []


def test_threads_are_summed_and_shared_counters_scaled() -> None:
    second = [[[0, 0, 0]], [[10, 5, 50]], [[0, 0, 0]], [[0, 0, 0]], [[0, 0, 0]]]
    both = [[*one, *other] for one, other in zip(ONE_THREAD, second, strict=True)]
    found, _ = counters._of_operators(_readings(both), [CYCLES])
    assert found == [{"cycles": 200.0}, {"cycles": 20.0}], "50 in half of the time"


def test_a_run_without_a_counter_is_left_out_and_none_at_all_is_told() -> None:
    without = [[[enabled, 0, 0]] for [[enabled, _, _]] in ONE_THREAD]
    runs = np.concatenate([_readings(ONE_THREAD), _readings(without)])
    found, never = counters._of_operators(runs, [CYCLES])
    assert found == [{"cycles": 100.0}, {"cycles": 20.0}] and never == []
    found, never = counters._of_operators(_readings(without), [CYCLES])
    assert found == [{}, {}] and never == [CYCLES]


@needs_events
def test_what_does_not_fit_at_once_is_counted_after_it(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = counters._open

    def one_counter(number: int, event: Event, thread: int, group: int) -> int:
        if group >= 0:
            raise OSError(errno.EINVAL, "the group is full")
        return opens(number, event, thread, group)

    monkeypatch.setattr(counters, "_open", one_counter)
    with Bundle.load(small_bundle, threads=1) as bundle:
        runner = Runner(bundle, stored_inputs(bundle))
        found = counters.count(Counting(runner, bundle).read, runner.plain, (CLOCK, FAULTS))
    assert len(found.operators) == OPERATORS and not found.missing
    assert all(set(counts) == {"task_clock", "page_faults"} for counts in found.operators)


def test_rates_follow_from_counts() -> None:
    counts = {"cycles": 200.0, "instructions": 500.0, "l1d_read_misses": 5.0}
    row = counters.row([counts, counts])
    assert (row["cycles"], row["ipc"], row["l1d_mpki"]) == (400, 2.5, 10)
    assert row["llc_read_misses"] is None and row["llc_mpki"] is None
    assert counters.row([{}])["ipc"] is None


@pytest.mark.parametrize(
    ("code", "level", "said"),
    [
        (errno.EACCES, "4", "perf_event_paranoid is 4; run: sysctl"),
        (errno.EPERM, "1", "container"),
        (errno.ENOENT, "1", "virtual machines; --instructions"),
    ],
)
def test_the_kernels_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, level: str, said: str
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    (tmp_path / "paranoid").write_text(level)
    monkeypatch.setattr(counters, "_PARANOID", tmp_path / "paranoid")
    monkeypatch.setattr(counters, "_open", refuse)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    found = counters.count(_not_read, lambda: None, (CYCLES, INSTRUCTIONS))
    assert found.counts == {} and found.operators == ()
    assert found.note.startswith(f"not counted: cycles, instructions: {os.strerror(code)} (")
    assert said in found.note and "\n" not in found.note


def _not_read(descriptors: Sequence[int], words: int) -> np.ndarray:
    raise AssertionError


def test_other_systems_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert "Darwin" in counters.count(_not_read, lambda: None, (CYCLES,)).note


def test_a_bundle_without_the_entry_is_timed_all_the_same(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(small_bundle, tmp_path / "old"))
    monkeypatch.setattr(library, "COUNTED_ENTRY", "not_there")
    samples = sample_operators(path, threads=1, runs=2)
    assert samples.call is None and "older release" in samples.counted.note
    whole = summarise(
        samples, manifest.read(path).document, bundle="b", cpu="c", limits=None
    ).reconciliation
    assert list(whole.parts) == ["operators", "entering", "leaving"]
    assert sum(whole.parts.values()) == pytest.approx(whole.timed)
