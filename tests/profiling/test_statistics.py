from __future__ import annotations

import numpy as np
import pytest

from tvm_mobilenet.profiling.statistics import geometric_mean, speed_up, spread


def test_spread_is_of_all_runs_in_milliseconds() -> None:
    rounds = np.arange(1, 101).reshape(10, 10) * 1e6  # 1 ms, 2 ms, ... 100 ms

    result = spread(rounds)

    assert result.median == pytest.approx(50.5)
    assert result.p10 == pytest.approx(10.9)
    assert result.p90 == pytest.approx(90.1)


def test_speed_up_above_one_means_that_the_other_is_faster() -> None:
    ratio = speed_up(np.full((8, 5), 30.0), np.full((8, 5), 20.0))

    assert (ratio.value, ratio.low, ratio.high) == (1.5, 1.5, 1.5)


def test_speed_up_pairs_rounds() -> None:
    """A slow-down that hits both in the same rounds leaves the ratio and its interval alone."""
    disturbance = np.repeat(1.0 + np.arange(16) / 4, 6).reshape(16, 6)

    ratio = speed_up(2.0 * disturbance, disturbance)

    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))


def test_interval_covers_the_true_ratio_and_narrows_with_less_noise() -> None:
    def interval(noise: float) -> tuple[float, float]:
        random = np.random.default_rng(3)
        base = 12.0 + noise * random.standard_normal((16, 8))
        other = 10.0 + noise * random.standard_normal((16, 8))
        ratio = speed_up(base, other)
        return ratio.low, ratio.high

    wide, narrow = interval(1.0), interval(0.1)

    assert wide[0] < 1.2 < wide[1]
    assert narrow[0] < 1.2 < narrow[1]
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 4


def test_contestants_may_have_blocks_of_different_length_but_not_other_rounds() -> None:
    assert speed_up(np.full((4, 2), 6.0), np.full((4, 9), 3.0)).value == 2.0
    with pytest.raises(ValueError, match="4 rounds against 5"):
        speed_up(np.ones((4, 2)), np.ones((5, 2)))


def test_geometric_mean() -> None:
    assert geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no values"):
        geometric_mean([])
