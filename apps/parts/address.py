"""What the page shows is in its address, so that a copied address shows the same again.

Every choice lives in `st.session_state` under the name that it has in the address. Widgets use that name as key.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import streamlit as st

# Long enough to leave a short window, and with a repetition for heads that look for one.
FIRST_PROMPT = (
    "Once upon a time, in a small village, there lived a baker who counted every loaf. One day the baker counted "
    "23 loaves in the morning and 19 loaves in the evening. Once upon a time, in a small village, there lived a miller "
    "who counted every sack. One day the miller counted"
)
# A browser's address cannot hold a book.
LONGEST_PROMPT = 4000

CHOICES: dict[str, tuple[Any, Callable[[str], Any]]] = {
    "checkpoint": ("", str),
    "prompt": (FIRST_PROMPT, str),
    "layer": (0, int),
    "head": (0, int),
    "query": (-1, int),
    "measure": ("Pattern", str),
    "seed": (0, int),
    "tokens": (32, int),
    "sample_tokens": (128, int),
    "temperature": (0.7, float),
    "top_p": (0.9, float),
}


def restore() -> None:
    """Fill choices that this session has not made yet from the address, else from their defaults."""
    for name, (default, read) in CHOICES.items():
        if name in st.session_state:
            # Assigning keeps a choice alive on pages that do not draw its widget.
            st.session_state[name] = st.session_state[name]
        else:
            st.session_state[name] = _read(st.query_params.get(name), default, read)


def publish() -> None:
    """Write the choices that differ from their defaults into the address."""
    chosen = {name: st.session_state[name] for name in CHOICES}
    if len(chosen["prompt"]) > LONGEST_PROMPT:
        chosen["prompt"] = CHOICES["prompt"][0]
    differing = {name: str(value) for name, value in chosen.items() if value != CHOICES[name][0]}
    if differing != st.query_params.to_dict():
        st.query_params.from_dict(differing)


def clamp(name: str, smallest: float, largest: float) -> Any:
    """The choice, moved into what this checkpoint and prompt allow."""
    st.session_state[name] = min(max(st.session_state[name], smallest), largest)
    return st.session_state[name]


def _read(text: str | None, default: Any, read: Callable[[str], Any]) -> Any:
    if text is None:
        return default
    try:
        value = read(text)
    except ValueError:
        return default
    return default if isinstance(value, float) and not math.isfinite(value) else value
