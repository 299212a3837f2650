"""Which task gets the next trials: share of the time times what may still be gained."""

from __future__ import annotations

from collections.abc import Sequence

from tvm_mobilenet.tuning.search import TaskSearch

FIRST_TRIALS = 4  # of a task, before what it gained says anything
HOPE = 0.10  # share of its time that a fresh task is expected to lose


def promise(search: TaskSearch) -> float:
    """Seconds of the network that a further trial may be expected to save.

    What the task takes now, times a share that starts at HOPE, grows with what tuning gained here
    so far and falls with every trial that gained nothing.
    """
    best, baseline = search.best_seconds, search.baseline
    if best is None or search.finished:
        return 0.0
    gained = 0.0 if baseline is None else max(0.0, 1.0 - best / baseline)
    tried = max(0, search.since_improvement - FIRST_TRIALS)
    return search.task.count * best * (HOPE + gained) / (1.0 + tried)


def allot(searches: Sequence[TaskSearch], trials: int) -> list[int]:
    """Spread that many trials over the tasks; fewer when the tasks are finished.

    Tasks without a measurement get one first: their baseline.
    """
    shares = [0] * len(searches)
    for i, search in enumerate(searches):
        if not search.tried and sum(shares) < trials:
            shares[i] = 1
    values = [promise(search) for search in searches]
    while sum(shares) < trials and max(values, default=0.0) > 0.0:
        # each further trial in the same round is worth less: it knows no result of the others
        weighted = [value / (1 + n) for value, n in zip(values, shares, strict=True)]
        chosen = weighted.index(max(weighted))
        shares[chosen] += 1
        if shares[chosen] >= len(searches[chosen].task.space) + 1:
            values[chosen] = 0.0
    return shares
