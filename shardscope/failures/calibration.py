"""The limits above which a label fires, and how often it then fires on text that people wrote.

Limits are percentiles of people's text, by domain (`limits.json`); the rates are measured on other documents than those
the limits were set on (`false_alarms.json`). `shardscope bench failures` makes both: docs/failures.md.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from shardscope.failures.drift import DriftLimits
from shardscope.failures.prompts import Domain

LIMITS, FALSE_ALARMS = (Path(__file__).parent / name for name in ("limits.json", "false_alarms.json"))


class Limits(NamedTuple):
    """For one domain: (repeated 4-grams, compression) by the size of a passage; share of broken words by the size of a
    text; drift."""

    repetitive: dict[int, tuple[float, float]]
    broken_words: dict[int, float]
    drift: DriftLimits


class FalseAlarms(NamedTuple):
    """How often a label fired on people's text: the rate, its 95 % interval (Wilson), and over how many texts."""

    rate: float
    low: float
    high: float
    texts: int


@cache
def limits(domain: Domain) -> Limits:
    return limits_from(json.loads(LIMITS.read_text(encoding="utf-8"))[domain])


def limits_from(values: dict[str, Any]) -> Limits:
    """From what stands in a file."""
    return Limits(
        repetitive={int(size): (pair[0], pair[1]) for size, pair in values["repetitive"].items()},
        broken_words={int(size): share for size, share in values["broken_words"].items()},
        drift=DriftLimits(**values["drift"]),
    )


@cache
def false_alarm_rate(label: str, domain: str, suspect: bool = False) -> FalseAlarms:
    """How often `label` fires on people's text of `domain`, of 64 or of 256 tokens, whichever is more often.

    `suspect`: how often it is suspected. Raises KeyError for a label or a domain that there is not.
    """
    measured = json.loads(FALSE_ALARMS.read_text(encoding="utf-8"))["people"]
    groups = [group for group in measured.values() if group["domain"] == domain]
    if not groups:
        raise KeyError(f"no false alarms were measured for the domain {domain!r}")
    kind = "suspected" if suspect else "certain"
    found = [(group["labels"][label][kind], group["texts"]) for group in groups]
    worst, texts = max(found, key=lambda pair: (pair[0]["rate"], pair[1]))
    low, high = worst["interval"]
    return FalseAlarms(worst["rate"], low, high, texts)
