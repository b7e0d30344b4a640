"""Intervals: how sure a rate or a mean is."""

from __future__ import annotations

from math import hypot, sqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Z_95 = 1.959963984540054  # the 97.5th percentile of the normal distribution


class Interval(NamedTuple):
    low: float
    high: float


def wilson(hits: int, trials: int, z: float = Z_95) -> Interval:
    """The 95 % interval of a rate (Wilson 1927). Without a trial nothing is known: 0 to 1."""
    if trials == 0:
        return Interval(0.0, 1.0)
    rate, spread = hits / trials, z * z / trials
    middle = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(rate * (1 - rate) / trials + spread / trials / 4)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def difference(hits: int, trials: int, later_hits: int, later_trials: int) -> Interval:
    """The 95 % interval of a later rate less an earlier one (Newcombe 1998, method 10, from both Wilson intervals)."""
    if trials == 0 or later_trials == 0:
        return Interval(-1.0, 1.0)
    rate, later_rate = hits / trials, later_hits / later_trials
    before, after = wilson(hits, trials), wilson(later_hits, later_trials)
    low = later_rate - rate - hypot(later_rate - after.low, before.high - rate)
    high = later_rate - rate + hypot(after.high - later_rate, rate - before.low)
    return Interval(max(-1.0, low), min(1.0, high))


def bootstrap(
    values: Float[np.ndarray, "row n"], samples: int = 1000, seed: int = 0
) -> tuple[Float[np.ndarray, "row"], Float[np.ndarray, "row"]]:
    """The ends of the 95 % interval of each row's mean (Efron 1979, percentile method)."""
    n = values.shape[1]
    # How often each value is drawn, the same for all rows: one product instead of a gather.
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples)
    means = values @ (drawn.T / n)
    low, high = np.quantile(means, (0.025, 0.975), axis=1)
    return low, high
