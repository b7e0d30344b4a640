"""Change points: planted ones are found where they are, and curves without one give none."""

from __future__ import annotations

import numpy as np
import pytest

from shardscope.train.changes import Change, find_changes, least_change

STEPS = np.arange(40) * 50


def noise(n: int, seed: int, correlation: float = 0.0) -> np.ndarray:
    """Of deviation 1; each value keeps `correlation` of the one before."""
    fresh = np.random.default_rng(seed).standard_normal(n + 50)
    values = [fresh[0]]
    for value in fresh[1:]:
        values.append(correlation * values[-1] + value)
    return np.array(values[50:])


def test_a_planted_rise_is_found_at_its_step() -> None:
    """As induction does: a score that is next to nothing until step 800, and then is not."""
    for seed in range(50):
        values = np.where(STEPS < 800, 0.03, 0.4) + 0.03 * noise(40, seed)
        (change,) = find_changes(STEPS, values)
        assert (change.last, change.first, change.rises) == (750, 800, True)
        assert change.before == pytest.approx(0.03, abs=0.04)
        assert change.after == pytest.approx(0.4, abs=0.04)


def test_a_planted_fall_is_found_in_shares_of_six() -> None:
    """As looping does: of six samples five loop, then one."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.binomial(6, np.where(STEPS < 1000, 0.85, 0.15)) / 6
        (change,) = find_changes(STEPS, values)
        assert not change.rises
        assert 850 <= change.first <= 1150


def test_the_same_curves_without_the_change_give_none() -> None:
    rng = np.random.default_rng(0)
    curves = [0.03 + 0.03 * noise(40, seed) for seed in range(50)]
    curves += [rng.binomial(6, 0.85, size=40) / 6 for _ in range(50)]
    assert [find_changes(STEPS, curve) for curve in curves] == [[]] * 100


@pytest.mark.parametrize(("correlation", "most"), [(0.0, 0.01), (0.5, 0.04), (0.8, 0.12)])
def test_flat_noise_of_any_size_hardly_ever_gives_a_change(correlation: float, most: float) -> None:
    """The false alarms where not even a smallest size protects from them; docs/training.md states the rates."""
    alarms = [bool(find_changes(STEPS, noise(40, seed, correlation), least=0.0)) for seed in range(300)]
    assert np.mean(alarms) <= most


def test_what_is_too_small_to_matter_is_no_change() -> None:
    values = np.where(STEPS < 800, 0.03, 0.08) + 0.001 * noise(40, 0)
    assert find_changes(STEPS, values) == []
    assert len(find_changes(STEPS, values, least=0.01)) == 1
    assert least_change("entropy") == 0.5
    assert least_change("induction 96") == 0.1


@pytest.mark.parametrize("n", [12, 40, 150])
def test_a_steady_drift_is_no_change(n: int) -> None:
    for seed in range(20):
        assert find_changes(np.arange(n), np.linspace(0, 1, n) + 0.01 * noise(n, seed)) == []


@pytest.mark.parametrize("n", [20, 50, 150])
def test_a_rise_that_takes_a_while_is_one_change_with_a_beginning_and_an_end(n: int) -> None:
    place = np.arange(n)
    (change,) = find_changes(place, 0.5 / (1 + np.exp(-(place - n / 2) / (n / 25))) + 0.01 * noise(n, 0))
    assert change.last - 1 <= n / 2 <= change.first + 1
    assert change.before < 0.1 < 0.4 < change.after


def test_two_steps_far_apart_are_two_changes() -> None:
    values = np.select([STEPS < 600, STEPS < 1400], [0.0, 0.4], 0.9) + 0.02 * noise(40, 0)
    assert [change.first for change in find_changes(STEPS, values)] == [600, 1400]


def test_what_comes_and_goes_is_a_rise_and_a_fall() -> None:
    values = np.where((STEPS >= 600) & (STEPS < 1200), 0.5, 0.05) + 0.02 * noise(40, 0)
    assert [(change.first, change.rises) for change in find_changes(STEPS, values)] == [(600, True), (1200, False)]


def test_few_probes_or_one_that_is_off_say_nothing() -> None:
    assert find_changes(np.arange(5), np.array([0, 0, 0, 1.0, 1.0])) == []
    assert find_changes(np.arange(0), np.array([])) == []
    off = np.full(40, 0.2) + 0.01 * noise(40, 0)
    off[20] = 0.9
    assert find_changes(STEPS, off) == []
    assert find_changes(STEPS, np.full(40, 0.2)) == []
    assert find_changes(STEPS, np.full(40, np.nan)) == []


def test_probes_that_say_nothing_are_left_out() -> None:
    values = np.where(STEPS < 800, 0.03, 0.4) + 0.01 * noise(40, 0)
    values[15:17] = np.nan
    assert [(change.last, change.first) for change in find_changes(STEPS, values)] == [(700, 850)]


def test_a_change_says_what_happened() -> None:
    assert str(Change(1000, 1050, 0.031, 0.42)) == "rises from 0.031 to 0.42 between steps 1,000 and 1,050"
    assert str(Change(0, 50, 0.5, 0.0)) == "falls from 0.5 to 0 between steps 0 and 50"
