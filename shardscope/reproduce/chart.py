"""Curves as an SVG picture, which browsers and GitHub show and which needs no drawing library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from shardscope.colors import OKABE_ITO

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 70, 590, 40, 330
INK, GRID, PAPER = "#1a1a1a", "#dddddd", "#ffffff"


@dataclass(frozen=True)
class Curve:
    """`parts` are drawn one by one, without a line between the end of one and the beginning of the next."""

    name: str
    parts: Sequence[Sequence[tuple[float, float]]]


def chart(
    title: str,
    x_label: str,
    y_label: str,
    curves: Sequence[Curve],
    marks: Sequence[tuple[float, str]] = (),
    highest: float = math.inf,
) -> str:
    """The curves on common axes, with a key at the right; `marks` are places on the x axis and what happened there.
    Points above `highest` are left out.

    Raises ValueError where there is no point to draw.
    """
    curves = [
        Curve(curve.name, [[point for point in part if point[1] <= highest] for part in curve.parts])
        for curve in curves
    ]
    points = [point for curve in curves for part in curve.parts for point in part]
    if not points:
        raise ValueError(f"{title}: there is no point to draw")
    x_ticks, y_ticks = ticks([x for x, _ in points]), ticks([y for _, y in points])
    first, last = x_ticks[0], max(x for x, _ in points)
    if last > first:  # the axis ends where the curves do, and not at the next round number
        x_ticks = [tick for tick in x_ticks if tick <= last]
    else:
        last = x_ticks[-1]

    def x_of(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - first) / (last - first)

    def y_of(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    body = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>', _text(LEFT, 24, title, 15, weight="bold")]
    for tick in x_ticks:
        body.append(_line(x_of(tick), TOP, x_of(tick), BOTTOM, GRID))
        body.append(_text(x_of(tick), BOTTOM + 18, _number(tick), 11, anchor="middle"))
    for tick in y_ticks:
        body.append(_line(LEFT, y_of(tick), RIGHT, y_of(tick), GRID))
        body.append(_text(LEFT - 8, y_of(tick) + 4, _number(tick), 11, anchor="end"))
    body.append(_text((LEFT + RIGHT) / 2, BOTTOM + 40, x_label, 12, anchor="middle"))
    body.append(
        f'<text x="18" y="{(TOP + BOTTOM) / 2:.1f}" font-size="12" fill="{INK}" text-anchor="middle" '
        f'transform="rotate(-90 18 {(TOP + BOTTOM) / 2:.1f})">{escape(y_label)}</text>'
    )
    for place, words in marks:
        body.append(_line(x_of(place), TOP, x_of(place), BOTTOM, INK, dashed=True))
        body.append(_text(x_of(place) + 4, TOP + 12, words, 11))
    for number, curve in enumerate(curves):
        colour = OKABE_ITO[number % len(OKABE_ITO)]
        for part in filter(None, curve.parts):
            path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in part)
            body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        body.append(_line(RIGHT + 14, TOP + 10 + 20 * number, RIGHT + 34, TOP + 10 + 20 * number, colour, width=3))
        body.append(_text(RIGHT + 40, TOP + 14 + 20 * number, curve.name, 12))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" role="img" aria-label="{escape(title)}">\n' + "\n".join(body) + "\n</svg>\n"
    )


def ticks(values: Sequence[float], about: int = 6) -> list[float]:
    """Round numbers, evenly spaced, the first at or below all values and the last at or above them."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(size * magnitude for size in (1, 2, 2.5, 5, 10) if size * magnitude >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:,.10g}"


def _text(x: float, y: float, words: str, size: int, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{INK}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="4 3"' if dashed else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"{dashes}/>'
    )
