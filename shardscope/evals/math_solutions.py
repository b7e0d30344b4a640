r"""The answer that a worked solution ends in: in a box, after `####` or "the answer is", or its last formula."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_END_OF_FORMULA = re.compile(r"(?<!\\)\$|\\[)\]]|\n")
_MARKED = re.compile(r"^####[ \t]*(\S.*)$", re.MULTILINE)
_STATED = re.compile(
    r"\banswers?(?:\*\*)?\s*(?:is|are|equals|:|=)(?:\s+(?:therefore|thus|then|hence|simply|just))?:?\s*\*{0,2}\s*"
    r"(?=\S)",
    re.IGNORECASE,
)
_END_OF_STATEMENT = re.compile(r"(?:\.?\*\*)?(?:\.\s|\.?$|\.?\n|,?\s(?:as|because|since|which|where|so)\b)")
# As in Pandoc, a dollar before a digit closes nothing; nor does a sum of money, `$5 and …`, open a formula.
_FORMULA = re.compile(
    r"(?<!\\)\$\$(?P<display>.+?)(?<!\\)\$\$"
    r"|(?<!\\)\$(?!\d[\d.,]*\s+[a-zA-Z]{2})(?P<inline>(?:\\.|[^$\\])+)\$(?!\d)"
    r"|(?<!\\)\\\[(?P<bracketed>.+?)\\\]"
    r"|(?<!\\)\\\((?P<in_brackets>.+?)\\\)",
    re.DOTALL,
)
# "The value of $x$ is 5."
_JUST_A_NAME = re.compile(r"\s*\\?[a-zA-Z]+(?:_\w)?\s*")
_TOLD_BEHIND = re.compile(r"\s+(?:is|equals|=)\s+(?:exactly\s+|therefore\s+)?([-\d.][^\n]*?)(?=\.?\s*(?:\n|$))")
_BOLD_AT_THE_END = re.compile(r"\*\*([^*\n]+)\*\*[\s.]*$")
_NUMBER = re.compile(r"-?\\?\$?(?:\d[\d,]*)?\.?\d+(?:/\d+)?(?!\w)")


def final_answer(text: str) -> str:
    """The answer of a solution; of one without box, mark or formula the last number of its last line, or the line.

    A solution that breaks off within its only box has none.
    """
    if (found := boxed(text)) is not None:
        return found
    if _BOX.search(text):
        return ""  # it breaks off within its box: what is there of the number may not be all
    if marked := _MARKED.findall(text):
        return str(marked[-1])
    if stated := list(_STATED.finditer(text)):
        rest = text[stated[-1].end() :]
        end = _END_OF_STATEMENT.search(rest)
        return rest[: end.start()] if end else rest
    if bold := _BOLD_AT_THE_END.search(text):
        return bold[1]
    if formulas := list(_FORMULA.finditer(text)):
        last = formulas[-1][formulas[-1].lastgroup or 0]
        told = _TOLD_BEHIND.match(text, formulas[-1].end())
        return told[1] if told and _JUST_A_NAME.fullmatch(last) else last
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _of_a_line(lines[-1]) if lines else ""


def boxed(text: str) -> str | None:
    r"""What stands in the last box that is complete: `\boxed{…}`, `\fbox{…}`, or `\boxed 5` up to the formula's end.

    An empty box is none. One whose closing brace is missing ends with its formula; if the text breaks off before, it
    is none either.
    """
    for box in reversed(list(_BOX.finditer(text))):
        rest = text[box.end() :]
        end = _END_OF_FORMULA.search(rest)
        if not rest.startswith("{"):
            content: str | None = rest[: end.start()] if end else rest
        elif (content := _group(rest)) is None and end:
            content = rest[1 : end.start()]
        if content is not None and content.strip():
            return content
    return None


def _group(text: str) -> str | None:
    r"""What stands between the brace at the beginning and the one that closes it; `\{` and `\}` are no braces."""
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0 and token[0] == "}":
            return text[1 : token.start()]
    return None


def _of_a_line(line: str) -> str:
    behind = line.rpartition("=")[2].strip()
    if behind != line and not re.search(r"[a-zA-Z]{2}", behind):
        return behind
    numbers = _NUMBER.findall(line)
    return str(numbers[-1]) if numbers else line
