"""One output, its failures: which, where, and how sure."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from shardscope.failures.answers import Found, find_number_echo, find_text_echo, find_unsupported_number
from shardscope.failures.breakdown import find_breakdown
from shardscope.failures.loops import Loop, find_counter, find_episodes, find_loop, suspect_loop
from shardscope.failures.prompts import Domain
from shardscope.generation import Generation, StopReason
from shardscope.tokenizer import Tokenizer

Failure = Literal["early_eos", "symbol_breakdown", "loop", "answer_echo", "digit_hallucination"]

# The first that holds is a sample's primary failure.
ORDER: tuple[Failure, ...] = ("early_eos", "symbol_breakdown", "loop", "answer_echo", "digit_hallucination")
WORDS: dict[Failure, str] = {
    "early_eos": "early end",
    "symbol_breakdown": "breakdown",
    "loop": "loop",
    "answer_echo": "echo",
    "digit_hallucination": "digits",
}

FEWEST_OF_A_COMPLETION = 8  # tokens; a closed answer needs one
MATH_TOKENS = 32  # the numbers in these are checked


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A failure in tokens start … end - 1 of the output.

    `suspect`: the evidence is there but short of the rule's minimum, or of a kind that people's text shows, too.
    """

    failure: Failure
    kind: str
    start: int
    end: int
    suspect: bool = False


@dataclass(frozen=True, kw_only=True)
class Labels:
    """All that is wrong with one output.

    `loop` is the loop in which it ends, `escaped` those it got out of, `non_termination` that it ran into
    `max_new_tokens`.
    """

    flags: tuple[Flag, ...]
    loop: Loop | None
    escaped: tuple[Loop, ...]
    non_termination: bool

    @property
    def primary(self) -> Failure | Literal["ok"]:
        """The first failure, in the order of `ORDER`, that is more than suspected."""
        found = {flag.failure for flag in self.flags if not flag.suspect}
        return next((failure for failure in ORDER if failure in found), "ok")

    @property
    def summary(self) -> str:
        """One word for a table: clean, loop, breakdown, early end, echo, digits."""
        return "clean" if self.primary == "ok" else WORDS[self.primary]


def label(
    prompt: str | Generation,
    text: str = "",
    ids: Sequence[int] = (),
    stop_reason: StopReason = "length",
    max_new_tokens: int = 0,
    domain: Domain | None = None,
    gold: str | None = None,
    tokenizer: Tokenizer | None = None,
) -> Labels:
    """Every failure that needs no model to see: loops, breakdowns, echoes, stray numbers, early ends.

    One `Generation` stands for the first five and the tokenizer. `ids` are the output's tokens, `text` what they say.
    `domain` math switches on the checks of numbers; code
    relaxes those of symbols, and counters (loops in which a number changes) are only suspected there. `gold` is the
    right answer. Without `tokenizer` the text counts as spread evenly over the tokens: spans are then approximate, and
    counters are not looked for.

    How often each of them fires on text that people wrote: docs/failures.md, measured by `shardscope bench failures`.
    """
    if isinstance(prompt, Generation):
        text, ids, stop_reason, max_new_tokens = prompt.text, prompt.ids, prompt.stop_reason, len(prompt.ids)
        tokenizer = tokenizer or prompt.tokenizer
        prompt = prompt.prompt
    pieces = _even_pieces(text, len(ids)) if tokenizer is None else token_pieces(ids, tokenizer)
    counter = find_counter(ids, pieces) if tokenizer is not None else None
    # People's code counts, too: in tables, in lines of tests.
    loop = find_loop(ids, pieces) or (None if domain == "code" else counter)
    episodes = find_episodes(ids, pieces)
    candidates = [
        _early_eos(text, ids, stop_reason, closed=gold is not None),
        _breakdown(pieces, domain),
        _loop(loop, counter or suspect_loop(ids, pieces)),
        _echo(prompt, text, pieces, domain, gold),
        _digits(prompt, text, pieces, gold) if domain == "math" else None,
    ]
    return Labels(
        flags=tuple(flag for flag in candidates if flag is not None),
        loop=loop,
        escaped=tuple(episode for episode in episodes if episode.end < len(ids)),
        non_termination=stop_reason == "length" and len(ids) >= max_new_tokens,
    )


def token_pieces(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The characters that each token completes; joined they are the text."""
    decoder = getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(tokenizer.token_bytes(id)) for id in ids]


def _early_eos(text: str, ids: Sequence[int], stop_reason: StopReason, closed: bool) -> Flag | None:
    empty = not text.strip()
    if stop_reason != "eos" or not (empty or len(ids) < (1 if closed else FEWEST_OF_A_COMPLETION)):
        return None
    return Flag(failure="early_eos", kind="empty" if empty else "short", start=0, end=len(ids))


def _breakdown(pieces: Sequence[str], domain: Domain | None) -> Flag | None:
    found = find_breakdown(pieces, domain)
    if found is None:
        return None
    return Flag(failure="symbol_breakdown", kind=found.kind, start=found.start, end=found.end)


def _loop(loop: Loop | None, suspect: Loop | None) -> Flag | None:
    found = loop or suspect
    if found is None:
        return None
    return Flag(failure="loop", kind=found.kind, start=found.start, end=found.end, suspect=loop is None)


def _echo(prompt: str, text: str, pieces: Sequence[str], domain: Domain | None, gold: str | None) -> Flag | None:
    found = find_number_echo(prompt, text, gold) if domain == "math" else find_text_echo(prompt, text, domain)
    return None if found is None else _over_tokens("answer_echo", found, pieces)


def _digits(prompt: str, text: str, pieces: Sequence[str], gold: str | None) -> Flag | None:
    # The whole text is read, so that a number is never judged by its first digits.
    found = find_unsupported_number(prompt, text, gold, before=sum(map(len, pieces[:MATH_TOKENS])))
    return None if found is None else _over_tokens("digit_hallucination", found, pieces)


def _over_tokens(failure: Failure, found: Found, pieces: Sequence[str]) -> Flag:
    """From characters to tokens."""
    ends = list(accumulate(map(len, pieces)))
    start = next((token for token, end in enumerate(ends) if end > found.start), len(pieces))
    end = next((token for token, end in enumerate(ends) if end >= found.end), len(pieces) - 1) + 1
    return Flag(failure=failure, kind=found.kind, start=start, end=end, suspect=found.suspect)


def _even_pieces(text: str, tokens: int) -> list[str]:
    cuts = [len(text) * token // max(tokens, 1) for token in range(tokens + 1)]
    return [text[start:end] for start, end in pairwise(cuts)]
