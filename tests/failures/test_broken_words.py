"""Letters that are no words are found; names, identifiers, formulas and other people's English are not."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from shardscope.config import ConfigError
from shardscope.failures import label
from shardscope.failures.broken_words import SIZES, find_broken_words, most_broken
from shardscope.failures.calibration import limits
from shardscope.failures.prompts import Domain
from shardscope.failures.text_model import DOMAINS, TextModel, built_in

PROSE = (
    "The clockmaker counted every second of the day, and nobody in the village ever asked him why he did so. In the "
    "evening he closed the shutters, lit a candle, and wrote the number down in a ledger that his father had left him."
)
CODE = """    def update(self, other):
        # merge the counters of another process into ours, and tell the listeners about it
        for name, value in other.items():
            self._counts[name] = self._counts.get(name, 0) + value
        self._notify_all_listeners_of(change=other, when=monotonic_ns())
"""
NAMES = "Achilles, Odysseus and Neoptolemos met Philoctetes on Lemnos before they went with him to Troy and to its end."


def nonsense(words: int, seed: int) -> str:
    rng = Random(seed)
    return " ".join(
        "".join(rng.choice("bcdfgklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(3, 5)))
        for _ in range(words)
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("domain", DOMAINS)
def test_letters_that_are_no_words_break_down(domain: Domain, seed: int) -> None:
    text = f"The teacher said that {nonsense(40, seed)}."
    assert find_broken_words(text, built_in(), limits(domain).broken_words) is not None
    flags = label(text, prompt="One day", domain=domain).flags
    assert ("breakdown", "broken_words") in {(flag.failure, flag.kind) for flag in flags}


@pytest.mark.parametrize(
    ("text", "domain"),
    [(PROSE, "prose"), (CODE, "code"), (NAMES * 3, "prose"), ("", "prose"), (nonsense(5, 0), "prose")],
)
def test_words_names_identifiers_and_a_few_words_are_not_broken(text: str, domain: Domain) -> None:
    assert find_broken_words(text, built_in(), limits(domain).broken_words) is None


def test_after_a_prompt_in_another_language_words_are_not_judged() -> None:
    german = (
        "er ging mit seiner schwester durch den wald und dachte daran, dass niemand wusste, woher sie gekommen waren"
    )
    prompt = "Es war einmal ein kleines mädchen, das wohnte mit seinen eltern"
    assert not label(german, prompt=prompt, domain="prose").flags
    assert "breakdown" in {flag.failure for flag in label(german, prompt="Once upon a time", domain="prose").flags}


def test_the_passage_with_the_most_broken_words_is_found() -> None:
    text = f"{PROSE} {PROSE} {nonsense(48, 1)} {PROSE} {PROSE}"
    found = most_broken(text, built_in())
    assert found is not None
    assert found.share > 0.9
    assert abs(found.start - 2 * len(PROSE)) < 40


def test_a_text_is_held_to_the_limit_of_the_largest_size_that_fits() -> None:
    text = f"The teacher said that {nonsense(2, 0)} and went home to his sister."
    found = most_broken(text, built_in())
    assert found is not None
    assert 0.1 < found.share < 0.3
    assert 64 <= len(text) < 128
    strict, mild = 0.0, 0.5
    sizes = dict.fromkeys(SIZES, mild)
    assert find_broken_words(text, built_in(), sizes) is None
    assert find_broken_words(text, built_in(), {**sizes, 128: strict}) is None
    assert find_broken_words(text, built_in(), {**sizes, 64: strict}) == found
    assert find_broken_words(text[:63], built_in(), {**sizes, 64: strict}) is None


def test_words_may_come_from_more_text_than_domains() -> None:
    texts = {"prose": [PROSE], "code": [CODE], "math": ["x = 1"]}
    alone, more = TextModel.fit(texts), TextModel.fit(texts, vocabulary=[PROSE, PROSE, "harbour harbour once"])  # type: ignore[arg-type]
    assert not alone.knows("clockmaker"), "said once"
    assert more.knows("clockmaker")
    assert more.knows("harbour")
    assert not more.knows("once")
    assert alone.log_odds(PROSE, "prose", 64) == more.log_odds(PROSE, "prose", 64)


@pytest.fixture(scope="module")
def small() -> TextModel:
    return TextModel.fit(
        {"prose": [PROSE] * 3, "code": [CODE] * 3, "math": [r"\frac{a}{b} = \sum_{i=1}^n x_i^2. "] * 30}
    )


def test_the_model_knows_the_words_of_its_training_text_and_hardly_any_other(small: TextModel) -> None:
    assert all(small.knows(word) for word in ("clockmaker", "ledger", "The", "counters"))
    unknown = nonsense(2000, 2).split()
    assert sum(small.knows(word) for word in unknown) < 20


def test_the_model_tells_domains_apart(small: TextModel) -> None:
    for domain, text in {"prose": "the candle and the ledger of the village", "code": "self._counts = other"}.items():
        assert small.domain(text) == domain
        assert all(odds > 0 for odds in small.log_odds(text, domain, 64))  # type: ignore[arg-type]
    assert built_in().domain(PROSE) == "prose"
    assert built_in().domain(CODE) == "code"
    assert (
        built_in().domain(r"Let $f \colon X \to Y$ be continuous. Then $f^{-1}(U)$ is open for all open $U$.") == "math"
    )


def test_passages_are_cut_by_width_and_half_a_passage_counts(small: TextModel) -> None:
    assert [len(small.log_odds("a" * length, "prose", 100)) for length in (1, 30, 100, 149, 150, 250)] == [
        0,
        1,
        1,
        1,
        2,
        3,
    ]


def test_texts_with_words_in_common_are_alike(small: TextModel) -> None:
    assert small.cosine(PROSE, PROSE) == pytest.approx(1)
    assert small.cosine(PROSE, "the village clockmaker") > small.cosine(PROSE, "self._counts") > 0
    assert small.cosine("", PROSE) == 0


def test_a_model_comes_back_from_its_file(small: TextModel, tmp_path: Path) -> None:
    small.save(tmp_path / "text_model.npz")
    again = TextModel.load(tmp_path / "text_model.npz")
    assert again.log_odds(PROSE, "prose", 64) == small.log_odds(PROSE, "prose", 64)
    assert again.knows("ledger")


def test_what_is_no_text_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no text of the domain 'math'"):
        TextModel.fit({"prose": [PROSE], "code": [CODE]})
    (tmp_path / "broken.npz").write_bytes(b"PK not a file")
    for name in ("broken.npz", "missing.npz"):
        with pytest.raises(ConfigError, match=f"{name}: not a text model"):
            TextModel.load(tmp_path / name)
