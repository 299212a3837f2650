"""Time per operator inside the running network, and the network's own time beside it.

The bundle's second entry, ``main_timed`` (see `compiler_pass.timed_entry`), notes a clock around
every operator. Its runs alternate with those of ``main``, which has no instruments: so the cost of
instrumenting is measured in the same seconds, not assumed.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError, NothingMeasuredError
from tvm_mobilenet.profiling import counters
from tvm_mobilenet.profiling.counters import Counted
from tvm_mobilenet.runtime import Bundle, library, manifest
from tvm_mobilenet.runtime.bundle import aligned

if TYPE_CHECKING:
    import numpy as np

RUNS = 200
WARM_UP_SECONDS = 0.3
WARM_UP_RUNS = 5  # at least

Progress = Callable[[int, int], None]  # runs done, runs in all


@dataclass(frozen=True)
class OperatorSamples:
    """One operator's time in every run, in nanoseconds, with the virtual machine's work for it.

    ``description`` is its entry in the manifest: symbol, kind, shape, ONNX nodes, schedule, ...
    """

    index: int  # place in the order of execution
    description: Mapping[str, Any]
    first: int | None  # in the very first run, when code and weights come from disk
    nanoseconds: np.ndarray  # (runs,), steady state

    @property
    def symbol(self) -> str:
        """The name of its function in the library."""
        return str(self.description["symbol"])

    @property
    def kind(self) -> str:
        """What the compiler calls it: stem, depthwise, pointwise, conv, dense, pool, ..."""
        return str(self.description["kind"])


@dataclass(frozen=True)
class CallParts:
    """Around the operators, inside compiled code, in nanoseconds: medians of runs of their own.

    `taking` memory before the first operator, `giving` it back after the last one. The rest of
    `Samples.entry` and `exit` is the call itself: Python, arguments, the virtual machine's frame.
    """

    taking: float
    giving: float


@dataclass(frozen=True)
class Samples:
    """A profiled network: all times in nanoseconds, (runs,) in steady state; None: not known.

    ``timed`` = ``entry`` + the operators' sum + ``exit``, run by run. ``plain`` is the time of the
    entry without instruments, from runs in between.
    """

    operators: tuple[OperatorSamples, ...]
    plain: np.ndarray
    timed: np.ndarray
    entry: np.ndarray | None  # from the call until the first operator starts
    exit: np.ndarray | None  # from the last operator's end until the call returns
    first: int | None  # the very first run from end to end
    warm_up: np.ndarray  # (warm-up runs,)
    threads: int
    load_seconds: float | None  # None: it had been loaded before
    counted: Counted = Counted()  # noqa: RUF009  (frozen)
    call: CallParts | None = None


def time_operators(
    bundle: Bundle | str | Path, *, threads: int | None = None, runs: int = RUNS
) -> list[OperatorSamples]:
    """`sample_operators`, the operators alone: one entry a call, in order of execution."""
    return list(sample_operators(bundle, threads=threads, runs=runs).operators)


def sample_operators(
    bundle: Bundle | str | Path,
    *,
    threads: int | None = None,
    runs: int = RUNS,
    inputs: Sequence[np.ndarray] | None = None,
    progress: Progress | None = None,
) -> Samples:
    """Run a bundle `runs` times with and `runs` times without instruments, in turns.

    `bundle`: a directory, loaded (**which runs its code**) with `threads`, or a loaded bundle,
    whose own number of threads then holds. `inputs`: one array an input; None takes the first
    sample stored in the bundle.
    Raises InputError for a bundle that cannot be used here or was built without a timed entry.
    """
    load_seconds = None
    if isinstance(bundle, Bundle):
        if threads not in (None, bundle.threads):
            raise InputError(
                f"{bundle.path} is loaded on {bundle.threads} threads, not {threads}; load it again"
            )
    else:
        start = time.perf_counter()
        bundle = Bundle.load(bundle, threads=threads)
        load_seconds = time.perf_counter() - start
    if runs < 1:
        raise NothingMeasuredError(f"{runs} runs measure nothing; use at least 1")
    runner = Runner(bundle, stored_inputs(bundle) if inputs is None else inputs)
    first = runner.timed()
    warm_up = runner.warm_up()
    rows = runner.alternate(runs, progress or (lambda done, total: None))
    samples = runner.samples(first, warm_up, rows, load_seconds)
    try:
        counting = Counting(runner, bundle)
    except InputError as error:  # what was built before can still be timed
        return dataclasses.replace(samples, counted=Counted(missing={"counters": str(error)}))
    return dataclasses.replace(
        samples,
        counted=counters.count(counting.read, runner.plain, counters.events()),
        call=counting.call_parts(),
    )


def stored_inputs(bundle: Bundle) -> list[np.ndarray]:
    """The inputs of the first sample in the bundle, in the model's order."""
    from tvm_mobilenet.parity.samples import load_samples

    names = [tensor.name for tensor in bundle.inputs]
    outputs = [tensor.name for tensor in bundle.outputs]
    sample = load_samples(bundle.path / manifest.SAMPLES, names, outputs)[0]
    return [sample.inputs[name] for name in names]


