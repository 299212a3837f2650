"""Tuning for a GPU without one: clocks that drift, failures, the last choice, the order at first.

The whole of it on emulated kernels is in `tests/profiling/test_gpu.py`.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import tvm

from tvm_mobilenet import targets
from tvm_mobilenet.compiler_pass.pipeline import pass_config
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.profiling import gpu as timing
from tvm_mobilenet.profiling import gpu_network
from tvm_mobilenet.runtime import cuda
from tvm_mobilenet.schedules.base import fingerprint
from tvm_mobilenet.schedules.spec import RELU, ConvSpec
from tvm_mobilenet.tuning import gpu, gpu_finalists, gpu_measure
from tvm_mobilenet.tuning.finalists import Settled
from tvm_mobilenet.tuning.gpu_finalists import GpuFinalists
from tvm_mobilenet.tuning.gpu_measure import Beside, GpuMeasurer
from tvm_mobilenet.tuning.measure import Measurement
from tvm_mobilenet.tuning.network import Choice
from tvm_mobilenet.tuning.ranking import LearnedRanking
from tvm_mobilenet.tuning.search import TaskSearch
from tvm_mobilenet.tuning.task import Candidate, Task, task_of

TARGET = targets.load("cuda-sm90")
SPEC = ConvSpec(1, 64, 14, 14, 64, lanes=4, activation=RELU)
TASK = task_of(SPEC, TARGET)


def kernel(candidate: Candidate, task: Task = TASK) -> Any:
    return candidate.rule.build(task.spec, candidate.knobs)


def test_all_launches_but_one_are_in_a_cuda_graph() -> None:
    with TARGET.tvm_target(), tvm.transform.PassContext(config=pass_config(TARGET, True)):
        module = gpu_measure.repeated(kernel(TASK.baseline), 7, TARGET.tvm_target())
    calls = {str(v.name_hint): f.script().count(" kernel(") for v, f in module.functions.items()}
    assert (calls["main_cuda_graph_capture"], calls["main"]) == (6, 1)


def test_a_candidate_is_built_and_launched_as_in_the_network(tmp_path: Path) -> None:
    """Machine code lies beside the library; launches are programmatic where the target asks."""
    module, path = tvm.IRModule({"kernel": kernel(TASK.baseline)}), tmp_path / "1.so"
    assert TARGET.gpu is not None and not TARGET.gpu.programmatic_launch
    gpu_spec = dataclasses.replace(TARGET.gpu, programmatic_launch=True)
    target = dataclasses.replace(TARGET, gpu=gpu_spec)
    work = module, target.tvm_target(), str(path), None
    assert gpu_measure.compile_repeated(target, 3, work) == str(path)
    code = tmp_path / f"1{gpu_measure.CODE}" / "sm_90.cubin"
    assert code.read_bytes().startswith(b"\x7fELF") and b"griddepcontrol" in path.read_bytes()


class Measured:
    """A `GpuMeasurer` whose builder and GPU are invented.

    seconds: by fingerprint, at the first clock; `clock` is how many times as fast the GPU is now.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Mapping[str, float]) -> None:
        self.clock = 1.0
        self.built: list[str] = []
        self.broken: dict[str, str] = {}
        self.loaded: list[str] = []
        self.measurer = GpuMeasurer(TARGET, 1)
        self.measurer.builder.close()
        self.measurer.builder = SimpleNamespace(built=self._build, close=lambda: None)
        monkeypatch.setattr(gpu_measure, "_load", self._load)
        monkeypatch.setattr(timing, "block_times", self._times)
        self._seconds = seconds

    def _build(self, inputs: Sequence[Any]) -> Iterator[Any]:
        for entry in inputs:
            name = fingerprint(entry.mod["kernel"])
            self.built.append(name)
            bad = self.broken.get(name) == "built"
            path = None if bad else f"/nowhere/{name}.so"
            yield SimpleNamespace(artifact_path=path, error_msg="does not compile" if bad else None)

    def _load(self, library: Any) -> Any:
        if library.artifact_path is None:
            raise InputError(library.error_msg)
        name = library.artifact_path.split("/")[-1][:-3]
        self.loaded.append(name)

        def run() -> None:
            if self.broken.get(name) == "run":
                raise RuntimeError("too many resources requested")

        return SimpleNamespace(enqueuer=lambda *arrays: run)

    def _times(self, calls: Mapping[str, Any], *, blocks: int, block_ms: float) -> Any:
        for call in calls.values():
            call()
        runs = gpu_measure.runs_of(kernel(TASK.baseline), TARGET, gpu_measure.MOST_RUNS)
        return {
            name: ([1e6 * runs * self._seconds[name] / self.clock] * blocks, 1) for name in calls
        }


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Measured]:
    names = [fingerprint(kernel(c)) for c in (TASK.baseline, *TASK.space[:3])]
    invented = Measured(monkeypatch, dict(zip(names, (4e-6, 3e-6, 5e-6, 6e-6), strict=True)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    yield invented
    invented.measurer.close()


def test_a_clock_that_drifts_changes_no_time(measured: Measured) -> None:
    """Each candidate is told at the clock that the analytic choice was measured at."""
    analytic, fast, slow, _ = (kernel(c) for c in (TASK.baseline, *TASK.space[:3]))
    (first,) = measured.measurer.measure([analytic], beside=[Beside(analytic, None)])
    assert first.seconds == pytest.approx(4e-6)
    measured.clock = 0.8
    beside = [Beside(analytic, first.seconds)] * 2
    told: list[int] = []
    found = measured.measurer.measure([fast, slow], lambda i, m: told.append(i), beside)
    assert [m.seconds for m in found] == pytest.approx([3e-6, 5e-6]) and told == [0, 1]
    # the analytic choice is built once, and loaded once while its candidates are measured
    assert len(measured.built) == len(set(measured.built)) == 3
    assert measured.loaded.count(fingerprint(analytic)) == 1


def test_a_candidate_that_fails_costs_itself_unless_the_gpu_died(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    analytic, *others = (kernel(c) for c in (TASK.baseline, *TASK.space[:3]))
    measured.broken = {fingerprint(others[0]): "built", fingerprint(others[1]): "run"}
    beside = [Beside(analytic, 4e-6)] * 3
    errors = [m.error for m in measured.measurer.measure(others, beside=beside)]
    assert errors == ["does not compile", "too many resources requested", None]

    def dead() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    told: list[Measurement] = []
    with pytest.raises(InputError, match=r"stopped working: too many resources.*same command"):
        measured.measurer.measure(others[1:], lambda i, m: told.append(m), beside[1:])
    assert [m.error for m in told] == ["too many resources requested"]  # kept, and not tried again


def test_an_interrupt_while_a_library_is_loaded_is_no_failure_of_its(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """TVM would turn the KeyboardInterrupt of a callback into an error of its own."""
    loaded: list[str] = []

    def module(*arguments: object) -> None:
        signal.raise_signal(signal.SIGINT)
        loaded.append("to its end")

    monkeypatch.setattr(cuda, "CudaModule", module)
    path = tmp_path / "1.so"
    path.touch()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            gpu_measure._load(SimpleNamespace(artifact_path=str(path)))
        found = signal.getsignal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert loaded == ["to its end"] and found is signal.default_int_handler


@pytest.fixture
def settle(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settled]:
    """`GpuFinalists.settle`, where what kernels and networks take is given.

    seconds: of kernels, by fingerprint. whole: of a network, by its choice. wrong: fingerprints of
    kernels whose numbers are.
    """

    def settled(
        searches: Sequence[TaskSearch],
        seconds: Mapping[str, float],
        whole: Callable[[Choice], float],
        recorded: Choice,
        wrong: Sequence[str] = (),
    ) -> Settled:
        class Invented:
            def errors(self, jobs: Sequence[Any]) -> list[float | str]:
                made = [fingerprint(gpu_measure.check.kernel_of(job).function) for job in jobs]
                return [0.5 if name in wrong else 0.0 for name in made]

            def rounds(self, functions: Sequence[Any], blocks: int) -> np.ndarray:
                return np.array([[seconds[fingerprint(f)]] * blocks for f in functions])

        def times(self: Any, choices: Sequence[Choice]) -> np.ndarray:
            return np.array([[whole(choice)] * 24 for choice in choices])

        monkeypatch.setattr(GpuFinalists, "_times", times)
        monkeypatch.setattr(gpu_network, "prove", lambda *a, records: "parity passed")
        quiet: Any = lambda message: None  # noqa: E731
        invented: Any = Invented()
        with GpuFinalists(SimpleNamespace(), TARGET, invented, quiet, quiet) as finalists:  # type: ignore[arg-type]
            return finalists.settle(searches, recorded)

    return settled


def searched(*seconds: float) -> TaskSearch:
    """A search that measured the analytic choice in 4 us, and candidates."""
    search = TaskSearch(TASK, 0)
    search.record(TASK.baseline, Measurement(4e-6, (4e-6, 4e-6)))
    for candidate, each in zip(TASK.space, seconds, strict=False):
        search.record(candidate, Measurement(each, (each, each)))
    return search


def timed(*seconds: float) -> dict[str, float]:
    """The same as seconds by fingerprint."""
    kernels = [fingerprint(kernel(c)) for c in (TASK.baseline, *TASK.space)]
    return dict(zip(kernels, (4e-6, *seconds), strict=False))


OPERATOR = TASK.operator


def test_what_gains_too_little_alone_is_no_finalist() -> None:
    search = searched(3.95e-6, 3.5e-6, 3.6e-6)
    first, second, third, fourth = TASK.space[:4]
    assert gpu_finalists.finalists(search, {}) == [second, third]
    assert gpu_finalists.finalists(search, {OPERATOR: first}) == [second, third, first]
    # though it was never measured here
    assert gpu_finalists.finalists(search, {OPERATOR: fourth}) == [second, third, fourth]


def test_a_finalist_must_win_again_with_right_numbers_and_in_the_network(settle) -> None:
    search, better = searched(3.0e-6, 3.5e-6), lambda choice: 1e-4 - 1e-6 * len(choice)
    first, second = TASK.space[:2]
    settled = settle([search], timed(3.0e-6, 3.5e-6), better, {})
    assert settled.chosen == {OPERATOR: first} and settled.parity == "parity passed"
    assert settled.race is not None and settled.beaten == ()
    lucky = settle([search], timed(4.1e-6, 3.5e-6), better, {})
    assert lucky.chosen == {OPERATOR: second}
    wrong = settle([search], timed(3.0e-6, 3.5e-6), better, {}, [fingerprint(kernel(first))])
    assert wrong.chosen == {OPERATOR: second} and len(wrong.faults) == 1
    slower = settle([search], timed(3.0e-6, 3.5e-6), lambda choice: 1e-4 + 1e-6 * len(choice), {})
    assert slower.chosen == {} and slower.beaten == (OPERATOR,) and slower.parity is None


@pytest.mark.parametrize("better", ["earlier", "now"])
def test_the_network_never_gets_slower_than_its_records_made_it(settle, better: str) -> None:
    search, earlier = searched(3.0e-6), TASK.space[5]

    def whole(choice: Choice) -> float:
        was = choice.get(OPERATOR) == earlier
        return 1e-4 if not choice else 9e-5 if was == (better == "earlier") else 9.5e-5

    seconds = timed(*[3.0e-6] * 4, 3.0e-6, 3.9e-6)
    settled = settle([search], seconds, whole, {OPERATOR: earlier})
    assert settled.chosen == {OPERATOR: earlier if better == "earlier" else TASK.space[0]}


def test_predicted_clocks_order_candidates_of_all_rules_at_first() -> None:
    """tf32 has two rules for a product: on tensor cores and not."""
    target = targets.at_precision(TARGET, "tf32")
    task = task_of(ConvSpec(8, 512, 14, 14, 512, lanes=4, precision="tf32"), target)
    few = task.space[::5]
    scores = LearnedRanking(target, 0)(task, few)
    predicted = [c.rule.predicted(task.spec, c.knobs, target) for c in few]  # type: ignore[attr-defined]
    assert len({c.rule.name for c in few}) == 2
    np.testing.assert_array_equal(
        np.argsort(scores, kind="stable"), np.argsort(predicted, kind="stable")
    )


def test_without_xgboost_the_predicted_clocks_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that only a benchmark was carried to."""
    search = searched(*(1e-6 * (40 - n) for n in range(36)))
    learned, unlearned = LearnedRanking(TARGET, 0), LearnedRanking(TARGET, 0)
    learned.learn([search])
    monkeypatch.setattr(LearnedRanking, "learns", False)
    before = unlearned(TASK, TASK.space)
    unlearned.learn([search])
    assert unlearned(TASK, TASK.space) == before != learned(TASK, TASK.space)


def test_times_of_another_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "compute_capability", lambda: 80)
    with pytest.raises(InputError, match="it is sm_90, this GPU is sm_80"):
        gpu.local_measurer(TARGET)
