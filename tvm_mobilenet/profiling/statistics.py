"""From run times to medians, spreads and ratios with an interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Spread:
    """Times of all runs of one contestant, in milliseconds."""

    median: float
    p10: float
    p90: float


@dataclass(frozen=True)
class Ratio:
    """How many times faster, with the bounds of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def spread(rounds: np.ndarray) -> Spread:
    """Median, 10th and 90th percentile over all runs; `rounds`: nanoseconds (rounds, runs)."""
    import numpy as np

    p10, median, p90 = np.percentile(rounds, [10, 50, 90]) / 1e6
    return Spread(float(median), float(p10), float(p90))


def speed_up(base: np.ndarray, other: np.ndarray, seed: int = 0) -> Ratio:
    """Median of `base` over median of `other`; above 1: `other` is faster.

    Both are (rounds, runs), with the same rounds. The interval is a percentile bootstrap over
    whole rounds (Efron 1979), the same rounds for both: what disturbed one round stays paired.
    """
    import numpy as np

    rounds = len(base)
    if len(other) != rounds:
        raise ValueError(f"{rounds} rounds against {len(other)}")
    picks = np.random.default_rng(seed).integers(0, rounds, (RESAMPLES, rounds))
    ratios = [float(np.median(base[pick]) / np.median(other[pick])) for pick in picks]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Ratio(float(np.median(base) / np.median(other)), float(low), float(high))


def geometric_mean(values: list[float]) -> float:
    """The mean that suits ratios; ValueError for no values."""
    import numpy as np

    if not values:
        raise ValueError("no values")
    return float(np.exp(np.mean(np.log(values))))
