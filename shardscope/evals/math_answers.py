r"""Whether two written mathematical answers say the same: `\frac{1}{2}`, `0.5`, `1/2` and `$x = 0.5$` do.

An answer is tidied (dollar signs, sizes of brackets and the like go), and cut at its commas, "and"s and "or"s into
parts. The order of a list, a set or a union does not count; that of a tuple, an interval or a matrix does. Parts that
are words are compared as text, whatever their case; the others as text or, if they parse, by value. A unit after a
number does not count, as in MATH's own gold answers; a base does. A single letter is a variable, its case counts. An
inequality of one letter is an interval, and a set by itself is the list of its elements.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from shardscope.evals.math_solutions import boxed
from shardscope.evals.math_values import same_equation, same_value

LONGEST = 300  # characters; the longest gold answer of MATH has 81. Beyond, only the same text is the same answer.

_GONE = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|q?quad|ldots|textdollar)(?![a-zA-Z])|\\[hv]space\*?\{[^{}]*\}|\\!"
    r"|\\?%|\\?\$|\\[()\[\]]|\"|\^?\{?(?:\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])|°)\}?"
    r"|(?<=\d)\^(?:o(?![a-zA-Z])|\{o\}|\{\\(?:text|mathrm)\{o\}\})"
    r"|(?<=\d)(?:st|nd|rd|th|\^\{?(?:st|nd|rd|th)\}?|\^\{\\(?:text|mbox|mathrm)\{(?:st|nd|rd|th)\}\})(?![a-zA-Z])"
)
_NEW_ROW = re.compile(r"\\\\(?:\s*\[-?[\d.]+ ?[a-z]{2}\])?")
_THIN_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,;: ]|~|,\s*\\!\s*)(?=\d{3}(?!\d))")
_SPACES = re.compile(r"\\[,;: ]|~|\s+")
_NAMES = {
    r"\\[dtc]frac(?![a-zA-Z])": r"\\frac",
    r"\\(?:cdot|times)(?![a-zA-Z])|[×·]": "*",
    r"\\div(?![a-zA-Z])": "/",
    r"\\le(?:q|qslant)?(?![a-zA-Z])|≤": "<=",
    r"\\ge(?:q|qslant)?(?![a-zA-Z])|≥": ">=",
    r"\\lt(?![a-zA-Z])": "<",
    r"\\gt(?![a-zA-Z])": ">",
    r"−": "-",
    r"\\lbrace(?![a-zA-Z])": r"\\{",
    r"\\rbrace(?![a-zA-Z])": r"\\}",
    r"\\[lr]?vert(?![a-zA-Z])": "|",
    r"\\lbrack(?![a-zA-Z])": "[",
    r"\\rbrack(?![a-zA-Z])": "]",
    r"\\langle(?![a-zA-Z])": "(",
    r"\\rangle(?![a-zA-Z])": ")",
    r"∞|(?<![\\a-zA-Z])(?:inf|infty)(?![a-zA-Z])|\\infin(?![a-zA-Z])": r"\\infty",
    r"π": r"\\pi ",
    r"√": r"\\sqrt",
    r"∪|(?<=[)\]}]) ?U ?(?=[(\[\\])": r"\\cup ",
    r"\\varnothing(?![a-zA-Z])|∅|\\\{ ?\\\}": r"\\emptyset",
    r"\*\*": "^",
    r";": ",",
    r"\\begin\{(?:array\}(?:\{[clr| ]*\})?|smallmatrix\})": r"\\begin{matrix}",
    r"\\end\{(?:array|smallmatrix)\}": r"\\end{matrix}",
    r"[(\[] ?(\\begin\{matrix\}[^()\[\]]*\\end\{matrix\}) ?[)\]]": r"\1",
    r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}": r"\\frac{\1}{\2}",
    r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}": r"\\binom{\1}{\2}",
    r"\\[dt]binom(?![a-zA-Z])": r"\\binom",
    r"(?<![\\a-zA-Z])(pi|sqrt|sin|cos|tan)(?![a-zA-Z])": r"\\\1",
}
_TEXT = re.compile(
    r"\\(?:text(?:bf|rm|it|sf|normal)?|mbox|math(?:rm|bf|it)|bold(?:symbol)?|operatorname)\s*\{([^{}]*)\}"
)
_AND = re.compile(r"\"\s*(?:and|or)\s*\"|(?<= )(?:and|or)(?= )")
_THOUSANDS = re.compile(r"(?<![\d(\[,.])\d{1,3}(?:,\d{3})+(?!\d)")
# "x =", "f(x) =", "x_1 =", "AB =", "\\theta =", "(x, y) =", "x \\in" in front, or "= x" behind a value.
_NAME = (
    r"(?:m ?)?(?:\\angle ?)?(?:\"?[a-zA-Z]\"?(?:_\w|_\{\w+\})?'?(?:\([a-z]\))?|[A-Z]{2,3}"
    r"|\\(?!frac|sqrt|pi|in|pm|infty)[a-z]+(?:\{[a-zA-Z]+\})?|\([a-zA-Z](?:, ?[a-zA-Z])+\))"
)
_DECLARED = re.compile(rf"^{_NAME}\s*(?:=|\\approx(?![a-z])|\\in(?![a-z]))\s*")
_DECLARED_BEHIND = re.compile(r"(?<=[\d)}])\s*=\s*[a-zA-Z]$")
# Of one letter: `x > 5`, `5 < x`, `2 < x \\le 7`. Each is an interval.
_BOUNDED_ONE_SIDE = re.compile(r"([a-zA-Z]) ?(<=?|>=?) ?([^<>=a-zA-Z]+(?:\\[a-z]+[^<>=]*)?)")
_BOUNDED_TWO_SIDES = re.compile(r"([^<>=]+?) ?(<=?) ?[a-zA-Z] ?(<=?) ?([^<>=]+)")
_RELATION = re.compile(r"\s*(<=|>=|<|>|=)\s*")
_REVERSED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "="}
# A number with its base: `101_2`, `101_{2}`, `(101)_{\\text{two}}`, `101 \\text{ (base 2)}`.
_BASED = re.compile(
    r"(-?) ?[({]? ?([\dA-Za-z]*\.?[\dA-Za-z]+) ?[)}]? ?"
    r"(?:_ ?[{(]{0,2} ?(?:base)? ?(\w+) ?[)}]{0,2}|[( ]{0,3}base[ -]?(\w+) ?\)?)"
)
_BASES = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_MATRIX = re.compile(r"\\begin\{([pbBvV]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_BRACKETS = re.compile(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", re.DOTALL)
# A number, and behind it either what stood in \text or plain words; an exponent belongs to the unit.
_NUMBER_AND_UNIT = re.compile(r"(.*(?:[\d)}]|\\pi))\s*(\"[^\"]*\"|(?<=[\s)}])[a-zA-Z][a-zA-Z. ]*)(?:\s*\^\{?\d\}?)?")
_TIME = re.compile(r"\d[\d:]*[ \"]*[ap]\.? ?m\.?[ \"]*", re.IGNORECASE)
_SHORT_UNITS = {
    "mm",
    "cm",
    "km",
    "ft",
    "in",
    "yd",
    "mi",
    "mph",
    "kph",
    "mg",
    "gm",
    "kg",
    "lb",
    "lbs",
    "oz",
    "ml",
    "hr",
    "hrs",
    "min",
    "day",
}


def equivalent(answer: str, gold: str) -> bool:
    """Whether two answers say the same. Any text may be an answer; nothing in it is executed, nothing in it raises."""
    if max(len(answer), len(gold)) > LONGEST:
        return answer.strip() == gold.strip()
    ours, theirs = _elements(tidy(answer)), _elements(tidy(gold))
    return bool(theirs) and _in_any_order(ours, theirs)


def tidy(answer: str) -> str:
    r"""Without what changes no meaning: dollar signs, degrees, thousands' commas. What `\text` held stands in quotes.

    A new line is a new row of a matrix.
    """
    answer = re.sub(r"^\*\*(.*)\*\*$", r"\1", answer.strip(), flags=re.DOTALL)
    if re.fullmatch(r"\\f?boxed\s*\{.*\}", answer, flags=re.DOTALL):
        answer = boxed(answer) or answer
    rows = _NEW_ROW.split(re.sub(r"\s+", " ", answer))
    answer = "\n".join(_SPACES.sub(" ", _GONE.sub("", _THIN_THOUSANDS.sub("", row))) for row in rows).replace(
        "{,}", ","
    )
    for name, plain in _NAMES.items():
        answer = re.sub(name, plain, answer)
    answer = _AND.sub(",", _TEXT.sub(r'"\1"', answer))
    return _THOUSANDS.sub(lambda number: number[0].replace(",", ""), answer).strip().rstrip(". ")


def _same(left: str, right: str) -> bool:
    """Whether two parts say the same, whatever they are."""
    if left == right:
        return True
    if _based(left) or _based(right):
        return _based(left) == _based(right)
    if _is_words(left) or _is_words(right):
        return _folded(left) == _folded(right)
    for kind in (_union, _matrix, _bracketed):
        ours, theirs = kind(left), kind(right)
        if ours is not None and theirs is not None:
            in_any_order = ours.kind in ("union", "\\{\\}")
            compare = _in_any_order if in_any_order else _in_order
            return ours.kind == theirs.kind and compare(ours.parts, theirs.parts)
        if ours is not None or theirs is not None:
            return False
    if _RELATION.search(left) or _RELATION.search(right):
        return _same_relation(_RELATION.split(left), _RELATION.split(right))
    return any(_same_single(a, b) for a in _readings(left) for b in _readings(right))


def _same_single(left: str, right: str) -> bool:
    return _without_spaces(left) == _without_spaces(right) or same_value(left, right)


def _same_relation(left: list[str], right: list[str]) -> bool:
    """`a < b` is `b > a`; an equation stays the same when both sides are multiplied, or terms change sides."""
    sides, signs = left[::2], left[1::2]
    for others, marks in ((right[::2], right[1::2]), (right[::-2], [_REVERSED[sign] for sign in right[-2::-2]])):
        if signs == marks and _in_order(sides, others):
            return True
    return signs == right[1::2] == ["="] and same_equation((left[0], left[2]), (right[0], right[2]))


def _without_spaces(part: str) -> str:
    """Except between two numbers, where one is left: `1 2` is not 12."""
    return re.sub(r"(?<![\d.]) | (?![\d.])", "", re.sub(r"\s+", " ", part))


def _in_any_order(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    rest = list(theirs)
    for part in ours if len(ours) == len(theirs) else ():
        match = next((other for other in rest if _same(part, other)), None)
        if match is None:
            return False
        rest.remove(match)
    return not rest


def _in_order(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    return len(ours) == len(theirs) and all(map(_same, ours, theirs))


# ------------------------------------------------------------------------------------------------ what it is made of


class _Several(NamedTuple):
    kind: str  # its brackets, and for a matrix the lengths of its rows
    parts: list[str]


def _union(part: str) -> _Several | None:
    pieces = _cut(part, "\\cup")
    return _Several("union", pieces) if len(pieces) > 1 else None


def _matrix(part: str) -> _Several | None:
    found = _MATRIX.fullmatch(part)
    if found is None:
        return None
    rows = [row.split("&") for row in found[2].strip().split("\n")]
    kind = "determinant" if found[1][0] in "vV" else "matrix"
    return _Several(f"{kind} {[len(row) for row in rows]}", [cell.strip() for row in rows for cell in row])


def _bracketed(part: str) -> _Several | None:
    """A tuple, an interval or a set; a bracket around a single value, or several brackets in a row, are neither."""
    found = _BRACKETS.fullmatch(part)
    if found is None or min(_depths(found[2]), default=0) < 0:
        return None
    inner = _parts(found[2])
    return _Several(found[1] + found[3], inner) if len(inner) > 1 or found[1] == "\\{" else None


def _parts(text: str) -> list[str]:
    r"""What stands between the commas outside brackets, without "x =" in front; `a \pm b` is two parts."""
    found = []
    for part in _cut(text, ","):
        part = _interval(_DECLARED_BEHIND.sub("", _DECLARED.sub("", part)))
        part = part if "\\pm" in part else part.replace("\\mp", "\\pm")
        signs = "+-" if part.count("\\pm") == 1 else [r"\pm"]
        found += [part.replace("\\pm", sign).strip() for sign in signs]
    return [part for part in found if part]


def _elements(text: str) -> list[str]:
    """The parts, or if they are one set, the set's: `{1, 2}` and `1, 2` are the same solutions."""
    parts = _parts(text)
    several = _bracketed(parts[0]) if len(parts) == 1 else None
    return several.parts if several and several.kind == "\\{\\}" else parts


