"""What to measure next for one operator.

Trial 0 is the analytic choice. Then come the winners of similar operators (`seeds`). Then, turn by
turn, three candidates that the ranking expects most of and one at random, so that an error of the
ranking cannot hide a good one for ever. Equal data and seed give equal candidates.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tvm_mobilenet.tuning.measure import Measurement
from tvm_mobilenet.tuning.task import Candidate, Task

# (task, candidates) -> the lower the better
Ranking = Callable[[Task, Sequence[Candidate]], Sequence[float]]

RANDOM_EVERY = 4
NOISE = 0.01  # two times that differ by less are the same for the search
PATIENCE = 24  # trials without improvement after which a task is given up


class TaskSearch:
    """The candidates of one task: tried and to be tried."""

    def __init__(self, task: Task, seed: int, seeds: Sequence[Candidate] = ()) -> None:
        """seeds: candidates to measure first, best first; those outside of the space are left."""
        self.task = task
        space = {candidate.key: candidate for candidate in task.space}
        order = sorted(space)
        random.Random(f"{seed} {task.operator}").shuffle(order)
        self._first = [
            task.baseline,
            *(s for s in dict.fromkeys(seeds) if s.key in space or s.key == task.baseline.key),
        ]
        self._pool = {key: space[key] for key in order}
        self._proposals = 0
        self.tried: dict[str, tuple[Candidate, Measurement]] = {}
        self.since_improvement = 0

    @property
    def baseline(self) -> float | None:
        """Seconds of the analytic choice; None before it was measured, or when it failed."""
        return self._seconds(self.task.baseline.key)

    @property
    def best(self) -> tuple[Candidate, Measurement] | None:
        """The fastest that was tried."""
        return next(iter(self.fastest(1)), None)

    @property
    def best_seconds(self) -> float | None:
        """Its seconds."""
        return None if self.best is None else self.best[1].seconds

    @property
    def failures(self) -> list[str]:
        """Why candidates failed, in order."""
        return [m.error for _, m in self.tried.values() if m.error is not None]

    @property
    def finished(self) -> bool:
        """Whether further trials promise nothing."""
        return not (self._pool or self._first) or self.since_improvement >= PATIENCE

    def fastest(self, count: int) -> list[tuple[Candidate, Measurement]]:
        """The fastest that were tried, best first."""
        done = [entry for entry in self.tried.values() if entry[1].seconds is not None]
        return sorted(done, key=lambda entry: entry[1].seconds or 0.0)[:count]

    def propose(self, count: int, ranking: Ranking | None) -> list[Candidate]:
        """The next candidates, none of which was tried or proposed before."""
        chosen: list[Candidate] = []
        while len(chosen) < count and self._first:
            candidate = self._first.pop(0)
            if candidate.key not in self.tried and candidate not in chosen:
                self._pool.pop(candidate.key, None)
                chosen.append(candidate)
        ranked: list[str] | None = None
        while len(chosen) < count and self._pool:
            self._proposals += 1
            if ranking is None or self._proposals % RANDOM_EVERY == 0:
                key = next(iter(self._pool))  # the pool is in random order
            else:
                if ranked is None:
                    scores = ranking(self.task, list(self._pool.values()))
                    best_first = sorted(zip(scores, self._pool, strict=True), key=lambda p: p[0])
                    ranked = [key for _, key in best_first]
                key = next(k for k in ranked if k in self._pool)
            chosen.append(self._pool.pop(key))
        return chosen

    def record(self, candidate: Candidate, measurement: Measurement) -> None:
        """Take in a measurement, of this run or an earlier one."""
        before = self.best_seconds
        self._pool.pop(candidate.key, None)
        self.tried[candidate.key] = candidate, measurement
        seconds = measurement.seconds
        if seconds is not None and (before is None or seconds < before * (1 - NOISE)):
            self.since_improvement = 0
        else:
            self.since_improvement += 1

    def _seconds(self, key: str) -> float | None:
        entry = self.tried.get(key)
        return None if entry is None else entry[1].seconds
