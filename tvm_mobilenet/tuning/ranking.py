"""The learned order of candidates: xgboost on the knobs and the operator's proportions.

What is learned is ``log(seconds / seconds of the operator's analytic choice)``, so that one model
serves all operators of a rule, and measurements of other networks teach it too. The features are
those that tell candidates of one operator apart: each knob, how evenly the knobs divide the
operator, and the rule's own prediction where it has one; and of the operator the logarithms of its
sizes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
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
_PRIOR = 0  # where the rule's own prediction is in a row


class LearnedRanking:
    """Predicts relative times; what a `search.Ranking` is once `learn` was called."""

    def __init__(self, target: TargetSpec, seed: int) -> None:
        self._target, self._seed = target, seed
        self._models: dict[str, Any] = {}
        # Whole spaces are ranked for every batch: what does not change is worked out once.
        self._rows: dict[tuple[str, str], list[float]] = {}  # by operator and candidate
        self._analytic: dict[str, float] = {}  # the rule's prediction, by operator

    @property
    def learns(self) -> bool:
        """Whether xgboost is here; without it the rules' own predictions stand."""
        return importlib.util.find_spec("xgboost") is not None

    def learn(self, searches: Iterable[TaskSearch]) -> None:
        """Fit a model for each rule that has enough measurements."""
        if not self.learns:
            return
        import xgboost

        rows: dict[str, list[tuple[list[float], float]]] = {}
        for search in searches:
            if search.baseline is None:
                continue
            for candidate, measurement in search.tried.values():
                if measurement.seconds is not None:
                    value = math.log(measurement.seconds / search.baseline)
                    row = self._row(search.task, candidate)
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
        scores = [0.0] * len(candidates)
        rules = {candidate.rule.name for candidate in candidates}
        for rule in sorted(rules):
            places = [i for i, c in enumerate(candidates) if c.rule.name == rule]
            rows = [self._row(task, candidates[i]) for i in places]
            model = self._models.get(rule)
            if model is None:
                values = [row[_PRIOR] for row in rows]
            else:
                import xgboost

                values = model.predict(xgboost.DMatrix(np.array(rows, np.float32))).tolist()
            for place, value in zip(places, values, strict=True):
                scores[place] = value
        return scores

    def _row(self, task: Task, candidate: Candidate) -> list[float]:
        key = task.operator, candidate.key
        if key not in self._rows:
            self._rows[key] = features(task, candidate, self._prior(task, candidate))
        return self._rows[key]

    def _prior(self, task: Task, candidate: Candidate) -> float:
        """What the rule predicts before anything is measured, relative to the analytic choice.

        The logarithm of `Rule.predicted`'s ratio; 0 for a rule that predicts nothing.
        """
        predict = getattr(candidate.rule, "predicted", None)
        of_analytic = getattr(task.baseline.rule, "predicted", None)
        # a GPU's rules all predict clocks of a multiprocessor; a CPU's compare their own knobs only
        comparable = self._target.gpu is not None or candidate.rule.name == task.baseline.rule.name
        if predict is None or of_analytic is None or not comparable:
            return 0.0
        if task.operator not in self._analytic:
            analytic = of_analytic(task.spec, task.baseline.knobs, self._target)
            self._analytic[task.operator] = analytic
        ours = predict(task.spec, candidate.knobs, self._target)
        return math.log(ours / self._analytic[task.operator])


def features(task: Task, candidate: Candidate, prior: float) -> list[float]:
    """One row: the prediction, knobs, their relation to the analytic choice's, the operator."""
    knobs = dataclasses.asdict(candidate.knobs)
    base = dataclasses.asdict(task.baseline.knobs)
    row = [prior]  # at _PRIOR
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
