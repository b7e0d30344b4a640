"""One output, its failures: which, where, and how sure."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Literal, get_args

from shardscope.checkpoint import BUILT_IN
from shardscope.failures.answers import (
    Found,
    asks_number,
    find_number_echo,
    find_text_echo,
    find_unsupported_number,
    find_wrong,
    implied_answer,
)
from shardscope.failures.breakdown import find_breakdown
from shardscope.failures.broken_words import find_broken_words, is_unfamiliar
from shardscope.failures.calibration import Limits, limits
from shardscope.failures.contradictions import find_contradiction
from shardscope.failures.drift import find_drift, prompt_lift
from shardscope.failures.loops import Loop, find_counter, find_episodes, find_loop, suspect_loop
from shardscope.failures.prompts import Domain, suite_prompt
from shardscope.failures.repetition import find_repetition
from shardscope.failures.text_model import TextModel, built_in
from shardscope.generation import Generation, StopReason
from shardscope.model import Shard
from shardscope.tokenizer import Tokenizer

Failure = Literal["early end", "breakdown", "loop", "repetitive", "echo", "digits", "wrong", "drift", "untrue"]

# The first that is more than suspected is a sample's primary failure.
ORDER: tuple[Failure, ...] = get_args(Failure)
NO_FLAG: Literal["no flag"] = "no flag"

FEWEST_OF_A_COMPLETION = 8  # tokens; a closed answer needs one
MATH_TOKENS = 32  # the numbers in these are checked
CLEARLY = 0.2  # nats per n-gram, by which a domain that was not named is likelier than the next


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
    """All that is wrong with one output, as far as rules see it. That no flag fired does not say that it is good.

    `loop` is the loop in which it ends, `escaped` those it got out of, `non_termination` that it ran into
    `max_new_tokens`. `domain` is the one whose limits it was held to.
    """

    flags: tuple[Flag, ...]
    loop: Loop | None
    escaped: tuple[Loop, ...]
    non_termination: bool
    domain: Domain

    @property
    def primary(self) -> Failure | Literal["no flag"]:
        return primary_failure(self.flags)


def primary_failure(flags: Sequence[Flag]) -> Failure | Literal["no flag"]:
    """The first failure, in the order of `ORDER`, that is more than suspected; else "no flag"."""
    found = {flag.failure for flag in flags if not flag.suspect}
    return next((failure for failure in ORDER if failure in found), NO_FLAG)


def label(
    sample: Generation | str,
    *,
    prompt: str | None = None,
    domain: Domain | None = None,
    gold: str | Sequence[str] | None = None,
    ids: Sequence[int] | None = None,
    stop_reason: StopReason | None = None,
    tokenizer: Tokenizer | None = None,
    model: Shard | None = None,
    text_model: TextModel | None = None,
) -> Labels:
    """Every failure that can be seen in an output; never raises for what a model wrote.

    A Generation knows its prompt, tokens, stop reason and tokenizer; of a text, what is known can be said. Without
    `ids` a text is cut by `tokenizer`, without one by the built-in model's.

    `domain` math switches on the checks of numbers; code relaxes those of symbols, and counters (loops in which a
    number changes) are only suspected there. `gold` is the right answer, or several. A prompt of the suite brings both
    along, and one that asks for a sum its answer; else the domain is the likeliest one of the prompt (or of the text).

    `model`, with the tokens of its prompt, lets drift be measured by the model itself, in two passes. `text_model` is
    what tells domains and words apart; by default the one that ships with the package.

    How often each of them fires on text that people wrote: `false_alarm_rate`, docs/failures.md.
    """
    text, lift = sample, None
    if isinstance(sample, Generation):
        text = sample.text
        prompt = sample.prompt if prompt is None else prompt
        ids = sample.ids if ids is None else ids
        stop_reason = stop_reason or sample.stop_reason
        tokenizer = tokenizer or sample.tokenizer
        lift = None if model is None else prompt_lift(model, sample.prompt_ids, sample.ids)
    assert isinstance(text, str)
    text, prompt = _unicode(text), _unicode(prompt or "")
    if not ids and text:
        tokenizer = tokenizer or _built_in_tokenizer()
        text = text.rstrip() or text  # space at the end is a token of its own, which no copy in a loop has
        ids = tokenizer.encode(text)
    ids = ids or ()
    pieces = [] if tokenizer is None else token_pieces(ids, tokenizer)
    if not pieces or "".join(pieces) != text:
        pieces = _laid_over(text, pieces or [" "] * len(ids))
    return label_tokens(
        prompt,
        pieces,
        ids=ids,
        stop_reason=stop_reason or "stop",
        domain=domain,
        gold=(gold,) if isinstance(gold, str) else tuple(gold or ()),
        lift=lift,
        text_model=text_model,
    )


def label_tokens(
    prompt: str,
    pieces: Sequence[str],
    *,
    ids: Sequence[int] | None = None,
    stop_reason: StopReason = "stop",
    domain: Domain | None = None,
    gold: Sequence[str] = (),
    lift: float | None = None,
    text_model: TextModel | None = None,
) -> Labels:
    """`label` for an output given as the text of each token (`ids` tell tokens apart that read the same)."""
    text_model = text_model or built_in()
    text = "".join(pieces)
    if ids is None:
        numbered = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
        ids = [numbered[piece] for piece in pieces]
    if domain is None:
        known = suite_prompt(prompt)
        sum_asked = implied_answer(prompt) is not None
        domain = known.domain if known else "math" if sum_asked else _likeliest_domain(prompt, text, text_model)
    gold = right_answers(prompt, domain, gold)
    allowed = limits(domain)
    counter = find_counter(ids, pieces)
    # People's code counts, too: in tables, in lines of tests.
    loop = find_loop(ids, pieces) or (None if domain == "code" else counter)
    candidates = [
        _early_end(text, ids, stop_reason, closed=bool(gold)),
        _breakdown(prompt, text, pieces, domain, allowed, text_model),
        _loop(loop, counter or suspect_loop(ids, pieces)),
        _repetitive(text, pieces, allowed) if loop is None else None,
        _echo(prompt, text, pieces, domain, gold),
        _digits(prompt, text, pieces, gold) if domain == "math" else None,
        _over_tokens("wrong", find_wrong(text, gold, domain, stop_reason == "length"), pieces),
        _drift(prompt, text, pieces, domain, gold, allowed, text_model, lift),
        _untrue(text, pieces),
    ]
    return Labels(
        flags=tuple(flag for flag in candidates if flag is not None),
        loop=loop,
        escaped=tuple(episode for episode in find_episodes(ids, pieces) if episode.end < len(ids)),
        non_termination=stop_reason == "length",
        domain=domain,
    )


def right_answers(prompt: str, domain: Domain, gold: Sequence[str] = ()) -> tuple[str, ...]:
    """`gold`, else what the suite knows of this prompt, else the result of the sum that it asks for; () if unknown."""
    if gold:
        return tuple(gold)
    if (known := suite_prompt(prompt)) is not None:
        return known.gold
    implied = implied_answer(prompt) if domain == "math" else None
    return () if implied is None else (implied,)


def _likeliest_domain(prompt: str, text: str, text_model: TextModel) -> Domain:
    """That of the prompt, or of a text without one; prose, whose limits are strict, unless another is clearly likelier.

    What is hardly letters says nothing about its domain.
    """
    read = prompt if prompt.strip() else text
    visible = [character for character in text if not character.isspace()]
    if read is text and 2 * sum(map(str.isalpha, visible)) < len(visible):
        return "prose"
    likeliest = text_model.domain(read)
    odds = text_model.log_odds(read, likeliest, width=max(1, 4 * len(read)))
    return likeliest if odds and odds[0] > CLEARLY else "prose"


def token_pieces(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The characters that each token completes; joined they are the text. An id past the vocabulary has none."""
    decoder = getincrementaldecoder("utf-8")(errors="replace")
    pieces = [decoder.decode(tokenizer.token_bytes(id) if 0 <= id < tokenizer.vocab_size else b"") for id in ids]
    if pieces:
        pieces[-1] += decoder.decode(b"", final=True)
    return pieces


