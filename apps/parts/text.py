"""Untrusted text (prompts, file names, errors), escaped for Streamlit's Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps

import streamlit as st

from shardscope.config import ConfigError
from shardscope.visible import visible

_MARKDOWN = re.compile(r"([!-/:-@\[-`{-~])")
# Streamlit makes links of addresses, and pictures of names between colons, even where their signs are escaped.
_LINKED = re.compile(r":(?=\S)|@|(?<=www)\.", re.IGNORECASE)
_WORD_JOINER = "\u2060"  # invisible, and no place to break a line


def plain(text: str) -> str:
    """`text` on one line, escaped for the places where Streamlit reads Markdown."""
    joined = _LINKED.sub(lambda found: f"{_WORD_JOINER}{found[0]}{_WORD_JOINER}", " ".join(visible(text).split()))
    return _MARKDOWN.sub(r"\\\1", joined)


def sentence(error: Exception) -> str:
    """What an error says, as a sentence in Markdown."""
    words = plain(str(error))
    return words[:1].upper() + words[1:] + "."


def in_a_sentence(draw: Callable[..., None]) -> Callable[..., None]:
    """`draw`, whose ConfigError becomes a sentence where it stopped drawing."""

    @wraps(draw)
    def drawn(*arguments: object) -> None:
        try:
            draw(*arguments)
        except ConfigError as error:
            st.error(sentence(error))

    return drawn