def _interval(part: str) -> str:
    r"""`2 < x \le 7` as `(2, 7]`; anything else as it is."""
    if found := _BOUNDED_TWO_SIDES.fullmatch(part):
        low, opens, closes, high = found.groups()
        return f"{'[' if '=' in opens else '('}{low}, {high}{']' if '=' in closes else ')'}"
    if found := _BOUNDED_ONE_SIDE.fullmatch(_turned(part)):
        _, sign, bound = found.groups()
        if sign[0] == ">":
            return f"{'[' if '=' in sign else '('}{bound}, \\infty)"
        return f"(-\\infty, {bound}{']' if '=' in sign else ')'}"
    return part


def _turned(part: str) -> str:
    """`x > 5` for `5 < x`."""
    if found := re.fullmatch(r"([^<>=]+?) ?(<=?|>=?) ?([a-zA-Z])", part):
        return f"{found[3]} {_REVERSED[found[2]]} {found[1]}"
    return part


def _based(part: str) -> tuple[str, str, int] | None:
    """Sign, digits and base of a number that is written with its base."""
    found = _BASED.fullmatch(part.replace('"', "").strip())
    if found is None:
        return None
    name = (found[3] or found[4]).casefold()
    base = _BASES.index(name) + 2 if name in _BASES else int(name) if re.fullmatch(r"[0-9]{1,2}", name) else 0
    whole, _, fraction = found[2].upper().partition(".")
    # Not a letter with an index, as a_{11}, nor what has no meaning in the base, as 12_2.
    if not re.search(r"[\dA-Z]", found[2]) or not all(_digit(digit) < base for digit in whole + fraction):
        return None
    return found[1], f"{whole.lstrip('0')}.{fraction.rstrip('0')}", base


