from __future__ import annotations

import pytest

from shardscope.config import ScheduleConfig
from shardscope.train.schedule import decay_start, lr_factor, phase_of


def test_wsd_rises_holds_and_falls() -> None:
    schedule = ScheduleConfig(steps=10, warmup=0.2, decay=0.4, shape="linear")
    factors = [lr_factor(step, schedule) for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert [phase_of(step, schedule) for step in range(10)] == ["warmup"] + ["stable"] * 5 + ["decay"] * 4


def test_the_sqrt_fall_is_steepest_at_its_start() -> None:
    schedule = ScheduleConfig(steps=8, warmup=0, decay=0.5)
    assert [lr_factor(step, schedule) for step in range(4, 8)] == pytest.approx([1, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5])


def test_a_stable_phase_never_falls_and_an_anneal_falls_from_its_first_step() -> None:
    stable = ScheduleConfig(steps=100, warmup=0.1, decay=0)
    assert decay_start(stable) == 100
    assert lr_factor(99, stable) == 1
    anneal = ScheduleConfig(steps=100, warmup=0, decay=1)
    assert lr_factor(0, anneal) == 1
    assert lr_factor(1, anneal) < 1
    assert 0 < lr_factor(99, anneal) < 0.01


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert lr_factor(50, ScheduleConfig(steps=100, kind="cosine", warmup=0.01)) == pytest.approx(0.5)