def _laid_over(text: str, pieces: Sequence[str]) -> list[str]:
    """A text cut where tokens end that say something else: it lost its stop text, or they have no tokenizer."""
    ends = list(accumulate(map(len, pieces)))
    if not ends:
        return [text] if text else []
    scale = 1 if text and "".join(pieces).startswith(text) else len(text) / max(1, ends[-1])
    cuts = [0, *(min(len(text), round(end * scale)) for end in ends[:-1]), len(text)]
    return [text[start:end] for start, end in pairwise(cuts)]


def _unicode(text: str) -> str:
    """A lone surrogate, which no tokenizer reads, becomes U+FFFD."""
    return text.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="replace")


@cache
def _built_in_tokenizer() -> Tokenizer:
    return Tokenizer.load(BUILT_IN)


def _early_end(text: str, ids: Sequence[int], stop_reason: StopReason, closed: bool) -> Flag | None:
    empty = not text.strip()
    if stop_reason != "eos" or not (empty or len(ids) < (1 if closed else FEWEST_OF_A_COMPLETION)):
        return None
    return Flag(failure="early end", kind="empty" if empty else "short", start=0, end=len(ids))


def _breakdown(
    prompt: str, text: str, pieces: Sequence[str], domain: Domain, allowed: Limits, text_model: TextModel
) -> Flag | None:
    found = find_breakdown(pieces, domain)
    if found is not None:
        return Flag(failure="breakdown", kind=found.kind, start=found.start, end=found.end)
    broken = find_broken_words(text, text_model, allowed.broken_words)
    if broken is None or is_unfamiliar(prompt, text_model):
        return None
    return _over_tokens("breakdown", Found(start=broken.start, end=broken.end, kind="broken_words"), pieces)