def _digit(digit: str) -> int:
    return "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ".find(digit) % 37


def _cut(text: str, mark: str) -> list[str]:
    """At every `mark` outside brackets."""
    begin, pieces = 0, []
    for at, depth in enumerate(_depths(text)):
        if depth == 0 and at >= begin and text.startswith(mark, at):
            pieces.append(text[begin:at])
            begin = at + len(mark)
    return [piece.strip() for piece in [*pieces, text[begin:]]]


def _depths(text: str) -> list[int]:
    """For every character how many brackets are open after it."""
    return list(accumulate(int(character in "([{") - int(character in ")]}") for character in text))


def _is_words(part: str) -> bool:
    r"""Letters and nothing mathematical, at least two in a row: `on` is no product. All of a `\text`; a time of day."""
    if _TIME.fullmatch(part):
        return True
    quoted = re.fullmatch(r"\"[^\"]*\"", part) is not None
    plain = re.fullmatch(r"[^\W\d_][\w .:'\"]*", part) is not None and not re.search(r"\d[^\W\d_]|[^\W\d_]\d|_", part)
    return (quoted or plain) and re.search(r"[^\W\d_]{2}", part) is not None


def _folded(words: str) -> str:
    return re.sub(r"[\s\".]", "", words).casefold()


def _readings(part: str) -> list[str]:
    """The part itself, and if it is a number with a unit, the number alone."""
    readings = [part.replace('"', " ").strip()]
    if (found := _NUMBER_AND_UNIT.fullmatch(part)) and re.search(r"\d|\\pi", found[1]):
        words = found[2].replace(".", "").replace('"', " ").casefold().split()
        quoted = found[2].startswith('"')
        if all(quoted or len(word) > 3 or word in _SHORT_UNITS for word in words):
            readings.append(found[1].replace('"', " ").strip())
    return readings
