"""Text from strangers (prompts, vocabularies, file names) shown as the characters it is made of."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import wraps

import streamlit as st

from shardscope.config import ConfigError

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


def on_one_line(text: str) -> str:
    """A token's text with line breaks and tabs as signs."""
    return visible(text).replace("\n", "↵").replace("\t", "⇥")


def visible(text: str) -> str:
    """`text` with control and formatting characters (bidi overrides, too) written out; newlines and tabs stay."""
    return "".join(_written_out(character) for character in text)


def _written_out(character: str) -> str:
    # The joiners are part of how some scripts and emoji are spelled.
    if character in "\n\t\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf", "Cs"):
        return character
    if ord(character) < 0x20:
        return chr(0x2400 + ord(character))
    return f"\\u{ord(character):04x}"
