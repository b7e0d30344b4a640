r"""Whether two written mathematical answers say the same: `\frac{1}{2}`, `0.5`, `1/2` and `$x = 0.5$` do.

An answer is brought into one spelling, and cut at its commas, "and"s and "or"s into parts. The order of a list, a set
or a union does not count; that of a tuple, an interval, a matrix or a ratio does. Parts that are words are compared as
text, whatever their case; the others as text or, if they parse, by value. A unit after a number does not count, as in
MATH's own gold answers; a base does. A single letter is a variable, its case counts. An inequality of one letter is an
interval, a set or union by itself is the list of its elements, and `x = 1, y = 2` is the pair (1, 2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from shardscope.evals.math_spelling import tidy
from shardscope.evals.math_values import same_equation, same_value

LONGEST = 300  # characters; the longest gold answer of MATH has 81. Beyond, only the same text is the same answer.

# "x =", "f(x) =", "P(A) =", "x_1 =", "AB =", "\\theta =", "(x, y) =", "area =", "x \\in" in front, or "= x" behind.
_NAME = (
    r"(?:m ?)?(?:\\(?:angle|triangle) ?)?"
    r"(?:\"?[a-zA-Z]\"?(?:_\w|_\{\w+\})?'?(?:\^\{-1\})?(?:\([a-zA-Z](?:, ?[a-zA-Z])*\))?|\|?[A-Z]{2,3}\|?|\[[A-Z]{3,}\]"
    r"|\\(?!frac|sqrt|pi|in|pm|infty)[a-z]+(?:\{[a-zA-Z]+\})?|\([a-zA-Z](?:, ?[a-zA-Z])+\)"
    r"|\"[a-zA-Z ]{3,}\"|(?:[A-Za-z][a-z]{3,}|[Mm]ax|[Mm]in|[Ss]um)(?: [a-z]{2,})*)"
)
_DECLARED = re.compile(rf"^{_NAME}\s*(?:=|\\approx(?![a-z])|\\in(?![a-z]))\s*")
_COMPUTED = re.compile(r"^[-+*/^().\d\s]*[-+*/^][-+*/^().\d\s]*= ?(?=[-\d.]+$)")  # `2 + 3 = 5`
_DECLARED_BEHIND = re.compile(r"(?<=[\d)}])\s*=\s*[a-zA-Z]$")
# Of one letter: `x > 5`, `5 < x`, `2 < x \\le 7`. Each is an interval.
_BOUNDED_ONE_SIDE = re.compile(r"([a-zA-Z]) ?(<=?|>=?) ?([^<>=a-zA-Z]+(?:\\[a-z]+[^<>=]*)?)")
_BOUNDED_TWO_SIDES = re.compile(r"([^<>=]+?) ?(<=?) ?[a-zA-Z] ?(<=?) ?([^<>=]+)")
_BOUNDED_FROM_ABOVE = re.compile(r"([^<>=]+?) ?(>=?) ?([a-zA-Z]) ?(>=?) ?([^<>=]+)")
_ALL_BUT_ONE = re.compile(r"[a-zA-Z]\s*\\ne\s*([-\d./]+|-?\\frac\{\d+\}\{\d+\})")
# `\\{x \\in \\mathbb{R} | x > 5\\}` is what stands behind the bar.
_SET_OF_ALL = re.compile(r"\\\{ ?[a-zA-Z](?: ?\\in ?[^|:]*)? ?[|:] ?(.*[<>\\].*?) ?\\\}")
_RELATION = re.compile(r"\s*(<=|>=|<|>|=|\\ne(?![a-z]))\s*")
_REVERSED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", r"\ne": r"\ne"}
_NAMED = re.compile(r"([a-zA-Z]) ?= ?([^=<>]+)")
_TO = re.compile(r"(?<=[\d)}]) to (?=[-\d(\\])")
_CLOCK = re.compile(r"(?:1?\d|2[0-3]):[0-5]\d")
_MODULUS = re.compile(r"(.+?)\s*\(?\\?[pb]?mod\s*[{(]*\s*(\w+)\s*[)}]*")
# A number with its base: `101_2`, `101_{2}`, `(101)_{\\text{two}}`, `101 \\text{ (base 2)}`.
_BASED = re.compile(
    r"(-?) ?[({]? ?([\dA-Za-z]*\.?[\dA-Za-z]+) ?[)}]? ?"
    r"(?:_ ?[{(]{0,2} ?(?:base)? ?(\w+) ?[)}]{0,2}|[( ]{0,3}base[ -]{0,3}(\w+) ?\)?)"
)
_BASES = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_MATRIX = re.compile(r"\\begin\{([pbBvV]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_NESTED_LISTS = re.compile(r"\[ ?\[[^\[\]]*\](?:, ?\[[^\[\]]*\])* ?\]")
_BRACKETS = re.compile(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", re.DOTALL)
# A number, and behind it either what stood in \text or plain words; an exponent belongs to the unit.
_NUMBER_AND_UNIT = re.compile(r"(.*(?:[\d)}]|\\pi))\s*(\"[^\"]*\"|(?<=[\s)}])[a-zA-Z][a-zA-Z./ ]*)(?:\s*\^\{?\d\}?)?")
_TIME = re.compile(r"\d[\d:]*[ \"]*[ap]\.? ?m\.?[ \"]*", re.IGNORECASE)
_SHORT_UNITS = frozenset(
    "mm cm km m ft in yd mi mph kph mg gm kg g lb lbs oz ml l hr hrs h min s sec day deg sq cu per".split()  # noqa: SIM905
)


def equivalent(answer: str, gold: str) -> bool:
    """Whether two answers say the same. Any text may be an answer; nothing in it is executed, nothing in it raises."""
    if max(len(answer), len(gold)) > LONGEST:
        return answer.strip() == gold.strip()
    ours, theirs = _elements(tidy(answer)), _elements(tidy(gold))
    if not ours or not theirs:
        return False
    first, second = _by_name(ours, theirs), _by_name(theirs, ours)
    return _in_order(first, second) if first and second else _in_any_order(ours, theirs)


def _by_name(parts: list[str], others: list[str]) -> list[str] | None:
    """The values of `x = 1, y = 2` in the order of their names; of a tuple beside such a list, its parts."""

    def named(several: list[str]) -> dict[str, str]:
        found = [_NAMED.fullmatch(part) for part in several]
        pairs = {pair[1]: pair[2] for pair in found if pair}
        return pairs if len(pairs) == len(several) > 1 else {}

    if values := named(parts):
        return [values[name] for name in sorted(values)]
    several = _bracketed(_meaning(parts[0])) if len(parts) == 1 and named(others) else None
    return several.parts if several and several.kind == "()" else None


def _same(left: str, right: str) -> bool:
    """Whether two parts say the same, whatever they are."""
    if left == right or _same_equation(left, right):
        return True
    return _same_meaning(_meaning(left), _meaning(right))


def _same_meaning(left: str, right: str) -> bool:
    """Of two parts without their names."""
    if left == right:
        return True
    if _based(left) or _based(right):
        return _based(left) == _based(right)
    if _is_words(left) or _is_words(right):
        return _folded(left) == _folded(right)
    if _ratio(left) or _ratio(right):
        return _same_ratio(left, right)
    if _modulus(left) or _modulus(right):
        return _same_residue(left, right)
    if _is_tuple(left) or _is_tuple(right):
        left, right = _vector(left) or left, _vector(right) or right
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
    return False


def _same_equation(left: str, right: str) -> bool:
    """Whether both are equations, and the same one, as `y = 2x + 3` and `2x - y + 3 = 0` are."""
    first, second = _RELATION.split(left), _RELATION.split(right)
    equations = first[1::2] == second[1::2] == ["="]
    return equations and same_equation((first[0], first[2]), (second[0], second[2]))


def _same_ratio(left: str, right: str) -> bool:
    """`1:2` is 2:4 and 1/2; a time of day is itself only."""
    if _CLOCK.fullmatch(left) and _CLOCK.fullmatch(right):
        return left.lstrip("0") == right.lstrip("0")
    ours, theirs = _ratio(left) or [left, "1"], _ratio(right) or [right, "1"]
    if same_value(ours[0], "0"):
        return _in_order(ours, theirs)
    crossed = [(f"({a})({theirs[0]})", f"({b})({ours[0]})") for a, b in zip(ours[1:], theirs[1:], strict=False)]
    return len(ours) == len(theirs) and all(same_value(*products) for products in crossed)


def _same_residue(left: str, right: str) -> bool:
    """The modulus need not be repeated; a different one counts."""
    (ours, of), (theirs, other) = _modulus(left) or (left, ""), _modulus(right) or (right, "")
    return (not of or not other or of == other) and _same(ours, theirs)


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
    if _NESTED_LISTS.fullmatch(part):
        rows, kind = [row.split(",") for row in re.findall(r"\[([^\[\]]*)\]", part)], "matrix"
    elif found := _MATRIX.fullmatch(part):
        rows = [row.split("&") for row in found[2].strip().split("\n")]
        kind = "determinant" if found[1][0] in "vV" else "matrix"
    else:
        return None
    return _Several(f"{kind} {[len(row) for row in rows]}", [cell.strip() for row in rows for cell in row])


def _bracketed(part: str) -> _Several | None:
    """A tuple, an interval or a set; a bracket around a single value, or several brackets in a row, are neither."""
    found = _BRACKETS.fullmatch(part)
    if found is None or min(_depths(found[2]), default=0) < 0:
        return None
    inner = _parts(found[2])
    return _Several(found[1] + found[3], inner) if len(inner) > 1 or found[1] == "\\{" else None


def _vector(part: str) -> str | None:
    """A matrix of a single column as a tuple."""
    found = _matrix(part)
    is_column = found is not None and re.fullmatch(r"matrix \[1(?:, 1)+\]", found.kind)
    return f"({', '.join(found.parts)})" if found and is_column else None


def _is_tuple(part: str) -> bool:
    found = _bracketed(part)
    return found is not None and found.kind == "()"


def _parts(text: str) -> list[str]:
    r"""What stands between the commas outside brackets; `a \pm b` is two parts."""
    found = []
    for part in _cut(text, ","):
        part = part if "\\pm" in part else part.replace("\\mp", "\\pm")
        signs = "+-" if part.count("\\pm") == 1 else [r"\pm"]
        found += [part.replace("\\pm", sign).strip() for sign in signs]
    return [part for part in found if part]


def _elements(text: str) -> list[str]:
    r"""The parts; if they are one set or union, its own: `{1, 2}` and `1, 2`, `x < 1 \text{ or } x > 2` and a union."""
    parts = _parts(text)
    if len(parts) != 1:
        return parts
    meaning = _meaning(parts[0])
    several = _union(meaning) or _bracketed(meaning)
    return several.parts if several and several.kind in ("union", "\\{\\}") else parts


def _meaning(part: str) -> str:
    """Without "x =" in front; as an interval, if it is an inequality of one letter."""
    part = _COMPUTED.sub("", _DECLARED_BEHIND.sub("", _DECLARED.sub("", part)))
    set_of_all = _SET_OF_ALL.fullmatch(part)
    return _interval(set_of_all[1] if set_of_all else part).strip()


def _interval(part: str) -> str:
    r"""`2 < x \le 7` as `(2, 7]`, `x \ne 2` as the union of what is left; anything else as it is."""
    if found := _BOUNDED_FROM_ABOVE.fullmatch(part):
        part = "".join((found[5], _REVERSED[found[4]], found[3], _REVERSED[found[2]], found[1]))
    if found := _ALL_BUT_ONE.fullmatch(part):
        return rf"(-\infty, {found[1]}) \cup ({found[1]}, \infty)"
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


def _ratio(part: str) -> list[str] | None:
    """What stands between the colons, or the "to"s, of a ratio."""
    plain = _TO.sub(":", part)
    terms = _cut(plain, ":")
    has_words = re.search(r"[<>=\"]|[a-zA-Z]{3}", re.sub(r"\\[a-zA-Z]+", "", plain))
    return terms if len(terms) > 1 and all(terms) and not has_words else None


def _modulus(part: str) -> tuple[str, str] | None:
    r"""(5, 7) of `5 \pmod{7}`."""
    found = _MODULUS.fullmatch(part)
    return (found[1], found[2]) if found else None


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
        words = re.sub(r"[\"/]", " ", found[2].replace(".", "")).casefold().split()
        quoted = found[2].startswith('"')
        if all(quoted or len(word) > 3 or word in _SHORT_UNITS for word in words):
            readings.append(found[1].replace('"', " ").strip())
    return readings
