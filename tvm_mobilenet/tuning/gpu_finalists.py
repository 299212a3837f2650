"""The last choice on a GPU: kernels timed longer, then whole networks in turns, then parity.

As `finalists` does on a CPU, but operators are not timed where they run: a CUDA graph has no clock
between its kernels. So the fastest of an operator are timed again alone, in more turns with the
analytic choice, and the network as a whole decides.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tvm_mobilenet.parity import samples
from tvm_mobilenet.profiling import gpu, gpu_network
from tvm_mobilenet.tuning import network
from tvm_mobilenet.tuning.finalists import FINALISTS, Settled, raced, sound_finalists
from tvm_mobilenet.tuning.network import Choice, records_of
from tvm_mobilenet.tuning.search import TaskSearch
from tvm_mobilenet.tuning.task import Candidate

if TYPE_CHECKING:
    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.profiling.gpu import Call
    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.gpu_measure import GpuMeasurer

LEAST_GAIN = 1.02  # of a kernel alone, over the analytic choice
BLOCKS = 24  # of a finalist, and of a network
NETWORK_BLOCK_MS = 20.0
# For how long everything here takes: compilations of the network (the analytic, the chosen, once
# with half of it, and twice to prove it), and seconds of timing.
COMPILATIONS, TIMING_SECONDS = 4, 15.0


class GpuFinalists:
    """Of one network; a context manager, for it keeps networks on the GPU."""

    def __init__(
        self,
        imported: ImportedModel,
        target: TargetSpec,
        measurer: GpuMeasurer,
        info: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._imported, self._target, self._measurer = imported, target, measurer
        self._info, self._warn = info, warn
        self._networks: dict[tuple[tuple[str, str], ...], Call] = {}  # by what was chosen
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> GpuFinalists:
        return self

    def __exit__(self, *_: object) -> None:
        self._networks.clear()
        self._stack.close()

    def expected_seconds(self, recorded: Choice) -> float:
        """About how long `settle` will take; compiles the analytic network to know."""
        self._info("compiling the network with analytic knobs")
        start = time.monotonic()
        self._network({})
        seconds = time.monotonic() - start
        return (COMPILATIONS + bool(recorded)) * seconds + TIMING_SECONDS

    def settle(self, searches: Sequence[TaskSearch], recorded: Choice) -> Settled:
        """Choose per operator, and prove the network with what was chosen.

        recorded: what an earlier run chose. It is a finalist whatever it takes alone, and what was
        chosen now must not be slower than it as a whole. Raises ParityError as `gpu_network.prove`;
        no record is written then.
        """
        work = [(search.task, c) for search in searches for c in finalists(search, recorded)]
        sound, faults = sound_finalists(work, self._target, self._measurer, self._info, self._warn)
        if sound:
            self._info("timing finalists again, in turns with the analytic choice")
        tasks = {search.task.operator: search.task for search in searches}
        chosen: dict[str, Candidate] = {}
        earlier: dict[str, Candidate] = {}
        gains: dict[str, float] = {}
        for operator, found in sound.items():
            task = tasks[operator]
            kernels = [c.rule.build(task.spec, c.knobs) for c in (task.baseline, *found)]
            times = self._measurer.rounds(kernels, BLOCKS)
            place = network.choose(times)
            if place:
                chosen[operator] = found[place - 1]
            for number, candidate in enumerate(found, 1):
                if operator in recorded and candidate.key == recorded[operator].key:
                    earlier[operator] = candidate
                    place = place or number
            before, after = (float(np.median(times[i])) for i in (0, place))
            gains[operator] = task.count * (before - after)
        race, chosen = raced(chosen, earlier, gains, self._times, self._info)
        parity = None
        if chosen:
            self._info(f"proving the network with {len(chosen)} operators tuned")
            parity = gpu_network.prove(self._imported, self._target, records=records_of(chosen))
        beaten = tuple(op for op in {**sound, **recorded} if op not in chosen)
        return Settled(chosen, {}, beaten, race, tuple(faults), parity)

    def _times(self, choices: Sequence[Choice]) -> np.ndarray:
        """Seconds of whole networks that take turns: (networks, blocks)."""
        calls = {str(number): self._network(choice) for number, choice in enumerate(choices)}
        found = gpu.block_times(calls, blocks=BLOCKS, block_ms=NETWORK_BLOCK_MS)
        return np.array([found[name][0] for name in calls]) * 1e-6

    def _network(self, choice: Choice) -> Call:
        """Starts an inference of the network with that choice."""
        key = tuple(sorted((operator, candidate.key) for operator, candidate in choice.items()))
        if key not in self._networks:
            records = records_of(choice)
            found = self._stack.enter_context(
                gpu_network.loaded(self._imported, self._target, records=records)
            )
            [sample] = samples(self._imported, count=1)
            feeds = [sample[info.name] for info in self._imported.inputs]
            self._networks[key] = found.module.enqueuer(*feeds)
        return self._networks[key]


def finalists(search: TaskSearch, recorded: Choice) -> list[Candidate]:
    """The fastest of a task that beat the analytic choice by LEAST_GAIN alone, best first; behind
    them the one that an earlier run chose, by operator in `recorded`.
    """
    found = [
        candidate
        for candidate, measurement in search.fastest(FINALISTS)
        if search.baseline is not None
        and (measurement.seconds or 0.0) * LEAST_GAIN < search.baseline
    ]
    earlier = recorded.get(search.task.operator)
    return found if earlier is None or earlier in found else [*found, earlier]