class Runner:
    """The two entries of a loaded bundle with their arguments in place."""

    def __init__(self, bundle: Bundle, inputs: Sequence[np.ndarray]) -> None:
        import numpy as np

        self._bundle = bundle
        self._operators = bundle.manifest["operators"]
        try:
            self._main, self._main_timed = bundle.program.timed_entries()
        except InputError as error:
            raise InputError(f"{bundle.path}: {error}; build the bundle again") from error
        ffi = library.tvm_ffi()
        self._stamps = aligned(np.zeros(len(self._operators) + 1, np.int64))
        checked = [
            bundle.program.checked({tensor.name: array}, tensor)
            for tensor, array in zip(bundle.inputs, inputs, strict=True)
        ]
        self._held = checked  # the tensors below only look at them
        self.inputs = [ffi.from_dlpack(array) for array in checked]
        self._timed_arguments = [*self.inputs, ffi.from_dlpack(self._stamps)]

    def plain(self) -> int:
        """Nanoseconds of one run without instruments."""
        main, inputs, clock = self._main, self.inputs, time.perf_counter_ns
        start = clock()
        main(*inputs)
        return clock() - start

    def timed(self) -> np.ndarray:
        """(operators + 3,): when the call began, the stamps, when it returned."""
        import numpy as np

        timed, arguments, clock = self._main_timed, self._timed_arguments, time.perf_counter_ns
        start = clock()
        timed(*arguments)
        end = clock()
        # Python's clock and the compiled code's are the same: CLOCK_MONOTONIC
        return np.array([start, *self._stamps, end], np.int64)

    def warm_up(self) -> np.ndarray:
        """Nanoseconds of each of the runs until the bundle is warm."""
        import numpy as np

        times: list[int] = []
        until = time.perf_counter() + WARM_UP_SECONDS
        while len(times) < WARM_UP_RUNS or time.perf_counter() < until:
            row = self.timed()
            times.append(int(row[-1] - row[0]))
            self.plain()
        return np.array(times, np.int64)

    def alternate(self, runs: int, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
        """Times of `plain` (runs,) and rows of `timed` (runs, operators + 3)."""
        import numpy as np

        plain, timed = [], []
        collecting = gc.isenabled()
        gc.disable()  # no collection inside a timed run
        try:
            for run in range(runs):
                if run % 2:  # who comes first takes turns
                    plain.append(self.plain())
                    timed.append(self.timed())
                else:
                    timed.append(self.timed())
                    plain.append(self.plain())
                progress(run + 1, runs)
        finally:
            if collecting:
                gc.enable()
        return np.array(plain, np.int64), np.array(timed)

    def samples(
        self,
        first: np.ndarray,
        warm_up: np.ndarray,
        rows: tuple[np.ndarray, np.ndarray],
        load_seconds: float | None,
    ) -> Samples:
        import numpy as np

        plain, timed = rows
        steps = np.diff(timed, axis=1)  # entry, every operator, exit
        first_steps = np.diff(first)
        operators = tuple(
            OperatorSamples(i, description, int(first_steps[i + 1]), steps[:, i + 1])
            for i, description in enumerate(self._operators)
        )
        return Samples(
            operators=operators,
            plain=plain,
            timed=timed[:, -1] - timed[:, 0],
            entry=steps[:, 0],
            exit=steps[:, -1],
            first=int(first[-1] - first[0]),
            warm_up=warm_up,
            threads=self._bundle.threads,
            load_seconds=load_seconds,
        )


class Counting:
    """The entry ``main_counted`` of a runner's bundle; see `compiler_pass.counted_entry`."""

    def __init__(self, runner: Runner, bundle: Bundle) -> None:
        """InputError for a bundle without that entry."""
        self._entry = bundle.program.counted_entry()
        self._runner = runner
        self._places = len(bundle.manifest["operators"]) + 4

    def read(self, descriptors: Sequence[int], words: int) -> np.ndarray:
        """Readings (runs, places, threads, words), int64, of those groups of events."""
        import numpy as np

        return np.array([self._run(descriptors, words)[0] for _ in range(counters.RUNS)])

    def call_parts(self) -> CallParts:
        """What lies around the operators, in turns with plain runs."""
        import numpy as np

        steps = []
        for _ in range(counters.RUNS):
            self._runner.plain()
            steps.append(np.diff(self._run([-1], 1)[1]))
        taking, *_, reading, giving = np.median(steps, axis=0)
        return CallParts(max(0.0, float(taking - reading)), max(0.0, float(giving - reading)))

    def _run(self, descriptors: Sequence[int], words: int) -> tuple[np.ndarray, np.ndarray]:
        """One inference: readings (places, threads, words) and stamps (places,)."""
        import numpy as np

        ffi = library.tvm_ffi()
        readings = aligned(np.zeros((self._places, len(descriptors), words), np.int64))
        stamps = aligned(np.zeros(self._places, np.int64))
        more = (aligned(np.array(descriptors, np.int64)), readings, stamps)
        self._entry(*self._runner.inputs, *map(ffi.from_dlpack, more))
        return readings, stamps
