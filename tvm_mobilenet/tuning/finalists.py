"""The last choice: finalists are checked, timed inside the network, and the networks raced."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tvm_mobilenet.tuning import check, network
from tvm_mobilenet.tuning.check import Job
from tvm_mobilenet.tuning.network import Choice, Network
from tvm_mobilenet.tuning.records import InNetwork
from tvm_mobilenet.tuning.search import TaskSearch
from tvm_mobilenet.tuning.task import Candidate, Task

if TYPE_CHECKING:
    from tvm_mobilenet.frontend import ImportedModel
    from tvm_mobilenet.targets import TargetSpec
    from tvm_mobilenet.tuning.device import Checker, Device

FINALISTS = 3  # candidates of an operator that are tried inside the network
# A finalist may be this much slower than the analytic choice alone: the network may like it better.
MARGIN = 1.03
# For how long everything here takes: compilations of the network, and seconds of timing.
COMPILATIONS, TIMING_SECONDS = FINALISTS + 2, 10.0
AGAIN_COMPILATIONS, AGAIN_TIMING_SECONDS = 2, 3.0  # more with what an earlier run chose


@dataclass(frozen=True)
class Settled:
    """What was chosen.

    chosen: by operator; operators that keep the analytic choice are not in it.
    inside: by operator, what was measured of that choice in the network.
    beaten: operators that keep the analytic choice though they had finalists.
    race: seconds of a run (analytic and tuned, rounds); None when there was none.
    faults: finalists whose numbers were wrong, one line each.
    parity: the whole network's with that choice, in a line, where it was proven as a whole.
    """

    chosen: dict[str, Candidate] = field(default_factory=dict)
    inside: dict[str, InNetwork] = field(default_factory=dict)
    beaten: tuple[str, ...] = ()
    race: np.ndarray | None = None
    faults: tuple[str, ...] = ()
    parity: str | None = None


class Finalists:
    """Of one network; a context manager, for it keeps compiled networks."""

    def __init__(
        self,
        imported: ImportedModel,
        label: str,
        target: TargetSpec,
        device: Device,
        info: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._imported, self._label, self._target, self._device = imported, label, target, device
        self._info, self._warn = info, warn
        self._folder = tempfile.TemporaryDirectory(prefix="tvm-mobilenet-tune-")
        self._baseline: Network | None = None
        self._compiled = 0

    def __enter__(self) -> Finalists:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def expected_seconds(self, recorded: Choice) -> float:
        """About how long `settle` will take; compiles the analytic network to know."""
        self._info("compiling the network with analytic knobs")
        start = time.monotonic()
        self._network({})
        seconds = time.monotonic() - start
        again = AGAIN_COMPILATIONS * seconds + AGAIN_TIMING_SECONDS if recorded else 0.0
        return COMPILATIONS * seconds + TIMING_SECONDS + again

    def settle(self, searches: Sequence[TaskSearch], recorded: Choice) -> Settled:
        """Choose per operator. Raises NothingMeasuredError when the networks do not run.

        recorded: what an earlier run chose, here or in another network. It is a finalist whatever
        it takes alone, and what was chosen now must not be slower than it as a whole.
        """
        work = [(search.task, c) for search in searches for c in finalists(search, recorded)]
        sound, faults = sound_finalists(work, self._target, self._device, self._info, self._warn)
        if not sound:
            return Settled(faults=tuple(faults))
        networks = [self._network({})]
        for place in range(max(map(len, sound.values()))):
            networks.append(
                self._network(
                    {op: found[place] for op, found in sound.items() if place < len(found)}
                )
            )
        self._info(f"timing every operator inside {len(networks)} networks")
        times = network.time_operators(networks, self._imported, self._device)
        counts = {search.task.operator: search.task.count for search in searches}

        def inside(choice: Choice) -> dict[str, InNetwork]:
            measured = {}
            for operator, found in sound.items():
                place = found.index(choice[operator]) + 1 if operator in choice else 0
                seconds = (float(np.median(times[operator][i])) for i in (0, place))
                measured[operator] = InNetwork(self._label, counts[operator], *seconds)
            return measured

        chosen: dict[str, Candidate] = {}
        for operator, found in sound.items():
            if winner := network.choose(times[operator][: len(found) + 1]):
                chosen[operator] = found[winner - 1]
        earlier = {
            operator: candidate
            for operator, found in sound.items()
            for candidate in found
            if operator in recorded and candidate.key == recorded[operator].key
        }
        looked_at = inside({**earlier, **chosen})
        gains = {op: each.baseline_seconds - each.seconds for op, each in looked_at.items()}
        race, chosen = raced(chosen, earlier, gains, self._times, self._info)
        beaten = tuple(operator for operator in sound if operator not in chosen)
        return Settled(chosen, inside(chosen), beaten, race, tuple(faults))

    def _times(self, choices: Sequence[Choice]) -> np.ndarray:
        networks = [self._network(choice) for choice in choices]
        return network.time_networks(networks, self._imported, self._device)

    def _network(self, choice: Choice) -> Network:
        if not choice and self._baseline is not None:
            return self._baseline
        self._compiled += 1
        library = Path(self._folder.name) / f"{self._compiled}.so"
        compiled = network.compile_network(self._imported, self._target, choice, library)
        if not choice:
            self._baseline = compiled
        return compiled


def sound_finalists(
    work: Sequence[tuple[Task, Candidate]],
    target: TargetSpec,
    device: Checker,
    info: Callable[[str], None],
    warn: Callable[[str], None],
) -> tuple[dict[str, list[Candidate]], list[str]]:
    """By operator the finalists whose numbers are right, best first; and what was wrong."""
    if not work:
        return {}, []
    info(f"checking the numbers of {len(work)} finalists")
    jobs = [Job(task.operator, c.rule.name, c.knobs, target) for task, c in work]
    sound: dict[str, list[Candidate]] = {}
    faults = []
    for (task, candidate), fault in zip(work, check.faults(jobs, device), strict=True):
        if fault is None:
            sound.setdefault(task.operator, []).append(candidate)
        else:
            faults.append(f"{task.label}: {candidate.key}: {fault}")
            warn(f"not recorded: {faults[-1]}")
    return sound, faults


def raced(
    chosen: dict[str, Candidate],
    earlier: dict[str, Candidate],
    gains: Mapping[str, float],
    times: Callable[[Sequence[Choice]], np.ndarray],
    info: Callable[[str], None],
) -> tuple[np.ndarray | None, dict[str, Candidate]]:
    """The whole network, analytic against tuned; while tuned loses, half of it is given up.

    Unless what was chosen earlier is faster, outside noise: then that stays. gains: seconds of the
    network, by operator of both. times: of whole networks in turns, (networks, rounds). Returns the
    last race, analytic and tuned, None when nothing is left; and what is left.
    """
    if earlier and earlier != chosen:
        info("racing the network against the one with the records of earlier runs")
        race = times([{}, chosen, earlier])
        if network.ratio(race[1], race[2]).low > 1.0:
            chosen = earlier
    while chosen:
        info(f"racing the network, {len(chosen)} operators tuned, against the analytic")
        race = times([{}, chosen])
        if network.ratio(race[0], race[1]).value >= 1.0:
            return race, chosen
        # who gained least goes first: that gain is the least certain
        kept = sorted(chosen, key=lambda op: gains[op], reverse=True)[: len(chosen) // 2]
        chosen = {operator: chosen[operator] for operator in kept}
    return None, chosen


def finalists(search: TaskSearch, recorded: Choice) -> list[Candidate]:
    """The fastest of a task that may beat the analytic choice inside the network, best first.

    Behind them the one that did so in an earlier run, by operator in `recorded`.
    """
    if search.baseline is None:
        return []
    found = [
        candidate
        for candidate, measurement in search.fastest(FINALISTS + 1)
        if candidate.key != search.task.baseline.key
        and (measurement.seconds or 0.0) <= search.baseline * MARGIN
    ][:FINALISTS]
    earlier = recorded.get(search.task.operator)
    tried = None if earlier is None else search.tried.get(earlier.key)
    if tried is None or tried[1].seconds is None or tried[0] in found:
        return found
    return [*found, tried[0]]
