"""Change points: at which probe a curve goes from one level to another, if it does.

For every place that leaves at least FEWEST probes on each side, the difference of the two means is set against the
scatter around them; the place where it stands out most is a candidate. It is a change if the difference is at least
`least`, and if hardly any random order of the same values stands out as much (a permutation test, so that nothing is
assumed of how values are distributed). Neighbouring probes resemble each other, which a random order does not: the
difference is made smaller by what the lag-1 autocorrelation of the scatter costs in independent values,
sqrt((1 - r) / (1 + r)). A steady drift is all autocorrelation, and no change. Each side is then searched in turn; steps
in one direction that follow closely are one change that took a while.

How often flat noise gives a change is measured in tests/train/test_changes.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

FEWEST = 3  # probes on each side: one that is off by itself is no change
CHANCE = 0.001  # how often a random order may stand out as much
ORDERS = 1999
CLOSELY = 0.15  # of a curve's probes: the longest that a change may take
# What is worth a mark, by the name that a score begins with; a mass is between 0 and 1.
LEAST = {"entropy": 0.5}
LEAST_MASS = 0.1


@dataclass(frozen=True)
class Change:
    """From `before` to `after` (means): the last probe of the old level, and the first of the new."""

    last: int  # steps
    first: int
    before: float
    after: float

    @property
    def rises(self) -> bool:
        return self.after > self.before

    def __str__(self) -> str:
        verb = "rises" if self.rises else "falls"
        return f"{verb} from {self.before:.2g} to {self.after:.2g} between steps {self.last:,} and {self.first:,}"


def least_change(score: str) -> float:
    """The smallest change of a score that is worth a mark."""
    return next((least for name, least in LEAST.items() if score.startswith(name)), LEAST_MASS)


def find_changes(
    steps: Int[np.ndarray, "probe"], values: Float[np.ndarray, "probe"], least: float = LEAST_MASS
) -> list[Change]:
    """The changes of a curve, first to last; NaN are probes that say nothing."""
    there = np.isfinite(values)
    steps, values = steps[there], values[there].astype(float)
    edges = [0, *_places(values, 0, least), len(values)]
    means = [float(values[start:stop].mean()) for start, stop in pairwise(edges) if stop > start]
    found: list[Change] = []
    ended = 0
    for place, (before, after) in zip(edges[1:-1], pairwise(means), strict=True):
        change = Change(int(steps[place - 1]), int(steps[place]), before, after)
        if found and found[-1].rises == change.rises and place - ended <= len(values) * CLOSELY:
            change = replace(change, last=found[-1].last, before=found.pop().before)
        found.append(change)
        ended = place
    return found


def _places(values: Float[np.ndarray, "probe"], offset: int, least: float) -> list[int]:
    """Where each new level begins, counted from `offset`."""
    place = _place_in(values, least)
    # Of two changes neither divides the whole well: each has to be one between the other and the nearer end.
    places = _two_places_in(values, least) if place is None else [place]
    if not places:
        return []
    found: list[int] = []
    for start, stop in pairwise([0, *places, len(values)]):
        found += [offset + start] * (start > 0) + _places(values[start:stop], offset + start, least)
    return found


def _place_in(values: Float[np.ndarray, "probe"], least: float) -> int | None:
    """The place that divides the values best, if that is a change."""
    n = len(values)
    if n < 2 * FEWEST:
        return None
    standing = _standing_out(values[None])[0]
    place = int(standing.argmax()) + FEWEST
    left, right = values[:place], values[place:]
    if abs(right.mean() - left.mean()) < least:
        return None
    found = standing.max() * _independence(np.concatenate([left - left.mean(), right - right.mean()]))
    by_chance = _standing_out(values[_orders(n)]).max(axis=1)
    return place if (1 + (by_chance >= found).sum()) / (1 + ORDERS) <= CHANCE else None


def _two_places_in(values: Float[np.ndarray, "probe"], least: float) -> list[int]:
    """The two places that divide the values best into three levels, if both are changes; else none."""
    n = len(values)
    if n < 3 * FEWEST:
        return []
    sums = np.concatenate([[0.0], (values - values.mean()).cumsum()])
    first, second = np.triu_indices(n + 1, FEWEST)
    inside = (first >= FEWEST) & (second <= n - FEWEST)
    first, second = first[inside], second[inside]
    explained = (
        sums[first] ** 2 / first
        + (sums[second] - sums[first]) ** 2 / (second - first)
        + (sums[n] - sums[second]) ** 2 / (n - second)
    )
    best = int(explained.argmax())
    one, other = int(first[best]), int(second[best])
    early, late = _place_in(values[:other], least), _place_in(values[one:], least)
    if early is None or late is None or early >= one + late:
        return []
    return [early, one + late]


def _standing_out(values: Float[np.ndarray, "curve probe"]) -> Float[np.ndarray, "curve place"]:
    """|difference of the means| over its standard error, for each place from FEWEST to n - FEWEST."""
    n = values.shape[1]
    values = values - values.mean(axis=1, keepdims=True)
    place = np.arange(FEWEST, n - FEWEST + 1)
    before = values.cumsum(axis=1)[:, FEWEST - 1 : n - FEWEST]
    between = before**2 * (n / (place * (n - place)))  # the part of the sum of squares that the two means explain
    scatter = np.maximum((values**2).sum(axis=1, keepdims=True) - between, 1e-12) / (n - 2)
    return np.sqrt(between / scatter)


def _independence(residuals: Float[np.ndarray, "probe"]) -> float:
    """What the standard error of a mean would have to be divided by, were the values not correlated."""
    total = (residuals**2).sum()
    r = (residuals[1:] * residuals[:-1]).sum() / total if total > 0 else 0.0
    r = min(max(r + (1 + 3 * max(r, 0.0)) / len(residuals), 0.0), 0.99)  # short curves show too little of it
    return float(np.sqrt((1 - r) / (1 + r)))


@cache
def _orders(n: int) -> Int[np.ndarray, "order probe"]:
    generator = np.random.default_rng(0)
    return np.argsort(generator.random((ORDERS, n)), axis=1)
