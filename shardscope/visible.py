"""Untrusted text (prompts, vocabularies, file names) shown as the characters it is made of."""

from __future__ import annotations

import unicodedata

# Control and formatting characters, halves of surrogate pairs, line and paragraph separators.
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # part of how some scripts and emoji are spelled


def visible(text: str) -> str:
    """`text` with control and formatting characters (bidi overrides, too) written out; newlines and tabs stay."""
    return "".join(_written_out(character) for character in text)


def on_one_line(text: str) -> str:
    """The same with line breaks and tabs as signs."""
    return visible(text).replace("\n", "↵").replace("\t", "⇥")


def _written_out(character: str) -> str:
    if character in "\n\t" or character in _JOINERS or unicodedata.category(character) not in _HIDDEN:
        return character
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else f"\\u{ord(character):04x}"
