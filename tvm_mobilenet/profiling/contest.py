"""One contest: everyone loads the same model, is checked, and is timed in turns.

Every contestant lives in a process of its own pinned to the same CPUs, and is timed in short
blocks that alternate with the others' in a seeded random order: a change of the clock frequency or
a busy neighbour hits all alike. `process.ContestantProcess` says what keeps idle ones quiet.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tvm_mobilenet.profiling import machine
from tvm_mobilenet.profiling.process import ContestantError, ContestantProcess

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.profiling.worker import Block, Memory, Opened

ROUNDS = 16  # blocks a contestant; with 50 runs a block is 4 of them
BLOCK_SECONDS = 0.02  # a block is at least this long, so that short runs become many
WARM_UP_SECONDS = 0.01  # before each block: wakes the thread pool, refills the caches
WARM_UP_RUNS = 3
# Between float32 in another order of summation (1e-6, with Winograd 1e-5) and float16 or
# bfloat16 arithmetic (1e-3, 1e-2): relative L2 error of the outputs against float64 PyTorch.
TOLERANCE = 1e-4
LOAD_TIMEOUT = 900.0  # seconds; torch.compile takes a minute
BLOCK_TIMEOUT = 300.0


@dataclass(frozen=True)
class Entry:
    """Someone who wants to take part."""

    name: str  # of `contestants`
    artifact: Path  # what its `load` takes
    inputs: list[np.ndarray]
    expected: list[np.ndarray] | None  # float64 outputs; None: nothing to check


@dataclass(frozen=True)
class LeftOut:
    """A contestant that was not timed, and why."""

    contestant: str
    kind: Literal["missing", "failed", "different"]
    reason: str
    install: str | None = None  # the command that installs what is missing
    exit_code: int = 1


@dataclass(frozen=True)
class Timing:
    """What one contestant did."""

    entry: Entry
    opened: Opened
    error: float  # relative L2 against `Entry.expected`
    nanoseconds: np.ndarray  # (rounds, runs)
    preempted: int  # times that the kernel took a CPU away during timed runs
    memory: Memory


@dataclass(frozen=True)
class Outcome:
    """Everyone's timing, in the order of the entries."""

    timings: dict[str, Timing]
    left_out: list[LeftOut]
    order: tuple[tuple[str, ...], ...]  # who was timed when, round by round
    disturbance: machine.Disturbance


class DifferentError(Exception):
    """A contestant computes something else than PyTorch."""


def hold(
    entries: Sequence[Entry],
    cpus: tuple[int, ...],
    *,
    runs: int,
    seed: int,
    logs: Path,
    progress: Callable[[str], None],
) -> Outcome:
    """Time `entries` with as many threads as there are `cpus`, at least `runs` runs each.

    What contestants print goes to files in the directory `logs`. Who cannot load the model, dies
    or computes something else is left out, and the rest go on.
    """
    left: list[LeftOut] = []
    with ExitStack() as stack:
        players: dict[str, _Player] = {}
        for entry in entries:
            progress(f"loading {entry.name}")
            log = logs / f"{entry.name}.{len(cpus)}.log"
            process = stack.enter_context(ContestantProcess(cpus, len(cpus), log))
            try:
                players[entry.name] = _enter(entry, process, len(cpus), runs)
            except ContestantError as error:
                left.append(LeftOut(entry.name, "failed", str(error)))
            except DifferentError as difference:
                left.append(LeftOut(entry.name, "different", str(difference), exit_code=5))
            if entry.name not in players:
                process.close()
        progress(f"timing {', '.join(players) or 'nobody'}")
        watch = machine.Watch(cpus)
        order = _take_turns(players, left, seed)
        disturbance = watch.disturbance(sum(player.cpu_seconds for player in players.values()))
        timings = {name: player.timing() for name, player in players.items()}
    return Outcome(timings, left, order, disturbance)


@dataclass
class _Player:
    """A contestant that is loaded, checked and stopped, with its blocks so far."""

    entry: Entry
    process: ContestantProcess
    opened: Opened
    error: float
    warm_up: int
    runs: int
    blocks: list[Block] = dataclasses.field(default_factory=list)

    @property
    def cpu_seconds(self) -> float:
        return sum(block.cpu_seconds for block in self.blocks)

    def play(self) -> None:
        self.process.resume()
        block = self.process.call(
            "block", timeout=BLOCK_TIMEOUT, warm_up=self.warm_up, runs=self.runs
        )
        self.process.pause()
        self.blocks.append(block)

    def timing(self) -> Timing:
        import numpy as np

        self.process.resume()
        return Timing(
            self.entry,
            self.opened,
            self.error,
            np.array([block.nanoseconds for block in self.blocks], np.float64),
            sum(block.preempted for block in self.blocks),
            self.process.call("memory", timeout=BLOCK_TIMEOUT),
        )


def _enter(entry: Entry, process: ContestantProcess, threads: int, runs: int) -> _Player:
    """Load, check the outputs, find the block's length; leaves the process stopped."""
    opened = process.call(
        "open",
        timeout=LOAD_TIMEOUT,
        name=entry.name,
        artifact=entry.artifact,
        threads=threads,
        inputs=entry.inputs,
    )
    outputs = process.call("outputs", timeout=BLOCK_TIMEOUT)
    error = 0.0 if entry.expected is None else relative_error(outputs, entry.expected)
    trial = process.call("block", timeout=BLOCK_TIMEOUT, warm_up=WARM_UP_RUNS, runs=3)
    process.pause()
    seconds = sorted(trial.nanoseconds)[1] / 1e9
    return _Player(
        entry,
        process,
        opened,
        error,
        warm_up=max(WARM_UP_RUNS, math.ceil(WARM_UP_SECONDS / seconds)),
        runs=max(math.ceil(runs / ROUNDS), math.ceil(BLOCK_SECONDS / seconds)),
    )


def _take_turns(
    players: dict[str, _Player], left: list[LeftOut], seed: int
) -> tuple[tuple[str, ...], ...]:
    """Fill every player's blocks, round by round; who fails is moved to `left`."""
    shuffle = random.Random(seed).shuffle
    rounds = []
    for _ in range(ROUNDS):
        names = list(players)
        shuffle(names)  # so that nobody always follows the same neighbour
        rounds.append(tuple(names))
        for name in names:
            try:
                players[name].play()
            except ContestantError as error:
                left.append(LeftOut(name, "failed", str(error)))
                players.pop(name).process.close()
    return tuple(rounds)


def relative_error(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Largest relative L2 error of an output; DifferentError when it is above TOLERANCE."""
    import numpy as np

    if len(outputs) != len(expected):
        raise DifferentError(f"it has {len(outputs)} outputs where PyTorch has {len(expected)}")
    worst = 0.0
    for got, wanted in zip(outputs, expected, strict=True):
        if got.size != wanted.size:
            raise DifferentError(f"an output is {got.shape} where PyTorch's is {wanted.shape}")
        difference = got.astype(np.float64).reshape(wanted.shape) - wanted
        error = float(np.linalg.norm(difference) / np.linalg.norm(wanted))
        if not error <= TOLERANCE:  # also NaN
            raise DifferentError(
                f"its outputs differ from PyTorch's by {error:.1e} (relative L2; "
                f"at most {TOLERANCE:.0e} is float32)"
            )
        worst = max(worst, error)
    return worst
