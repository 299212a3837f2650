"""Per-operator times: same kernels, same results, and sums that add up."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tvm_mobilenet.errors import InputError, NothingMeasuredError
from tvm_mobilenet.profiling.operators import sample_operators, stored_inputs, time_operators
from tvm_mobilenet.runtime import Bundle, library
from tvm_mobilenet.runtime.bundle import aligned

RUNS = 6


def test_every_operator_of_the_bundle_is_timed_in_every_run(small_bundle: Path) -> None:
    operators = time_operators(small_bundle, threads=1, runs=RUNS)

    expected = Bundle.load(small_bundle).manifest["operators"]
    assert [o.symbol for o in operators] == [entry["symbol"] for entry in expected]
    assert [o.index for o in operators] == list(range(len(expected)))
    assert [o.kind for o in operators] == ["stem", "depthwise", "pointwise", "pool", "dense"]
    for operator in operators:
        assert operator.nanoseconds.shape == (RUNS,)
        assert operator.first > 0 and (operator.nanoseconds > 0).all()


def test_the_parts_add_up_to_the_whole(small_bundle: Path) -> None:
    seen: list[tuple[int, int]] = []
    samples = sample_operators(
        small_bundle, threads=1, runs=RUNS, progress=lambda done, total: seen.append((done, total))
    )

    operators = sum(operator.nanoseconds for operator in samples.operators)
    assert (samples.entry + operators + samples.exit == samples.timed).all()
    first = sum(operator.first for operator in samples.operators)
    assert 0 < first < samples.first
    assert samples.plain.shape == (RUNS,) and (samples.plain > 0).all()
    assert samples.load_seconds is not None and samples.load_seconds > 0
    assert len(samples.warm_up) >= 5
    assert seen == [(done, RUNS) for done in range(1, RUNS + 1)]


def test_the_timed_entry_computes_what_the_plain_one_does(small_bundle: Path) -> None:
    with Bundle.load(small_bundle, threads=1) as bundle:
        [x] = stored_inputs(bundle)
        expected = bundle.run(x)
        _, main_timed = bundle.program.timed_entries()
        ffi = library.tvm_ffi()
        stamps = aligned(np.zeros(len(bundle.manifest["operators"]) + 1, np.int64))
        found = np.from_dlpack(main_timed(ffi.from_dlpack(aligned(x)), ffi.from_dlpack(stamps)))
    np.testing.assert_array_equal(found, expected)
    assert (np.diff(stamps) > 0).all()


def test_a_loaded_bundle_keeps_its_threads(small_bundle: Path) -> None:
    with Bundle.load(small_bundle, threads=1) as bundle:
        samples = sample_operators(bundle, runs=1)
        assert samples.threads == 1 and samples.load_seconds is None
        with pytest.raises(InputError, match="loaded on 1 threads, not 2"):
            sample_operators(bundle, threads=2, runs=1)


def test_no_runs_measure_nothing(small_bundle: Path) -> None:
    with pytest.raises(NothingMeasuredError, match="0 runs"):
        sample_operators(small_bundle, runs=0)


def test_an_older_bundle_is_named(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(small_bundle, tmp_path / "old"))
    monkeypatch.setattr(library, "TIMED_ENTRY", "not_there")
    with pytest.raises(InputError, match=r"old: has no timed entry.*build the bundle again"):
        time_operators(path, runs=1)
