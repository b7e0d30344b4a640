"""What a label says about a sample: its colour, the words of the output that it is about, and how far to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import streamlit as st

from apps.parts.continuing import Continuation
from apps.parts.text import plain
from apps.parts.tokens import Span
from shardscope.colors import OKABE_ITO
from shardscope.failures import Flag, Labels, SuitePrompt, false_alarm_rate, label
from shardscope.failures.labels import token_pieces
from shardscope.failures.text_model import TextModel
from shardscope.tokenizer import Tokenizer

# By kind of failure, as Streamlit names its badges' colours. None is green: that no rule fired does not say "good".
COLORS = {
    "no flag": "gray",
    "loop": "orange",
    "repetitive": "orange",
    "breakdown": "red",
    "early end": "red",
    "wrong": "violet",
    "digits": "violet",
    "untrue": "violet",
    "echo": "blue",
    "drift": "blue",
}
# The same in the text and in charts (Okabe and Ito's colours, which colour-blind people tell apart).
HUES = dict(zip(("blue", "orange", "green", "violet", "sky", "red", "yellow", "gray"), OKABE_ITO, strict=True))


def judge(
    prompt: SuitePrompt, sample: Continuation, tokenizer: Tokenizer, text_model: TextModel | None = None
) -> Labels:
    return label(
        sample.text,
        prompt=prompt.text,
        ids=sample.ids,
        stop_reason=sample.stop_reason or "length",
        domain=prompt.domain,
        gold=prompt.gold,
        tokenizer=tokenizer,
        text_model=text_model,
    )


def in_order(labels: Labels) -> list[Flag]:
    """The primary failure first, suspicions last."""
    return sorted(labels.flags, key=lambda flag: (flag.failure != labels.primary, flag.suspect))


def evidence(sample: Continuation, labels: Labels, tokenizer: Tokenizer) -> list[Span]:
    """The characters of the output that each flag is about, the primary failure first."""
    ends = [0, *accumulate(map(len, token_pieces(sample.ids, tokenizer)))]
    return [(ends[flag.start], ends[flag.end], hue(flag.failure), named(flag)) for flag in in_order(labels)]


def hue(failure: str) -> str:
    return HUES[COLORS.get(failure, "gray")]


def named(flag: Flag) -> str:
    """Suspicions have a question mark."""
    return flag.failure + "?" * flag.suspect


def badge(word: str, text: str) -> str:
    return f":{COLORS.get(word, 'gray')}-badge[{plain(text)}]"


def count(judged: Sequence[Labels]) -> str:
    """How many samples fail in which way, as Markdown."""
    words = [labels.primary for labels in judged]
    return " ".join(badge(word, f"{words.count(word)} {word}") for word in sorted(set(words), key=words.index))


def draw_flags(labels: Labels) -> None:
    """Each flag with what it says, and how often it fires on text that people wrote."""
    lines = [f"- {badge(flag.failure, named(flag))} {plain(trust(flag, labels))}" for flag in in_order(labels)]
    nothing = f"- {badge('no flag', 'no flag')} no rule fired, which does not say that the text is good or true"
    st.markdown("\n".join(lines or [nothing]))


def trust(flag: Flag, labels: Labels) -> str:
    """Where the flag is and its false-alarm rate in the domain to whose limits the sample was held."""
    where = "the whole output" if flag.end <= flag.start else f"tokens {flag.start} to {flag.end - 1} of the output"
    kind = "" if flag.kind == flag.failure else f"{flag.kind.replace('_', ' ')}, "
    if flag.failure == "wrong":  # people's text has no known answer beside it
        return f"{kind}{where}; compared with the known answer"
    alarms = false_alarm_rate(flag.failure, labels.domain, flag.suspect)
    fires = "suspected in" if flag.suspect else "fires on"
    return (
        f"{kind}{where}; {fires} {alarms.rate:.1%} of people's {labels.domain} "
        f"({alarms.texts} texts, at most {alarms.high:.1%})"
    )
