"""What the page shows is in its address, so that a copied address shows the same again.

Every choice lives in `st.session_state` under the name that it has in the address. Widgets use that name as key.
"""

from __future__ import annotations

import base64
import math
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

# Long enough to leave a short window, and with a repetition for heads that look for one.
FIRST_PROMPT = (
    "Once upon a time, in a small village, there lived a baker who counted every loaf. One day the baker counted "
    "23 loaves in the morning and 19 loaves in the evening. Once upon a time, in a small village, there lived a miller "
    "who counted every sack. One day the miller counted"
)
# A longer prompt is compressed in the address; one that is longer even so is left out, and the page says so.
LONGEST_PLAIN = 1_000
LONGEST_PACKED = 30_000
LONGEST_PROMPT = 4_000_000  # bytes that a packed prompt may unfold to
PACKED = "zlib:"
STRONGEST = -1  # in the place of a layer and a head: the page opens on the strongest induction head


def read_rectangle(text: str) -> tuple[int, ...]:
    """'120-140,60-90' as (query, query end, key, key end)."""
    match = re.fullmatch(r"(\d{1,7})-(\d{1,7}),(\d{1,7})-(\d{1,7})", text)
    if match is None:
        raise ValueError(f"{text!r} is not a rectangle")
    return tuple(map(int, match.groups()))


def read_prompt(text: str) -> str:
    return unpack(text) if text.startswith(PACKED) else text


def read_heads(text: str) -> tuple[tuple[int, int], ...]:
    """'3.1 2.0' as ((3, 1), (2, 0))."""
    heads = re.findall(r"(\d{1,4})\.(\d{1,4})", text)
    return tuple((int(layer), int(head)) for layer, head in heads)


def read_names(text: str) -> list[str]:
    return [name for name in text.split("|") if name]


def write(value: Any) -> str:
    if isinstance(value, list):
        return "|".join(value)
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return " ".join(f"{layer}.{head}" for layer, head in value)
    if isinstance(value, tuple) and len(value) == 4:
        return "{}-{},{}-{}".format(*value)
    return str(value)


# Name: default, and how its text in an address is read.
CHOICES: dict[str, tuple[Any, Callable[[str], Any]]] = {
    "checkpoint": ("", str),
    "fingerprint": ("", str),
    "prompt": (FIRST_PROMPT, read_prompt),
    "seed": (0, int),
    "tokens": (32, int),
    "sample_tokens": (128, int),
    "temperature": (0.7, float),
    "top_p": (0.9, float),
    # Attention
    "layer": (STRONGEST, int),
    "head": (STRONGEST, int),
    "query": (-1, int),
    "measure": ("pattern", str),
    "map": ("mean", str),
    "rectangle": ((), read_rectangle),
    # Tokens
    "target": (-1, int),
    "against": (-1, int),
    "ablate": ((), read_heads),
    "mode": ("zero", str),
    # Heads
    "by": ("induction", str),
    "kind": ("both", str),
    "heads": ((), read_heads),
    "follow": (False, "True".__eq__),
    # Runs
    "runs": ([], read_names),
    "curve": ("cross_entropy", str),
    "biography": ("", str),
    "score": ("", str),
    "followed": ([], read_names),
    "matrix": ("", str),
    "number": ("", str),
    "source": ("", str),
    "probe": (-1, int),
    # Failures
    "atlas": ("", str),
    "beside": ("", str),
    "heat": ("all", str),
    "cell": ("", str),
    "pick": ("", str),
    "suite": ("card", str),
    "sample": ("card-1", str),
    "cause": (False, "True".__eq__),
    "without": (False, "True".__eq__),
}


def restore() -> None:
    """Fill choices that this session has not made yet from the address, else from their defaults.

    What an address holds and cannot be read is named on the page, once.
    """
    unread = []
    # A head is named by two numbers: where an address has one of them, the other is 0, as in addresses from before.
    named = {"layer", "head"} & set(st.query_params)
    for name, (default, read) in CHOICES.items():
        if name in st.session_state:
            # Assigning keeps a choice alive on pages that do not draw its widget.
            st.session_state[name] = st.session_state[name]
            continue
        if named and name in ("layer", "head"):
            default = 0
        text = st.query_params.get(name)
        value = default if text is None else _read(text, read)
        if value is None:
            unread.append(name)
        st.session_state[name] = default if value is None else value
    if unread:
        st.warning(f"The address says {', '.join(unread)} in a way that cannot be read: you see the default instead.")


def publish() -> None:
    """Write the choices that differ from their defaults into the address."""
    chosen = {name: st.session_state[name] for name in CHOICES}
    differing = {name: write(value) for name, value in chosen.items() if value != CHOICES[name][0]}
    if len(differing.get("prompt", "")) > LONGEST_PLAIN or differing.get("prompt", "").startswith(PACKED):
        differing["prompt"] = pack(differing["prompt"])
        if len(differing["prompt"]) > LONGEST_PACKED:
            del differing["prompt"]
            st.caption("This prompt is too long for an address: keep its text beside the link.")
    if differing != st.query_params.to_dict():
        st.query_params.from_dict(differing)


def pack(prompt: str) -> str:
    return PACKED + base64.urlsafe_b64encode(zlib.compress(prompt.encode(), 9)).decode()


def unpack(text: str) -> str:
    """The prompt that was packed. Raises ValueError for anything else."""
    unfold = zlib.decompressobj()
    try:
        unfolded = unfold.decompress(base64.urlsafe_b64decode(text.removeprefix(PACKED)), LONGEST_PROMPT)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not unfold.eof:
        raise ValueError("the packed prompt is cut off, or longer than any context")
    return unfolded.decode()


def clamp(name: str, smallest: float, largest: float) -> Any:
    """The choice, moved into what this checkpoint and prompt allow."""
    st.session_state[name] = min(max(st.session_state[name], smallest), largest)
    return st.session_state[name]


def one_of(name: str, options: Sequence[Any]) -> Any:
    """The choice, or the first option if it is none of them."""
    if st.session_state[name] not in options:
        st.session_state[name] = options[0]
    return st.session_state[name]


def _read(text: str, read: Callable[[str], Any]) -> Any:
    """What the text says; None when it says nothing that can be used."""
    try:
        value = read(text)
    except ValueError:
        return None
    return None if isinstance(value, float) and not math.isfinite(value) else value
