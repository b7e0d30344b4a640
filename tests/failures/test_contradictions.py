from __future__ import annotations

import pytest

from shardscope.failures import label
from shardscope.failures.contradictions import find_contradiction


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" a woman is a gentleman in a village with an infinite wealth", "contradiction"),
        ("My aunt was a man of the world.", "contradiction"),
        ("In truth the Sun is the Moon.", "contradiction"),
        ("The village is a great city.", "contradiction"),
        ("Gold is a kind of silver? No: gold is silver.", "contradiction"),
        ("The color of the sky is the color of the sky.", "circular"),
        ("The Earth is the same as the Earth itself.", "circular"),
    ],
)
def test_two_things_that_exclude_each_other_and_circles_are_suspected(text: str, kind: str) -> None:
    found = find_contradiction(text)
    assert found is not None
    assert found.kind == kind
    flags = [flag for flag in label(text, prompt="Once").flags if flag.failure == "untrue"]
    assert [flag.suspect for flag in flags] == [True]


@pytest.mark.parametrize(
    "text",
    [
        "His mother was a queen.",
        "My aunt was a widow.",
        "The king was a father to them.",
        "The city was a man's world.",
        "The woman is with the man.",
        "Sunday was the day.",
        "The capital of France is Paris.",
        "",
    ],
)
def test_ordinary_sentences_are_not(text: str) -> None:
    assert find_contradiction(text) is None


def test_a_suspicion_is_never_the_primary_failure() -> None:
    assert label(" a woman is a gentleman in a village with an infinite wealth", prompt="There").primary == "no flag"
