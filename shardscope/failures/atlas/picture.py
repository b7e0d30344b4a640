"""The atlas as a PNG: a heat map of failure by step for each domain, in viridis, every square with its percentage."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw, ImageFont

from shardscope.colors import viridis
from shardscope.failures.atlas.rates import DOMAINS, ROWS, Rate, rates
from shardscope.failures.atlas.records import Atlas
from shardscope.visible import on_one_line

CELL, TALL, LEFT, GAP = 52, 24, 110, 14  # pixels: a square, a name, between runs
NARROWEST = 460  # holds the heading
INK, PAPER, PALE = (26, 26, 26), (255, 255, 255), (232, 232, 232)


def atlas_picture(atlas: Atlas) -> bytes:
    """The PNG file. A square without samples that can show the failure is grey."""
    found = [rate for rate in rates(atlas) if rate.temperature is None]
    domains = [domain for domain in DOMAINS if any(rate.samples for rate in found if rate.domain == domain)]
    places, runs = _across(atlas)
    height = (len(ROWS) + 3) * TALL
    image = Image.new("RGB", (max(NARROWEST, LEFT + places[-1] + CELL + 20), 40 + height * len(domains)), PAPER)
    draw = ImageDraw.Draw(image)
    settings = atlas.settings
    temperatures = ", ".join(f"{temperature:g}" for temperature in settings.temperatures)
    _text(draw, 10, 16, f"temperature {temperatures} · {settings.max_new_tokens} new tokens · percent of the samples")
    for place, domain in enumerate(domains):
        top = 40 + place * height
        _text(draw, 10, top + TALL // 2, domain, size=15)
        for run, at in runs:
            _text(draw, LEFT + at, top + TALL // 2, on_one_line(run)[:40])
        for at, column in zip(places, atlas.columns, strict=True):
            _text(draw, LEFT + at + CELL // 2, top + TALL + TALL // 2, f"{column.step}", size=11, middle=True)
        of_domain = [rate for rate in found if rate.domain == domain]
        for row, failure in enumerate(ROWS):
            y = top + (row + 2) * TALL
            _text(draw, 10, y + TALL // 2, failure)
            of_failure = [rate for rate in of_domain if rate.failure == failure]
            for at, rate in zip(places, of_failure, strict=True):
                _square(draw, LEFT + at, y, rate)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _across(atlas: Atlas) -> tuple[list[int], list[tuple[str, int]]]:
    """Where each column begins, and where each run does."""
    places: list[int] = []
    runs: list[tuple[str, int]] = []
    at = 0
    for column in atlas.columns:
        if not runs or runs[-1][0] != column.run:
            at += GAP if runs else 0
            runs.append((column.run, at))
        places.append(at)
        at += CELL
    return places, runs


def _square(draw: ImageDraw.ImageDraw, x: int, y: int, rate: Rate) -> None:
    box = (x + 1, y + 1, x + CELL - 2, y + TALL - 2)
    if rate.rate is None:
        draw.rectangle(box, fill=PALE)
        return
    red, green, blue = viridis(rate.rate)
    draw.rectangle(box, fill=(red, green, blue))
    ink = INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else PAPER
    _text(draw, x + CELL // 2, y + TALL // 2, f"{100 * rate.rate:.0f}", ink=ink, middle=True)


def _text(
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    text: str,
    *,
    size: int = 13,
    ink: tuple[int, int, int] = INK,
    middle: bool = False,
) -> None:
    draw.text((x, y), text, fill=ink, font=ImageFont.load_default(size), anchor="mm" if middle else "lm")
