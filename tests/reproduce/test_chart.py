from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardscope.reproduce.chart import BOTTOM, LEFT, RIGHT, TOP, Curve, chart, ticks


@given(st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=1, max_size=20))
def test_ticks_are_evenly_spaced_and_enclose_every_value(values: list[float]) -> None:
    found = ticks(values)
    assert found[0] <= min(values) + 1e-6
    assert found[-1] >= max(values) - 1e-6
    steps = [after - before for before, after in pairwise(found)]
    assert 1 <= len(steps) <= 8
    assert max(steps) == pytest.approx(min(steps), rel=1e-6)


def test_ticks_are_round_numbers() -> None:
    assert ticks([0.13, 5.6]) == [0, 1, 2, 3, 4, 5, 6]
    assert ticks([2.311, 2.365]) == pytest.approx([2.31, 2.32, 2.33, 2.34, 2.35, 2.36, 2.37])


def test_points_lie_where_the_axes_say() -> None:
    drawn = chart("Loss", "tokens", "nats", [Curve("a", [[(0, 0), (5, 2), (10, 4)]])])
    (path,) = re.findall(r'<polyline points="([^"]+)"', drawn)
    middle = f"{(LEFT + RIGHT) / 2:.1f},{(TOP + BOTTOM) / 2:.1f}"
    assert path == f"{LEFT:.1f},{BOTTOM:.1f} {middle} {RIGHT:.1f},{TOP:.1f}"


def test_parts_of_a_curve_are_not_joined_and_have_one_line_in_the_key() -> None:
    drawn = chart("Loss", "tokens", "nats", [Curve("a", [[(0, 0), (5, 2)], [], [(5, 3), (10, 4)]])])
    ends = [path.split() for path in re.findall(r'<polyline points="([^"]+)"', drawn)]
    assert [len(path) for path in ends] == [2, 2]
    assert ends[0][-1].split(",")[0] == ends[1][0].split(",")[0]
    assert ends[0][-1] != ends[1][0]
    assert drawn.count(">a</text>") == 1


def test_the_x_axis_ends_where_the_curves_do() -> None:
    drawn = chart("Loss", "tokens", "nats", [Curve("a", [[(0, 0), (642, 4)]])])
    (path,) = re.findall(r'<polyline points="([^"]+)"', drawn)
    assert path.split()[-1] == f"{RIGHT:.1f},{TOP:.1f}"
    assert ">600</text>" in drawn
    assert ">800</text>" not in drawn


def test_points_above_the_highest_are_left_out_and_the_axis_ends_where_the_others_do() -> None:
    drawn = chart("Loss", "tokens", "nats", [Curve("a", [[(0, 9), (5, 2), (10, 1)]])], highest=2.5)
    (path,) = re.findall(r'<polyline points="([^"]+)"', drawn)
    assert path.split() == [f"{LEFT:.1f},{TOP:.1f}", f"{RIGHT:.1f},{BOTTOM:.1f}"]


def test_a_chart_is_well_formed_whatever_its_names_hold() -> None:
    drawn = chart("a < b & c", "x", "y", [Curve('"<script>"', [[(1, 1)]]), Curve("b", [[(2, 3)]])], [(1.5, "<here>")])
    root = ElementTree.fromstring(drawn)
    assert root.attrib["aria-label"] == "a < b & c"
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b & c", '"<script>"', "b", "<here>", "x", "y"} <= set(words)


def test_a_chart_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="Loss: there is no point to draw"):
        chart("Loss", "x", "y", [Curve("a", [])])
