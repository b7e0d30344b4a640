"""Continuing prompts while the page watches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

import streamlit as st

from apps.parts import address
from apps.parts.checkpoints import Opened
from shardscope.generation import Generation, SamplingConfig, StopReason, TokenEvent, generate, stream
from shardscope.microscope import ablated
from shardscope.microscope.ablation import Mode

REMEMBERED = 8
MOST_NEW = 512
LIMITS = {"temperature": (0.0, 2.0), "top_p": (0.05, 1.0), "seed": (0, 2**31)}
NARROW = 112  # pixels; all four fit beside each other, and on a phone two


@dataclass(frozen=True)
class Continuation:
    """A prompt's new tokens and their text; `stop_reason` is None until it has ended."""

    ids: tuple[int, ...] = ()
    text: str = ""
    stop_reason: StopReason | None = None

    def after(self, event: TokenEvent) -> Continuation:
        new = () if event.id is None else (event.id,)
        return Continuation((*self.ids, *new), self.text + event.text, event.stop_reason)


def sampling_controls(tokens: str = "tokens", fewest: int = 0) -> SamplingConfig | None:
    """The four numbers that decide a sample; with the checkpoint and the prompt they give the same text again.

    `tokens` names the choice that holds the number of new tokens. None: it is 0, and nothing is to be sampled.
    """
    for name, (smallest, largest) in LIMITS.items():
        address.clamp(name, smallest, largest)
    new = address.clamp(tokens, fewest, MOST_NEW)
    st.number_input("New tokens", fewest, MOST_NEW, key=tokens, width=NARROW)
    temperature = st.number_input("Temperature", *LIMITS["temperature"], step=0.1, key="temperature", width=NARROW)
    top_p = st.number_input("Top-p", *LIMITS["top_p"], step=0.05, key="top_p", width=NARROW)
    seed = st.number_input("Seed", *LIMITS["seed"], key="seed", width=NARROW)
    if new == 0:
        return None
    return SamplingConfig(max_new_tokens=int(new), temperature=temperature, top_p=top_p, seed=int(seed))


def continue_prompts(
    opened: Opened, prompts: tuple[tuple[int, ...], ...], config: SamplingConfig
) -> Iterator[list[Continuation]]:
    """The continuations so far, ten times a second, then the whole; at once when this session has them already."""
    written: dict[object, list[Continuation]] = st.session_state.setdefault("continuations", {})
    key = (opened.fingerprint, prompts, config)
    if key not in written:
        so_far = [Continuation() for _ in prompts]
        events = stream(opened.model, prompts, config)
        next_look = 0.0
        while (event := _next(events, opened)) is not None:
            so_far[event.row] = so_far[event.row].after(event)
            if monotonic() >= next_look:
                yield list(so_far)
                next_look = monotonic() + 0.1
        while len(written) >= REMEMBERED:
            written.pop(next(iter(written)))
        written[key] = so_far
    yield written[key]


def continue_without(
    opened: Opened, ids: tuple[int, ...], config: SamplingConfig, heads: Sequence[tuple[int, int]], mode: Mode
) -> Generation:
    """The continuation with some heads switched off: same prompt, same seed."""
    with opened.lock, ablated(opened.model, heads, mode, reference=ids):
        return generate(opened.model, ids, config)


def _next(events: Iterator[TokenEvent], opened: Opened) -> TokenEvent | None:
    with opened.lock:
        return next(events, None)
