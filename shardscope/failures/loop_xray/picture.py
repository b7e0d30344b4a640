"""An X-ray as one SVG picture, which browsers and GitHub show and which needs no drawing library.

Left, the loop feeding itself copy by copy; right, what switching off every head and MLP does to it.
"""

from __future__ import annotations

from html import escape
from itertools import pairwise

from shardscope.failures.loop_xray.table import one_line
from shardscope.failures.loop_xray.xray import Xray

WIDTH, TOP = 900, 92
CHART = (60, 380, 190)  # left, right, height
CELL, GRID = 30, 500
BLUE, RED, GREY, INK, PAPER = "#2166ac", "#b2182b", "#888888", "#1a1a1a", "#ffffff"


def xray_picture(found: Xray) -> str:
    """The SVG. Red parts carry the loop, blue ones hold it back; a ring marks those that break it alone."""
    layers = 1 + max(part.layer for part in found.cause.parts)
    heads = sum(part.kind == "head" for part in found.cause.parts) // layers
    cell = min(CELL, (WIDTH - GRID - 60) // (heads + 1))
    height = TOP + max(CHART[2], layers * cell) + 80
    loop = f"{found.when.repeats:.1f} copies of {one_line(found.when.text, 70)}"
    verdict = (
        f"{found.verdict}: {', '.join(found.smallest_set) or 'no set'} break{'s' * (len(found.smallest_set) < 2)} it"
    )
    body = [
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
        text(20, 28, f"{found.period} tokens round and round: {loop}", 15, bold=True),
        text(20, 50, verdict, 14),
        *_growth(found),
        *_grid(found, layers, heads, cell),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" role="img" aria-label="{escape(verdict)}">\n' + "\n".join(body) + "\n</svg>\n"
    )


def _growth(found: Xray) -> list[str]:
    left, right, tall = CHART
    copies, bottom = found.when.copies, TOP + tall
    step = (right - left) / max(1, len(copies) - 1)

    def line(values: list[float], colour: str, top: float) -> list[str]:
        points = [(left + place * step, bottom - tall * value / top) for place, value in enumerate(values)]
        drawn = [
            f'<line x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}" stroke="{colour}" stroke-width="2"/>'
            for (a, b), (c, d) in pairwise(points)
        ]
        return drawn + [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points]

    bits = max(1.0, *(copy.entropy for copy in copies))
    return [
        text(left, TOP - 10, "probability of the loop's tokens", 12, RED),
        text(right, TOP - 10, f"entropy, of {bits:.1f} bits", 12, GREY, anchor="end"),
        f'<path d="M{left} {TOP}V{bottom}H{right}" fill="none" stroke="{INK}"/>',
        text(left - 6, TOP + 8, "1", 11, anchor="end"),
        text(left - 6, bottom, "0", 11, anchor="end"),
        text((left + right) / 2, bottom + 24, f"copy 1 to {len(copies)}", 12, anchor="middle"),
        *line([copy.entropy for copy in copies], GREY, bits),
        *line([copy.probability for copy in copies], RED, 1.0),
    ]


def _grid(found: Xray, layers: int, heads: int, cell: int) -> list[str]:
    strongest = max(1e-6, *(abs(part.effect) for part in found.cause.parts))
    drawn = [text(GRID, TOP - 30, f"change of the loop's log-odds without it, up to {strongest:.1f} nats", 12)]
    drawn += [text(GRID + (head + 0.5) * cell, TOP - 8, f"H{head}", 10, anchor="middle") for head in range(heads)]
    drawn.append(text(GRID + (heads + 0.7) * cell, TOP - 8, "MLP", 10, anchor="middle"))
    drawn += [text(GRID - 6, TOP + (row + 0.65) * cell, f"L{row}", 10, anchor="end") for row in range(layers)]
    for part in found.cause.parts:
        column = heads + 0.2 if part.kind == "mlp" else float(part.name.partition("H")[2])
        x, y = GRID + column * cell, TOP + part.layer * cell
        colour = RED if part.effect < 0 else BLUE
        title = f"{part.name} ({part.layer_kind}): {part.effect:+.2f} nats, then {part.outcome}"
        ring = f' stroke="{INK}" stroke-width="2.5"' if part.broken else ""
        opacity = 0.06 + 0.94 * abs(part.effect) / strongest
        drawn.append(
            f'<rect x="{x + 1.5:.1f}" y="{y + 1.5:.1f}" width="{cell - 3}" height="{cell - 3}" fill="{colour}" '
            f'fill-opacity="{opacity:.3f}"{ring}><title>{escape(title)}</title></rect>'
        )
    bottom = TOP + layers * cell + 20
    drawn.append(text(GRID, bottom, "red carries the loop, blue holds it back; a ring: breaks it alone", 11))
    return drawn


def text(
    x: float, y: float, words: str, size: int, colour: str = INK, *, anchor: str = "start", bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight}>'
        f"{escape(words)}</text>"
    )