def _loop(loop: Loop | None, suspect: Loop | None) -> Flag | None:
    found = loop or suspect
    if found is None:
        return None
    return Flag(failure="loop", kind=found.kind, start=found.start, end=found.end, suspect=loop is None)


def _repetitive(text: str, pieces: Sequence[str], allowed: Limits) -> Flag | None:
    passage = find_repetition(text, allowed.repetitive)
    if passage is None:
        return None
    return _over_tokens("repetitive", Found(start=passage.start, end=passage.end, kind="near_repetition"), pieces)


def _echo(prompt: str, text: str, pieces: Sequence[str], domain: Domain, gold: Sequence[str]) -> Flag | None:
    if domain == "math":
        return _over_tokens("echo", find_number_echo(prompt, text, " ".join(gold) or None), pieces)
    return _over_tokens("echo", find_text_echo(prompt, text, domain), pieces)


def _digits(prompt: str, text: str, pieces: Sequence[str], gold: Sequence[str]) -> Flag | None:
    # The whole text is read, so that a number is never judged by its first digits.
    before = sum(map(len, pieces[:MATH_TOKENS]))
    return _over_tokens("digits", find_unsupported_number(prompt, text, " ".join(gold) or None, before), pieces)


def _drift(
    prompt: str,
    text: str,
    pieces: Sequence[str],
    domain: Domain,
    gold: Sequence[str],
    allowed: Limits,
    text_model: TextModel,
    lift: float | None,
) -> Flag | None:
    if not prompt.strip():
        return None
    found = find_drift(prompt, text, domain, text_model, allowed.drift, lift, domain == "math" and asks_number(gold))
    if found is None:
        return None
    start = int(found.from_share * len(text))
    return _over_tokens("drift", Found(start=start, end=len(text), kind=found.kind, suspect=found.suspect), pieces)


def _untrue(text: str, pieces: Sequence[str]) -> Flag | None:
    found = find_contradiction(text)
    if found is None:
        return None
    return _over_tokens("untrue", Found(start=found.start, end=found.end, kind=found.kind, suspect=True), pieces)


def _over_tokens(failure: Failure, found: Found | None, pieces: Sequence[str]) -> Flag | None:
    """From characters to tokens."""
    if found is None:
        return None
    ends = list(accumulate(map(len, pieces)))
    last = max(0, len(pieces) - 1)
    start = next((token for token, end in enumerate(ends) if end > found.start), last)
    end = min(len(pieces), 1 + next((token for token, end in enumerate(ends) if end >= found.end), last))
    return Flag(failure=failure, kind=found.kind, start=start, end=max(start, end), suspect=found.suspect)
