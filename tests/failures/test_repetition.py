"""Near-repetition is found where people's text has none of it; refrains, tables and short texts are not."""

from __future__ import annotations

from random import Random

import pytest

from shardscope.failures import label
from shardscope.failures.calibration import limits
from shardscope.failures.loops import find_loop
from shardscope.failures.prompts import Domain
from shardscope.failures.repetition import SIZES, find_repetition, passages
from shardscope.failures.text_model import DOMAINS

WORDS = [
    "river",
    "market",
    "winter",
    "candle",
    "letter",
    "horse",
    "garden",
    "window",
    "copper",
    "silver",
    "thunder",
    "meadow",
    "harbour",
    "kettle",
]
CARD_OF_FRANCE = (
    " the largest of the capital. The March is the largest of the capital, and the capital is the largest of the "
    "March. The capital is the largest of the capital. The March is the capital of the largest of the capital, and "
    "the largest of the March is the largest of the capital."
)
POEM = """
Tyger Tyger, burning bright,
In the forests of the night;
What immortal hand or eye,
Could frame thy fearful symmetry?

In what distant deeps or skies,
Burnt the fire of thine eyes?
On what wings dare he aspire?
What the hand, dare seize the fire?

And what shoulder, & what art,
Could twist the sinews of thy heart?
And when thy heart began to beat,
What dread hand? & what dread feet?

Tyger Tyger burning bright,
In the forests of the night:
What immortal hand or eye,
Dare frame thy fearful symmetry?
"""
PROPERTIES = "".join(
    f"    @property\n    def {name}(self) -> int:\n        return self.{place}\n\n"
    for name, place in [("width", "size[0]"), ("height", "size[1]"), ("depth", "size[2]"), ("area", "surface()")]
)


def shuffled_clauses(copies: int, seed: int) -> str:
    """A few clauses said over and over in random order: never a loop for long."""
    rng = Random(seed)
    clauses = [f"the {a} was the {b} of the {c}" for a, b, c in zip(WORDS[:4], WORDS[4:8], WORDS[8:12], strict=True)]
    return ", and ".join(rng.choice(clauses) for _ in range(copies)) + "."


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("copies", [24, 60])
def test_a_few_clauses_said_in_any_order_are_repetitive(domain: Domain, copies: int, seed: int) -> None:
    text = shuffled_clauses(copies, seed)
    assert find_loop([ord(letter) for letter in text]) is None
    assert find_repetition(text, limits(domain).repetitive) is not None


def test_the_sample_of_the_capital_is_repetitive() -> None:
    labels = label(CARD_OF_FRANCE, prompt="The capital of France is")
    assert labels.primary == "repetitive"
    assert "wrong" in {flag.failure for flag in labels.flags}


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        (POEM, "prose"),
        (PROPERTIES, "code"),
        (
            "Row, row, row your boat, gently down the stream, merrily, merrily, merrily, merrily, life is but a dream.",
            "prose",
        ),
        ("\n".join(f"{n} & {n * n} & {n**3} \\\\" for n in range(1, 30)), "math"),
        ("a b a b", "prose"),
        ("", "prose"),
    ],
)
def test_a_poem_a_table_and_accessors_are_not(text: str, domain: Domain) -> None:
    assert find_repetition(text, limits(domain).repetitive) is None


def test_the_passage_found_is_the_repetitive_one() -> None:
    rng = Random(3)
    fresh = " ".join(f"{rng.choice(WORDS)}{rng.randrange(1000)}" for _ in range(170))
    repeated = shuffled_clauses(60, 0)[:1600]
    found = find_repetition(fresh + repeated, limits("prose").repetitive)
    assert found is not None
    assert found.end > len(fresh) + 200
    assert found.start >= len(fresh) - SIZES[-1] // 2


def test_a_text_is_judged_by_passages_of_the_largest_size_that_fits() -> None:
    assert passages("x" * 95) == []
    for length, size in ((96, 96), (191, 96), (192, 192), (1535, 768), (9000, 1536)):
        found = passages("x" * length)
        assert {passage.end - passage.start for passage in found} == {size}
        assert (found[0].start, found[-1].end) == (0, length)


def test_the_share_is_that_of_grams_seen_before() -> None:
    (passage,) = passages(
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen!!"
    )[:1]
    assert passage.repeated == 0
    text = "one two three four one two three four " * 3
    (passage,) = passages(text[:96])
    # 4-grams of n words: n - 3; only four of them differ.
    words = len(text[:96].split())
    assert passage.repeated == pytest.approx(1 - 4 / (words - 3), abs=0.1)
