"""The learned order of candidates: xgboost on the knobs and the operator's proportions.

What is learned is ``log(seconds / seconds of the operator's analytic choice)``, so that one model
serves all operators of a rule, and measurements of other networks teach it too. The features are
those that tell candidates of one operator apart: each knob, how evenly the knobs divide the
operator, and the rule's own prediction where it has one; and of the operator the logarithms of its
sizes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_mobilenet.tuning.search import TaskSearch
from tvm_mobilenet.tuning.task import Candidate, Task

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

LEAST_ROWS = 12  # measurements of a rule before anything is learned
_PARAMETERS = {
    "max_depth": 5,
    "eta": 0.15,
    "min_child_weight": 2,
    "subsample": 0.9,
    "nthread": 1,
    "verbosity": 0,
}
_ROUNDS = 60


class LearnedRanking:
    """Predicts relative times; what a `search.Ranking` is once `learn` was called."""

    def __init__(self, target: TargetSpec, seed: int) -> None:
        self._target, self._seed = target, seed
        self._models: dict[str, Any] = {}

    def learn(self, searches: Iterable[TaskSearch]) -> None:
        """Fit a model for each rule that has enough measurements."""
        import xgboost

        rows: dict[str, list[tuple[list[float], float]]] = {}
        for search in searches:
            if search.baseline is None:
                continue
            for candidate, measurement in search.tried.values():
                if measurement.seconds is not None:
                    value = math.log(measurement.seconds / search.baseline)
                    row = features(search.task, candidate, self._target)
                    rows.setdefault(candidate.rule.name, []).append((row, value))
        for rule, found in rows.items():
            if len(found) < LEAST_ROWS:
                continue
            data = xgboost.DMatrix(
                np.array([row for row, _ in found], np.float32),
                label=np.array([value for _, value in found], np.float32),
            )
            parameters = _PARAMETERS | {"seed": self._seed}
            self._models[rule] = xgboost.train(parameters, data, num_boost_round=_ROUNDS)

    def __call__(self, task: Task, candidates: Sequence[Candidate]) -> list[float]:
        """The predicted time of each candidate relative to the analytic choice, as a logarithm.

        Where nothing was learned the rule's own prediction stands, if it has one.
        """
        import xgboost

        scores = [0.0] * len(candidates)
        rules = {candidate.rule.name for candidate in candidates}
        for rule in sorted(rules):
            places = [i for i, c in enumerate(candidates) if c.rule.name == rule]
            chosen = [candidates[i] for i in places]
            model = self._models.get(rule)
            if model is None:
                values = [prior(task, c, self._target) for c in chosen]
            else:
                rows = [features(task, c, self._target) for c in chosen]
                values = model.predict(xgboost.DMatrix(np.array(rows, np.float32))).tolist()
            for place, value in zip(places, values, strict=True):
                scores[place] = value
        return scores


def prior(task: Task, candidate: Candidate, target: TargetSpec) -> float:
    """What the rule predicts before anything is measured, relative to the analytic choice.

    The logarithm of `Rule.predicted`'s ratio; 0 for a rule that predicts nothing.
    """
    predict = getattr(candidate.rule, "predicted", None)
    if predict is None or candidate.rule.name != task.baseline.rule.name:
        return 0.0
    ours = predict(task.spec, candidate.knobs, target)
    return math.log(ours / predict(task.spec, task.baseline.knobs, target))


def features(task: Task, candidate: Candidate, target: TargetSpec) -> list[float]:
    """One row: knobs, their relation to the analytic choice's, the prediction, the operator."""
    knobs = dataclasses.asdict(candidate.knobs)
    base = dataclasses.asdict(task.baseline.knobs)
    row = [prior(task, candidate, target)]
    for name, value in knobs.items():
        number = _number(value)
        row += [number, number - _number(base.get(name, value))]
    numbers = [k for k in knobs.values() if isinstance(k, int) and not isinstance(k, bool)]
    row.append(float(math.prod(max(1, n) for n in numbers[:2])))  # size of the tile
    pixels = getattr(task.spec, "out_height", 1) * getattr(task.spec, "out_width", 1)
    width = getattr(task.spec, "out_width", 1)
    row += [float(total % numbers[0]) / numbers[0] for total in (pixels, width)] if numbers else []
    row += [math.log2(1 + n) for n in _sizes(dataclasses.asdict(task.spec))]
    return [*row, math.log2(1 + task.spec.mult_adds), math.log2(1 + task.spec.min_bytes)]


def _number(value: Any) -> float:
    """A knob as a number; a word by its letters, which is arbitrary but the same everywhere."""
    return float(sum(value.encode())) if isinstance(value, str) else float(value)


def _sizes(spec: dict[str, Any]) -> list[float]:
    found: list[float] = []
    for name, value in spec.items():
        if isinstance(value, int):
            found.append(float(value))
        elif isinstance(value, tuple) and name != "shape":  # whose length varies
            found += map(float, value)
    return found
