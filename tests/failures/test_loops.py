"""Planted loops are found to the token; what only resembles one is not."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardscope.failures.loops import (
    MAX_PERIOD,
    Loop,
    find_counter,
    find_episodes,
    find_loop,
    matches_with_shift,
    suspect_loop,
)


def noise(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(10_000, 20_000, length).tolist()


def block(period: int) -> list[int]:
    return list(range(1, period + 1))


def test_a_planted_loop_is_found_with_its_exact_onset_and_period() -> None:
    for period, copies, before in product([1, 2, 4, 16, 64, 65, 256], [3, 4, 10, 50], [0, 1, 37]):
        ids, planted = noise(before) + block(period) * copies, (period, copies, before)
        found = find_loop(ids)
        if not (copies >= 8 if period == 1 else period * copies >= 24):
            assert found is None, planted
            continue
        assert found is not None, planted
        assert (found.start, found.end, found.period, found.repeats) == (before, len(ids), period, copies)
        assert found.kind == ("token" if period == 1 else "block" if period > 64 else "phrase"), planted


def test_a_loop_may_end_within_a_copy() -> None:
    ids = noise(5) + block(10) * 4 + block(7)
    assert find_loop(ids) == Loop(start=5, end=52, period=10, repeats=4.7, kind="phrase")


def test_the_period_is_the_primitive_one() -> None:
    found = find_loop(noise(9) + [7, 8] * 30)
    assert found is not None
    assert found.period == 2


@pytest.mark.parametrize(
    "ids",
    [
        [5] * 7,  # one copy short
        [1, 2, 3, 4] * 5,  # five copies, but only 20 tokens
        [*block(12), *block(12)],  # two copies
        [*([1, 2, 3] * 20), 4],  # escaped at the last token
        block(257) * 3,  # a period above the longest
        noise(300),
        [],
        [1],
    ],
)
def test_a_near_miss_is_no_loop(ids: list[int]) -> None:
    assert find_loop(ids) is None


def test_two_copies_of_eight_tokens_are_suspected() -> None:
    ids = noise(4) + block(8) * 2
    assert find_loop(ids) is None
    assert suspect_loop(ids) == Loop(start=4, end=20, period=8, repeats=2.0, kind="phrase")
    assert suspect_loop(noise(4) + block(3) * 2) is None  # six tokens repeat in any text
    assert suspect_loop(noise(20)) is None


@pytest.mark.parametrize(("text", "kind"), [("a b c d", "phrase"), ("a b.", "sentence"), ("a\nb", "sentence")])
def test_a_loop_over_a_sentences_end_is_a_sentence(text: str, kind: str) -> None:
    pieces = list(text) * 20
    found = find_loop([ord(piece) for piece in pieces], pieces)
    assert found is not None
    assert found.kind == kind


def counted(texts: list[str]) -> tuple[list[int], list[str]]:
    pieces = [character for text in texts for character in text]
    return [ord(piece) for piece in pieces], pieces


def test_a_loop_in_which_only_a_number_changes_is_a_counter() -> None:
    ids, pieces = counted(["So: ", *(f"item {n} is next. " for n in range(7, 14))])
    found = find_counter(ids, pieces)
    assert find_loop(ids) is None
    assert found is not None
    assert (found.kind, found.start, found.end) == ("counter", len("So:"), len(ids))
    assert "".join(pieces[found.start : found.start + found.period]).strip() == "item 7 is next."


@pytest.mark.parametrize(
    "texts",
    [
        [f"{n}, " for n in range(10, 40)],  # numbers alone are ordinary
        ["one thing after another, and no number ever, "] * 6,  # a plain loop
        ["item 1 is red. ", "item 2 was sold. ", "nothing else of note."],
    ],
)
def test_lists_of_numbers_and_plain_loops_are_no_counters(texts: list[str]) -> None:
    assert find_counter(*counted(texts)) is None


def test_loops_that_were_escaped_from_are_episodes() -> None:
    ids = noise(10) + block(5) * 8 + noise(30, seed=1) + [3] * 12
    first, last = find_episodes(ids)
    assert (first.start, first.end, first.period) == (10, 50, 5)
    assert (last.start, last.end, last.period) == (80, 92, 1)
    assert find_episodes(noise(500)) == []


@given(st.lists(st.integers(0, 2), max_size=60))
def test_the_matches_are_those_of_the_definition(ids: list[int]) -> None:
    def longest(shift: int) -> int:
        matched = 0
        while matched + shift < len(ids) and ids[len(ids) - 1 - matched] == ids[len(ids) - 1 - matched - shift]:
            matched += 1
        return matched

    found = matches_with_shift(ids, 20)
    assert found == [longest(shift) for shift in range(max(1, min(21, len(ids))))]


@given(st.lists(st.integers(0, 1), max_size=80))
def test_a_loop_really_is_one_and_the_last_episode_agrees(ids: list[int]) -> None:
    found = find_loop(ids)
    if found is None:
        return
    looping = ids[found.start :]
    assert looping[found.period :] == looping[: -found.period]
    assert any(e.start <= found.start and e.end == len(ids) for e in find_episodes(ids))


def test_the_work_grows_with_the_length_not_with_its_square() -> None:
    class Token(int):
        comparisons = 0

        def __eq__(self, other: object) -> bool:
            Token.comparisons += 1
            return int(self) == other

        __hash__ = int.__hash__

    ids = [Token(id) for id in [1, 2, 1, 3] * 1000]
    assert matches_with_shift(ids, MAX_PERIOD)[4] == len(ids) - 4
    assert Token.comparisons <= 2 * (len(ids) + MAX_PERIOD)  # either side of == may be asked
