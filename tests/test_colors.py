from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from shardscope.colors import VIRIDIS, blue_orange, viridis

ROOT = Path(__file__).parents[1]


def test_the_stops_of_viridis_are_matplotlibs_and_what_lies_between_is_close() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    for count, most in ((len(VIRIDIS), 2), (501, 16)):  # of 255
        shares = np.linspace(0, 1, count)
        theirs = np.array(matplotlib.colormaps["viridis"](shares))[:, :3] * 255
        assert np.abs(np.array([viridis(float(share)) for share in shares]) - theirs).max() < most


def test_a_share_beyond_the_ends_has_the_colour_of_the_end() -> None:
    assert viridis(-1) == viridis(0) == (0x44, 0x01, 0x54)
    assert viridis(2) == viridis(1) == (0xFD, 0xE7, 0x25)
    assert blue_orange(0) == (0xF7, 0xF7, 0xF7)
    assert blue_orange(-9) == (0x21, 0x66, 0xAC)


def test_a_colour_map_is_written_down_once() -> None:
    files = [path for folder in ("shardscope", "apps") for path in (ROOT / folder).rglob("*.[pj][ys]")]
    stop = re.compile("|".join(VIRIDIS), re.IGNORECASE)
    assert {path.name for path in files if stop.search(path.read_text(encoding="utf-8"))} == {"colors.py"}
