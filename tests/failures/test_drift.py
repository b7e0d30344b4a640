"""Text that leaves the domain of its prompt drifts; what stays, or is too short to tell, does not."""

from __future__ import annotations

import pytest

from shardscope import Shard, load
from shardscope.checkpoint import BUILT_IN
from shardscope.failures import label
from shardscope.failures.calibration import limits
from shardscope.failures.drift import PASSAGE, DriftLimits, find_drift, prompt_lift
from shardscope.failures.prompts import Domain
from shardscope.failures.text_model import built_in
from shardscope.generation import generate, score
from shardscope.tokenizer import Tokenizer

STORY = (
    " The old captain stood at the window and looked down upon the harbour, where the lamps were being lit one after "
    "another. He had not spoken for an hour. At last he turned to his daughter, who was sewing by the fire, and said "
    "that he would go to sea once more before the winter, whatever the doctor and his brother might think of it. She "
    "did not answer, but her hand trembled, and the thread broke between her fingers as he left the room."
)
CODE = """
    def __init__(self, path, encoding="utf-8"):
        self._path = path
        self._lines = []
        with open(path, encoding=encoding) as file:
            for number, line in enumerate(file):
                if not line.strip():
                    continue
                self._lines.append((number, line.rstrip()))
        self._by_number = dict(self._lines)

    def __len__(self):
        return len(self._lines)
"""
TEX = (
    r" Let $X$ be a scheme and let $\mathcal{F}$ be a quasi-coherent $\mathcal{O}_X$-module. Then "
    r"$H^i(X, \mathcal{F}) = 0$ for all $i > \dim(X)$. \begin{proof} By Lemma \ref{lemma-vanishing} we may assume that "
    r"$X = \Spec(A)$ is affine and $\mathcal{F} = \widetilde{M}$. Choose $f \in A$ such that "
    r"$M_f \to \bigoplus_{i \in I} A_f$ is injective. \end{proof}"
)
TEXTS: dict[Domain, str] = {"prose": STORY, "code": CODE, "math": TEX}
PROMPTS: dict[Domain, str] = {
    "prose": "When the snow began to fall, the children",
    "code": "class Reader:\n    def open(self, path):\n",
    "math": r"\begin{lemma} Let $f : X \to Y$ be a morphism of schemes.",
}
ELSEWHERE = [(a, b) for a in TEXTS for b in TEXTS if a != b]


@pytest.mark.parametrize(("asked", "written"), [pair for pair in ELSEWHERE if pair != ("math", "prose")])
def test_two_passages_of_another_domain_are_drift(asked: Domain, written: Domain) -> None:
    labels = label(TEXTS[written], prompt=PROMPTS[asked], domain=asked)
    (flag,) = (flag for flag in labels.flags if flag.failure == "drift")
    assert (flag.kind, flag.suspect, flag.start) == ("other_domain", False, 0)


@pytest.mark.parametrize("domain", TEXTS)
def test_text_of_the_prompts_domain_is_none(domain: Domain) -> None:
    labels = label(TEXTS[domain], prompt=PROMPTS[domain], domain=domain)
    assert "drift" not in {flag.failure for flag in labels.flags}


def test_the_flag_begins_where_the_text_turns() -> None:
    found = find_drift("When", STORY + CODE, "prose", built_in(), limits("prose").drift)
    assert found is not None
    turn = len(STORY) / len(STORY + CODE)
    assert abs(found.from_share - turn) < 1.5 * PASSAGE / len(STORY + CODE)


def test_one_passage_is_too_short_to_be_sure() -> None:
    found = find_drift("When", CODE[:120], "prose", built_in(), limits("prose").drift)
    assert found is not None
    assert found.suspect
    assert find_drift("When", CODE[:40], "prose", built_in(), limits("prose").drift) is None


AWAY = (
    " the old captain, who stood at the window and looked down upon the harbour, where the lamps were being lit after "
    "the rain. He turned to his daughter, who was sewing by the fire, and said that he would go to sea again. "
)


@pytest.mark.parametrize("prompt", ["Compute 55 + 17. The result is", "Six times seven is", "3 - 8 ="])
@pytest.mark.parametrize("subject", ["captain", "category of lemmas"])
def test_mathematics_that_asks_for_a_number_and_is_told_none_drifts(prompt: str, subject: str) -> None:
    text = AWAY.replace("captain", subject)
    flags = [flag for flag in label(text, prompt=prompt, domain="math", gold="42").flags if flag.failure == "drift"]
    assert [(flag.suspect, flag.start) for flag in flags] == [(False, 0)]


@pytest.mark.parametrize(
    ("text", "domain", "gold"),
    [
        (AWAY[:150], "math", "42"),  # it may yet name one
        (AWAY[:170] + " seventy-two", "math", "42"),
        (AWAY[:170] + " 7 of them" + AWAY, "math", "42"),
        (AWAY[:170] + " none of it" + AWAY, "math", "42"),
        (AWAY[:150] + " half of a dozen" + AWAY, "math", "42"),
        (AWAY, "math", "Paris"),  # no number is asked for
        (AWAY, "math", ()),  # nor here
        (AWAY, "prose", "42"),  # a story may go on without it
    ],
)
def test_whoever_names_a_number_or_is_not_asked_for_one_does_not(text: str, domain: Domain, gold: str) -> None:
    flags = label(text, prompt="Compute 55 + 17. The result is", domain=domain, gold=gold).flags
    assert "no_number" not in {flag.kind for flag in flags}


def test_without_a_prompt_nothing_drifts() -> None:
    assert "drift" not in {flag.failure for flag in label(CODE, domain="prose").flags}


def test_a_prompt_that_lifts_nothing_makes_another_subject_or_domain_drift() -> None:
    strict = DriftLimits(clear_prompt=0, odds=-99, odds_with_lift=-0.5, odds_suspect=-99, lift=0.2, cosine=0.15)
    subject = "Photosynthesis turns carbon dioxide and water into sugar."
    assert find_drift(subject, STORY, "prose", built_in(), strict, lift=0.5) is None
    assert find_drift(subject, STORY, "prose", built_in(), strict) is None
    found = find_drift(subject, STORY, "prose", built_in(), strict, lift=0.1)
    assert found is not None
    assert (found.kind, found.suspect) == ("other_subject", False)
    assert find_drift(STORY, STORY, "prose", built_in(), strict, lift=0.1) is None  # the same words
    found = find_drift(STORY, CODE, "prose", built_in(), strict, lift=0.1)
    assert found is not None
    assert found.kind == "other_domain"


def test_the_lift_is_the_difference_of_two_log_probabilities() -> None:
    model: Shard = load(BUILT_IN)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    prompt, ids = tokenizer.encode("The king of France", bos=True), tokenizer.encode(STORY)[:80]
    gained = score(model, prompt, ids[:32]) - score(model, prompt[:1], ids[:32])
    assert prompt_lift(model, prompt, ids) == pytest.approx(gained / 32, abs=1e-4)
    assert prompt_lift(model, prompt[:1], ids) is None
    assert prompt_lift(model, prompt, ids[:15]) is None


def test_the_model_that_wrote_a_sample_may_be_asked(tiny_model: Shard, tiny_tokenizer: Tokenizer) -> None:
    tiny_model.tokenizer = tiny_tokenizer
    sample = generate(tiny_model, "the cat sees", max_new_tokens=20)
    assert label(sample, model=tiny_model).domain == label(sample).domain
