from __future__ import annotations

import sys
import unicodedata

from shardscope.visible import on_one_line, visible

EVERY_CHARACTER = "".join(map(chr, range(sys.maxunicode + 1)))


def test_control_characters_are_written_out_and_letters_stay() -> None:
    assert visible("a\x00b\u202ec\nд é\u200d") == "a␀b\\u202ec\nд é\u200d"
    assert visible("half \ud83d of a pair, a\u2028separator") == "half \\ud83d of a pair, a\\u2028separator"


def test_one_line_is_one_line_whatever_a_text_holds() -> None:
    assert on_one_line("a\r\n\tb") == "a␍↵⇥b"
    assert len(on_one_line(EVERY_CHARACTER).splitlines()) == 1


def test_nothing_in_a_text_moves_the_cursor_or_turns_the_line_around() -> None:
    hidden = {c for c in visible(EVERY_CHARACTER) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert hidden == set("\n\t\u200c\u200d")
