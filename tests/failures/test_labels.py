"""The labels together: the card's own six outputs, the order of the labels, and near misses."""

from __future__ import annotations

import pytest

from shardscope import Shard
from shardscope.failures import CARD_PROMPTS, Labels, card_table, describe, label, sample_card
from shardscope.failures.labels import ORDER, token_pieces
from shardscope.failures.prompts import Domain
from shardscope.generation import StopReason
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
    budget: int = 256,
) -> Labels:
    ids = tokenizer.encode(text)
    return label(prompt, text, ids, stop, budget, domain=domain, gold=gold, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("prompt", "flags"),
    [
        # The last two of the taxonomy, drift and untrue fluent text, need a model to see; these rules stay silent.
        ("The capital of France is", []),
        ("To compute 12 plus 7, we can", ["digit_hallucination"]),
        ("Question: What is 23 + 19? Answer:", ["loop?", "answer_echo"]),
        ("def fibonacci(n):", []),
        ("Once upon a time, in a small village,", []),
        ("Solve: 17 * 23 = ?", ["symbol_breakdown"]),
    ],
)
def test_the_cards_own_outputs_get_the_cards_flags(words: Tokenizer, prompt: str, flags: list[str]) -> None:
    card = next(entry for entry in CARD_PROMPTS if entry.text == prompt)
    labels = labels_of(words, prompt, CARD_OUTPUTS[prompt], card.domain, card.gold)
    assert [flag.failure + "?" * flag.suspect for flag in labels.flags] == flags
    certain = [flag for flag in flags if not flag.endswith("?")]
    assert labels.primary == (certain[0] if certain else "ok")
    assert labels.loop is None


def test_the_cards_loop_is_one_once_it_goes_on(words: Tokenizer) -> None:
    text = " The answer is 23." + " Answer: 23." * 40
    labels = labels_of(words, "Question: What is 23 + 19? Answer:", text, "math", "42", "length", budget=10)
    assert labels.primary == "loop"
    assert labels.loop is not None
    assert (labels.loop.kind, int(labels.loop.repeats)) == ("sentence", 40)
    assert {flag.failure for flag in labels.flags} == {"loop", "answer_echo"}
    assert labels.non_termination
    assert describe(labels).startswith("loop (4")
    assert describe(labels).endswith("echo, no end")


def test_a_right_answer_is_clean(words: Tokenizer) -> None:
    labels = labels_of(words, "Question: What is 23 + 19? Answer:", " 42", "math", "42", "eos")
    assert (labels.flags, labels.primary, labels.summary, labels.non_termination) == ((), "ok", "clean", False)
    assert describe(labels) == "clean"


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
    assert [flag.kind for flag in flags if flag.failure == "early_eos"] == ([] if kind is None else [kind])


def test_running_out_of_tokens_is_a_flag_of_its_own(words: Tokenizer) -> None:
    text = " a woman is a gentleman in a village"
    length = len(words.encode(text))
    assert labels_of(words, "Once", text, stop="length", budget=length).non_termination
    assert not labels_of(words, "Once", text, stop="eos", budget=length).non_termination
    assert not labels_of(words, "Once", text, stop="context", budget=length + 9).non_termination


def test_the_primary_failure_is_the_first_in_the_order_that_is_certain(words: Tokenizer) -> None:
    # Signs, which also loop, and echo nothing: breakdown comes before loop.
    labels = labels_of(words, "Solve: 17 * 23 = ?", "?*?*" * 20, "math", "391")
    assert {flag.failure for flag in labels.flags} >= {"symbol_breakdown", "loop"}
    assert labels.primary == "symbol_breakdown"
    assert ORDER.index("symbol_breakdown") < ORDER.index("loop")


def test_without_a_right_answer_an_echo_is_only_suspected(words: Tokenizer) -> None:
    flags = labels_of(words, "What is 23 + 19?", " 23", "math").flags
    assert [(flag.failure, flag.suspect) for flag in flags] == [("answer_echo", True)]


def test_only_math_is_checked_for_stray_numbers_and_only_at_its_beginning(words: Tokenizer) -> None:
    text = " now use the first 6 as"
    assert labels_of(words, "To compute 12 plus 7", text, "prose").flags == ()
    late = " a woman is a gentleman in a village with an infinite wealth" * 4 + " 6"
    assert len(words.encode(late)) > 33
    assert labels_of(words, "To compute 12 plus 7", late, "math", "19").primary in ("ok", "loop")
    assert "digit_hallucination" not in {f.failure for f in labels_of(words, "12 plus 7", late, "math", "19").flags}


def test_a_flag_covers_the_tokens_of_what_it_flags(words: Tokenizer) -> None:
    prompt = "To compute 12 plus 7, we can"
    text = CARD_OUTPUTS[prompt]
    (flag,) = labels_of(words, prompt, text, "math", "19").flags
    assert "".join(token_pieces(words.encode(text), words)[flag.start : flag.end]).strip() == "6"


def test_a_loop_that_was_left_is_kept_as_escaped(words: Tokenizer) -> None:
    text = " Answer: 23." * 12 + " a woman is a gentleman in a village"
    labels = labels_of(words, "Once", text)
    assert labels.loop is None
    assert [loop.start for loop in labels.escaped] == [0]
    assert labels.primary == "ok"


def test_a_loop_in_which_a_number_counts_is_found_with_a_tokenizer(words: Tokenizer) -> None:
    text = "".join(f" The answer is {n}." for n in range(20, 40))
    assert [flag.kind for flag in labels_of(words, "Once", text).flags] == ["counter"]


def test_a_poem_with_a_refrain_is_no_loop(words: Tokenizer) -> None:
    verses = ["the river runs below the hill", "a lamp is lit in every house", "the miller sleeps, the wheel is still"]
    text = "".join(f" {verse},\n and nobody knows the way home.\n" for verse in verses)
    assert labels_of(words, "Once", text, "prose").primary == "ok"


def test_without_a_tokenizer_labels_still_come(words: Tokenizer) -> None:
    text = " Answer: 23." * 20
    labels = label("What is 23 + 19?", text, words.encode(text), "length", 10, domain="math", gold="42")
    assert labels.primary == "loop"
    assert {flag.failure for flag in labels.flags} == {"loop", "answer_echo"}


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
