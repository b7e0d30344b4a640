"""Continuing prompts while the page watches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic

import streamlit as st

from apps.parts import address
from apps.parts.checkpoints import Opened
from shardscope.generate import SamplingConfig, StopReason, TokenEvent, stream

KEPT = 8
LIMITS = {"tokens": (1, 512), "temperature": (0.0, 2.0), "top_p": (0.05, 1.0), "seed": (0, 2**31)}
NARROW = 140  # pixels; two fit beside each other on a phone


@dataclass(frozen=True)
class Continuation:
    """A prompt's new tokens and their text; `stop_reason` is None until it has ended."""

    ids: tuple[int, ...] = ()
    text: str = ""
    stop_reason: StopReason | None = None

    def after(self, event: TokenEvent) -> Continuation:
        new = () if event.id is None else (event.id,)
        return Continuation((*self.ids, *new), self.text + event.text, event.stop_reason)


def sampling_controls(tokens: str = "tokens") -> SamplingConfig:
    """The four numbers that decide a sample; with the checkpoint and the prompt they give the same text again.

    `tokens` names the choice that holds the number of new tokens.
    """
    for name, (smallest, largest) in LIMITS.items():
        address.clamp(tokens if name == "tokens" else name, smallest, largest)
    return SamplingConfig(
        max_new_tokens=st.number_input("New tokens", *LIMITS["tokens"], key=tokens, width=NARROW),
        temperature=st.number_input("Temperature", *LIMITS["temperature"], step=0.1, key="temperature", width=NARROW),
        top_p=st.number_input("Top-p", *LIMITS["top_p"], step=0.05, key="top_p", width=NARROW),
        seed=st.number_input("Seed", *LIMITS["seed"], key="seed", width=NARROW),
    )


def continue_prompts(
    opened: Opened, prompts: tuple[tuple[int, ...], ...], config: SamplingConfig
) -> Iterator[list[Continuation]]:
    """The continuations so far, ten times a second, then the whole; at once when this session has them already."""
    kept: dict[object, list[Continuation]] = st.session_state.setdefault("kept_continuations", {})
    key = (opened.key, prompts, config)
    if key not in kept:
        so_far = [Continuation() for _ in prompts]
        events = stream(opened.model, prompts, config)
        next_look = 0.0
        while (event := _next(events, opened)) is not None:
            so_far[event.row] = so_far[event.row].after(event)
            if monotonic() >= next_look:
                yield list(so_far)
                next_look = monotonic() + 0.1
        while len(kept) >= KEPT:
            kept.pop(next(iter(kept)))
        kept[key] = so_far
    yield kept[key]


def _next(events: Iterator[TokenEvent], opened: Opened) -> TokenEvent | None:
    with opened.lock:
        return next(events, None)
