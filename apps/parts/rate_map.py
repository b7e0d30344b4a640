"""Failures by checkpoint as coloured buttons, a table for each domain, drawn in the browser by rate_map.js."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from shardscope.colors import viridis
from shardscope.failures.atlas import Rate
from shardscope.visible import visible

_CSS = """
.rates { font-family: var(--st-font); color: var(--st-text-color); font-size: 0.78rem; display: flex; flex-wrap: wrap;
         gap: 10px 22px; }
.domain { max-width: 100%; overflow-x: auto; padding-bottom: 4px; }
table { border-collapse: separate; border-spacing: 2px; }
caption { text-align: left; font-weight: 600; padding: 0 0 2px 2px; }
th { font-weight: 400; white-space: nowrap; }
th[scope=row] { text-align: left; padding-right: 8px; position: sticky; left: 0;
                background: var(--st-background-color); }
th:first-child { text-align: left; }
th.run { text-align: left; font-weight: 600; }
th.begins, td.begins { padding-left: 12px; }
button { width: 100%; min-width: 40px; height: 24px; border: 0; border-radius: 3px; font: inherit; cursor: pointer;
         padding: 0 3px; }
button:focus-visible { outline: 3px solid var(--st-primary-color); outline-offset: 1px; }
button[aria-pressed="true"] { outline: 3px solid #ff4fa3; outline-offset: 0; }
td.none { text-align: center; opacity: 0.5; }
"""
_rate_map = st.components.v2.component(
    "rate_map",
    html='<div class="rates"></div>',
    css=_CSS,
    js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8"),
)


@dataclass(frozen=True)
class Place:
    """One square: a failure in a domain at a step of a run."""

    run: str
    step: int
    domain: str
    failure: str

    def __str__(self) -> str:
        return f"{self.failure}.{self.domain}.{self.step}.{self.run}"


def read_place(text: str) -> Place | None:
    """What `str` of a place wrote; None for anything else."""
    failure, domain, step, run = (text.split(".", 3) + [""] * 4)[:4]
    if not (run and step.isascii() and step.isdigit() and len(step) < 17):
        return None
    return Place(run, int(step), domain, failure)


def rate_map(key: str, rates: Sequence[Rate], pressed: Place | None, on_place: Callable[[Place], None]) -> None:
    """Draw rates of one temperature, in the order in which they come; `on_place` is called with the one clicked."""
    columns = list(dict.fromkeys((rate.run, rate.step) for rate in rates))
    by_place = {Place(rate.run, rate.step, rate.domain, rate.failure): rate for rate in rates}
    domains = []
    for domain in dict.fromkeys(rate.domain for rate in rates if rate.samples):
        failures = dict.fromkeys(rate.failure for rate in rates if rate.domain == domain and rate.samples)
        rows = [
            {"failure": failure, "cells": [_cell(by_place[Place(*at, domain, failure)]) for at in columns]}
            for failure in failures
        ]
        domains.append({"name": domain, "rows": rows})
    data = {
        "columns": [{"run": visible(run), "step": f"{step:,}"} for run, step in columns],
        "domains": domains,
        "pressed": str(pressed) if pressed else "",
    }

    def chosen() -> None:
        place = read_place(str(getattr(st.session_state[key], "place", None) or ""))
        if place is not None and place in by_place:
            on_place(place)

    _rate_map(key=key, data=data, on_place_change=chosen)


def _cell(rate: Rate) -> dict[str, str] | None:
    if rate.rate is None:
        return None
    red, green, blue = viridis(rate.rate)
    low, high = rate.interval
    return {
        "place": str(Place(rate.run, rate.step, rate.domain, rate.failure)),
        "text": f"{100 * rate.rate:.0f}",
        "color": f"rgb({red}, {green}, {blue})",
        "ink": "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white",
        "title": f"{rate.failure}, {rate.domain}, {visible(rate.run)} step {rate.step:,}: {rate.rate:.1%} "
        f"({rate.fired} of {rate.samples} samples, 95 % interval {low:.1%} to {high:.1%}; {rate.suspected} suspected)",
    }
