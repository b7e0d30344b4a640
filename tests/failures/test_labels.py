"""The labels together: the card's own six outputs, the order of the labels, what a Generation brings, near misses."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardscope import Shard
from shardscope.failures import CARD_PROMPTS, ORDER, Labels, card_table, describe, label, sample_card
from shardscope.failures.labels import label_tokens, token_pieces
from shardscope.failures.prompts import Domain
from shardscope.generation import SamplingConfig, StopReason, generate
from shardscope.tokenizer import Tokenizer

# What the card prints under its prompts, without its quotation marks.
CARD_OUTPUTS = {
    "The capital of France is": ' "covered by the Crown" (for example, the Great Seal of France...)',
    "To compute 12 plus 7, we can": " now use the first 6 as a reversible input...",
    "Question: What is 23 + 19? Answer:": " The answer is 23. Answer: 23. Answer: 23",
    "def fibonacci(n):": " // Appendix A. - S. B. V. Shanker. - S. M. P. Gerber...",
    "Once upon a time, in a small village,": " a woman is a gentleman in a village with an infinite wealth...",
    "Solve: 17 * 23 = ?": " ?????\n*****",
}


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """A tokenizer of whole words for the card's outputs, so that windows of tokens are as long as its author's."""
    return Tokenizer.train([*CARD_OUTPUTS.values(), *CARD_OUTPUTS] * 3, vocab_size=400)


def labels_of(
    tokenizer: Tokenizer,
    prompt: str,
    text: str,
    domain: Domain | None = None,
    gold: str | None = None,
    stop: StopReason = "stop",
) -> Labels:
    return label(text, prompt=prompt, stop_reason=stop, domain=domain, gold=gold, tokenizer=tokenizer)


def fired(labels: Labels) -> list[str]:
    return [flag.failure + "?" * flag.suspect for flag in labels.flags]


@pytest.mark.parametrize(
    ("prompt", "flags"),
    [
        ("The capital of France is", ["wrong"]),
        ("To compute 12 plus 7, we can", ["digits", "wrong"]),
        ("Question: What is 23 + 19? Answer:", ["loop?", "echo", "wrong"]),
        ("def fibonacci(n):", []),  # too short to tell
        ("Once upon a time, in a small village,", ["untrue?"]),
        ("Solve: 17 * 23 = ?", ["breakdown", "wrong"]),
    ],
)
def test_the_cards_own_outputs_get_the_cards_flags(words: Tokenizer, prompt: str, flags: list[str]) -> None:
    """The suite knows their domains and what is right."""
    labels = labels_of(words, prompt, CARD_OUTPUTS[prompt], stop="length")
    assert fired(labels) == flags
    certain = [flag for flag in flags if not flag.endswith("?")]
    assert labels.primary == (certain[0] if certain else "no flag")
    assert labels.loop is None


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Solve: 17 * 23 = ?", "\nAnswer: B"),
        ("What is 8 + 8?", " 17"),
        ("The capital of Italy is", " a city of many people"),
    ],
)
def test_what_is_known_to_be_wrong_says_so_without_being_told(prompt: str, text: str) -> None:
    labels = label(text, prompt=prompt, stop_reason="eos")
    assert "wrong" in fired(labels)
    assert labels.primary != "no flag"


def test_the_cards_loop_is_one_once_it_goes_on(words: Tokenizer) -> None:
    text = " The answer is 23." + " Answer: 23." * 40
    labels = labels_of(words, "Question: What is 23 + 19? Answer:", text, "math", "42", "length")
    assert labels.primary == "loop"
    assert labels.loop is not None
    assert (labels.loop.kind, int(labels.loop.repeats)) == ("sentence", 40)
    assert fired(labels) == ["loop", "echo", "wrong"]
    assert labels.non_termination
    assert describe(labels).startswith("loop (4")
    assert describe(labels).endswith("echo, wrong, no end")


def test_where_nothing_fired_it_says_no_flag_and_never_that_it_is_good(words: Tokenizer) -> None:
    labels = labels_of(words, "Question: What is 23 + 19? Answer:", " 42", "math", "42", "eos")
    assert (labels.flags, labels.primary, labels.non_termination) == ((), "no flag", False)
    assert describe(labels) == "no flag"
    assert not {"ok", "clean", "good", "fine"} & {*ORDER, labels.primary}


@pytest.mark.parametrize(
    ("text", "gold", "stop", "kind"),
    [
        ("", None, "eos", "empty"),
        (" \n", "42", "eos", "empty"),
        (" a", None, "eos", "short"),
        (" 42", "42", "eos", None),  # a closed answer may be one token
        (" a", None, "length", None),  # cut off by us, not ended by the model
        (" a woman is a gentleman in a village with an infinite wealth", None, "eos", None),
    ],
)
def test_an_early_end_is_the_models_own_and_short(
    words: Tokenizer, text: str, gold: str | None, stop: StopReason, kind: str | None
) -> None:
    flags = labels_of(words, "Once upon a time", text, "prose", gold, stop).flags
    assert [flag.kind for flag in flags if flag.failure == "early end"] == ([] if kind is None else [kind])


def test_running_out_of_tokens_is_a_flag_of_its_own(words: Tokenizer) -> None:
    text = " a woman is a gentleman in a village"
    assert labels_of(words, "Once", text, stop="length").non_termination
    assert not labels_of(words, "Once", text, stop="eos").non_termination
    assert not labels_of(words, "Once", text, stop="context").non_termination


def test_the_primary_failure_is_the_first_in_the_order_that_is_certain(words: Tokenizer) -> None:
    # Signs, which also loop, and echo nothing: breakdown comes before loop.
    labels = labels_of(words, "Solve: 17 * 23 = ?", "?*?*" * 20, "math", "391")
    assert {*fired(labels)} >= {"breakdown", "loop", "wrong"}
    assert labels.primary == "breakdown"
    assert ORDER.index("breakdown") < ORDER.index("loop") < ORDER.index("wrong")


def test_without_a_right_answer_an_echo_is_only_suspected(words: Tokenizer) -> None:
    assert fired(labels_of(words, "Ann has 23 pears, Ben has 19, Cy 3.", " 23", "math")) == ["echo?"]


def test_only_math_is_checked_for_stray_numbers_and_only_at_its_beginning(words: Tokenizer) -> None:
    text = " now use the first 6 as"
    assert "digits" not in fired(labels_of(words, "To compute 12 plus 7", text, "prose"))
    late = " a woman is a gentleman in a village with an infinite wealth" * 4 + " 6"
    assert len(words.encode(late)) > 33
    assert "digits" not in fired(labels_of(words, "12 plus 7", late, "math", "19"))


def test_a_flag_covers_the_tokens_of_what_it_flags(words: Tokenizer) -> None:
    prompt = "To compute 12 plus 7, we can"
    text = CARD_OUTPUTS[prompt]
    flag = next(flag for flag in labels_of(words, prompt, text, "math", "19").flags if flag.failure == "digits")
    assert "".join(token_pieces(words.encode(text), words)[flag.start : flag.end]).strip() == "6"


def test_a_loop_that_was_left_is_kept_as_escaped_and_the_text_is_repetitive(words: Tokenizer) -> None:
    text = " Answer: 23." * 12 + " a woman is a gentleman in a village"
    labels = labels_of(words, "Once", text)
    assert labels.loop is None
    assert [loop.start for loop in labels.escaped] == [0]
    assert labels.primary == "repetitive"


def test_a_loop_in_which_a_number_counts_is_a_counter(words: Tokenizer) -> None:
    text = "".join(f" The answer is {n}." for n in range(20, 40))
    assert [flag.kind for flag in labels_of(words, "Once", text, "prose").flags if flag.failure == "loop"] == [
        "counter"
    ]


def test_a_poem_with_a_refrain_is_no_loop(words: Tokenizer) -> None:
    verses = ["the river runs below the hill", "a lamp is lit in every house", "the miller sleeps, the wheel is still"]
    text = "".join(f" {verse},\n and nobody knows the way home.\n" for verse in verses)
    assert labels_of(words, "Once", text, "prose").primary == "no flag"


# -------------------------------------------------------------------------------------- what there is to be labelled


def test_a_generation_knows_its_prompt_its_tokens_and_why_it_ended(
    tiny_model: Shard, tiny_tokenizer: Tokenizer
) -> None:
    tiny_model.tokenizer = tiny_tokenizer
    (generation,) = generate(tiny_model, ["What is 23 + 19?"], SamplingConfig(max_new_tokens=40))
    found = label(generation)
    told = label(
        generation.text,
        prompt="What is 23 + 19?",
        ids=generation.ids,
        stop_reason=generation.stop_reason,
        tokenizer=tiny_tokenizer,
    )
    assert found == told
    assert found.domain == "math"
    assert found.non_termination == (generation.stop_reason == "length")
    assert "wrong" in {flag.failure for flag in found.flags}
    # What is said beside it counts more.
    assert label(generation, domain="code").domain == "code"


def test_a_text_alone_can_be_labelled() -> None:
    assert label("the same again, " * 20).primary == "loop"
    assert label("?????????? !!!!!!!!").primary == "breakdown"
    assert label("").primary == "no flag"
    assert label("", stop_reason="eos").primary == "early end"


@pytest.mark.parametrize(
    ("prompt", "domain"),
    [
        ("Paris", "prose"),  # too little to tell
        ("import os", "code"),
        ("Let $x^2 + 1 = 0$. Then $x \\in", "math"),
        ("Who are you?", "prose"),
        ("Question: What is 2 + 2?", "math"),
        ("def fibonacci(n):", "code"),
    ],
)
def test_a_domain_that_is_not_named_is_the_prompts(prompt: str, domain: Domain) -> None:
    assert label(" and so on", prompt=prompt).domain == domain


def test_the_texts_of_tokens_are_enough() -> None:
    assert label_tokens("Once", [" to", " and", " fro"] * 9).primary == "loop"
    assert label_tokens("Once", []).flags == ()


def test_ids_past_the_vocabulary_and_texts_that_lost_their_stop_text_have_spans_too(tiny_tokenizer: Tokenizer) -> None:
    ids = [*tiny_tokenizer.encode("so and so "), 60_000, *tiny_tokenizer.encode("??????????")]
    labels = label("so and so ??????????", ids=ids, tokenizer=tiny_tokenizer, prompt="a")
    (flag,) = (flag for flag in labels.flags if flag.failure == "breakdown")
    assert 0 <= flag.start < flag.end <= len(ids)
    lost = label("so and", ids=ids, tokenizer=tiny_tokenizer)
    assert all(flag.end <= len(ids) for flag in lost.flags)


_ODD = (
    st.text(alphabet=st.characters(), max_size=60)
    | st.text(alphabet=" \n\t#/=-*.0123456789,$%+×÷?!a(")
    | st.just("7" * 3000)
)


@given(
    text=_ODD,
    prompt=_ODD,
    gold=st.none() | _ODD | st.lists(_ODD, max_size=2),
    domain=st.sampled_from([None, *get_args(Domain)]),
    stop=st.sampled_from([None, *get_args(StopReason)]),
    ids=st.none() | st.lists(st.integers(-3, 70_000), max_size=30),
    copies=st.integers(0, 12),
)
def test_the_labeller_never_raises_and_its_spans_lie_in_the_output(
    text: str, prompt: str, gold: str | list[str] | None, domain: Domain | None, stop: StopReason | None,
    ids: list[int] | None, copies: int,
) -> None:  # fmt: skip
    labels = label(text * copies, prompt=prompt, gold=gold, domain=domain, stop_reason=stop, ids=ids)
    assert labels.primary in (*ORDER, "no flag")
    describe(labels)
    for flag in labels.flags:
        assert 0 <= flag.start <= flag.end
        if ids:
            assert flag.end <= len(ids)


@pytest.mark.parametrize("unit", [" ", "\t", "7", "7,", "=", "(", "1+", "- ", "#", ".", "a", "a ", "\n", "7 ", '"'])
def test_no_loop_of_one_sign_takes_more_work_than_it_is_long(unit: str) -> None:
    """Patterns that try every split of a run take minutes for this; pytest's own limit would end them."""
    for domain in get_args(Domain):
        label(unit * 5_000, prompt=unit * 500, domain=domain)


def test_the_card_is_sampled_labelled_and_tabulated(tiny_model: Shard, tiny_tokenizer: Tokenizer) -> None:
    tiny_model.tokenizer = tiny_tokenizer
    samples = sample_card(tiny_model, max_new_tokens=12, seed=5)
    assert [sample.prompt for sample in samples] == list(CARD_PROMPTS)
    assert [sample.generation.seed for sample in samples] == [5, 6, 7, 8, 9, 10]
    table = card_table(samples, width=120).splitlines()
    assert len(table) == 8
    for sample, line in zip(samples, table[2:], strict=True):
        assert line.startswith(sample.prompt.text)
        assert line.endswith(describe(sample.labels))
        assert len(sample.generation.ids) <= 12
