"""Whether two written mathematical answers say the same: `\\frac{1}{2}`, `0.5`, `1/2` and `$x = 0.5$` do.

An answer is tidied (units, dollar signs, sizes of brackets and the like go), cut at the commas outside brackets, and
each part compared as text or, if it parses, by value: both sides are evaluated at a few complex points. The parser
knows numbers, letters, + - * / ^, implied products, brackets, roots, fractions, |x| and a few functions. Nothing is
executed.
"""

from __future__ import annotations

import cmath
import re
from collections.abc import Callable, Mapping

_GONE = re.compile(
    r"\\(?:left|right|displaystyle|quad|qquad|[!,;: ]|ldots)|\\?%|\\?\$|\^\{?\\circ\}?|\\text(?:bf|rm|it)?\{[^{}]*\}"
    r"|\\mbox\{[^{}]*\}|\\mathrm\{[^{}]*\}"
)
_NAMES = {
    "\\dfrac": "\\frac",
    "\\tfrac": "\\frac",
    "\\cdot": "*",
    "\\times": "*",
    "\\div": "/",
    "\\le": "<=",
    "\\leq": "<=",
    "\\ge": ">=",
    "\\geq": ">=",
    "−": "-",
    "×": "*",
    "\\lbrace": "\\{",
    "\\rbrace": "\\}",
    "\\infty": "oo",
}
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "ln": cmath.log,
    "log": cmath.log10,
    "exp": cmath.exp,
}
_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+|\\[a-zA-Z]+|[a-zA-Z]|[-+*/^()\[\]{}|])")
_POINTS = (0.7312 + 0.2141j, -1.3057 + 0.6229j, 2.2381 - 0.4172j)


def boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{…}` of a solution, its braces balanced."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    depth, begin = 0, text.index("{", start) + 1
    for at in range(begin - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[begin:at]
    return None


def final_answer(text: str) -> str:
    """The answer that a worked solution ends in: what is boxed, or follows "answer is", or the last formula or line."""
    if (found := boxed(text)) is not None:
        return found
    if stated := re.findall(r"answer is:?\s*([^\n]*?)(?:\.\s|\.?$|\.?\n)", text, flags=re.IGNORECASE):
        return stated[-1]
    if formulas := re.findall(r"\$([^$]+)\$", text):
        return formulas[-1]
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def equivalent(answer: str, gold: str) -> bool:
    """Whether two answers say the same; a set in braces may be written in any order."""
    ours, theirs = tidy(answer), tidy(gold)
    if ours == theirs:
        return bool(theirs)
    left, right = _parts(ours), _parts(theirs)
    if len(left) != len(right) or _brackets(ours) != _brackets(theirs):
        return False
    if len(left) > 1 and _brackets(ours) in (("", ""), ("\\{", "\\}")):
        rest = list(right)
        for part in left:
            match = next((other for other in rest if _same(part, other)), None)
            if match is None:
                return False
            rest.remove(match)
        return True
    return all(_same(part, other) for part, other in zip(left, right, strict=True))


def tidy(answer: str) -> str:
    """Without what changes no meaning: dollar signs, units in \\text, spaces, thousands' commas, `x =` in front."""
    for name, plain in _NAMES.items():
        answer = re.sub(
            re.escape(name) + (r"(?![a-zA-Z])" if name[-1].isalpha() else ""), plain.replace("\\", r"\\"), answer
        )
    # An answer that is only a word in \text keeps it.
    words = re.fullmatch(r"\\text(?:bf|rm)?\{([^{}]*)\}", answer.strip(" $."))
    answer = words[1] if words else _GONE.sub("", answer)
    answer = re.sub(r"(?<![\d(\[,.])\d{1,3}(?:,\d{3})+(?!\d)", lambda number: number[0].replace(",", ""), answer)
    answer = (
        re.sub(r"\s+", "", answer).rstrip(".").lower() if words else re.sub(r"\s+", " ", answer).strip().rstrip(".")
    )
    answer = re.sub(r"^[a-zA-Z](?:\([a-z]\))?\s*(?:=|\\in(?![a-z]))\s*", "", answer)
    if re.search(r"(?<!\\)\b[a-zA-Z]{2,} [a-zA-Z]{2}", answer):
        return answer  # words
    return re.sub(r"(?<!\\[a-zA-Z]) (?![a-zA-Z])|(?<![a-zA-Z]) ", "", answer)


def _brackets(answer: str) -> tuple[str, str]:
    """The bracket around a whole tuple, interval or set; ('', '') for anything else."""
    opening = next((mark for mark in ("\\{", "(", "[") if answer.startswith(mark)), "")
    closing = next((mark for mark in ("\\}", ")", "]") if answer.endswith(mark)), "")
    inner = answer[len(opening) : len(answer) - len(closing)]
    return (opening, closing) if opening and closing and len(_cut_at_commas(inner)) > 1 else ("", "")


def _parts(answer: str) -> list[str]:
    opening, closing = _brackets(answer)
    return _cut_at_commas(answer[len(opening) : len(answer) - len(closing)])


def _cut_at_commas(text: str) -> list[str]:
    depth, parts = 0, [""]
    for character in text:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _same(left: str, right: str) -> bool:
    if left == right:
        return True
    try:
        first, second = _Parser(left).whole(), _Parser(right).whole()
    except (SyntaxError, RecursionError):
        return False
    try:
        for point in _POINTS:
            values = {chr(letter): point * (1 + 0.1 * (letter - ord("a"))) for letter in range(ord("A"), ord("z") + 1)}
            a, b = first(values), second(values)
            if not cmath.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9):
                return False
    except (ArithmeticError, ValueError):
        return False
    return True


Value = Callable[[Mapping[str, complex]], complex]


class _Parser:
    """Recursive descent: sum, product, power, atom. Raises SyntaxError for what it does not know."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise SyntaxError(text)
            self.tokens.append(match[1])
            at = match.end()
        self.at = 0

    def whole(self) -> Value:
        value = self.sum()
        if self.at < len(self.tokens) or not self.tokens:
            raise SyntaxError("a rest is left")
        return value

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str | None = None) -> str:
        token = self.peek()
        if not token or (wanted is not None and token != wanted):
            raise SyntaxError(f"{token!r} in place of {wanted!r}")
        self.at += 1
        return token

    def sum(self) -> Value:
        value = self.product()
        while self.peek() in ("+", "-"):
            value = _binary(self.take(), value, self.product())
        return value

    def product(self) -> Value:
        value = self.signed()
        while (token := self.peek()) and token not in ("+", "-", ")", "]", "}", "|"):
            if token in ("*", "/"):
                value = _binary(self.take(), value, self.signed())
            else:
                # 3\\frac{1}{2} is a mixed number when digits stand before it, an implied product else.
                mixed = token == "\\frac" and self.tokens[self.at - 1].isdigit()
                value = _binary("+" if mixed else "*", value, self.power())
        return value

    def signed(self) -> Value:
        if self.peek() in ("+", "-"):
            return _binary(self.take(), lambda _: 0j, self.signed())
        return self.power()

    def power(self) -> Value:
        base = self.atom()
        if self.peek() == "^":
            self.take()
            return _binary("^", base, self.signed())
        return base

    def atom(self) -> Value:
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            number = float(token)
            return lambda _: complex(number)
        if token in ("(", "[", "{", "|"):
            inner = self.sum()
            self.take({"(": ")", "[": "]", "{": "}", "|": "|"}[token])
            return inner if token != "|" else lambda values: complex(abs(inner(values)))
        if token == "\\pi":
            return lambda _: complex(cmath.pi)
        if token in ("\\frac", "\\binom"):
            above, below = self.argument(), self.argument()
            if token == "\\binom":
                raise SyntaxError(token)
            return _binary("/", above, below)
        if token == "\\sqrt":
            degree: Value = lambda _: 2 + 0j  # noqa: E731
            if self.peek() == "[":
                self.take()
                degree = self.sum()
                self.take("]")
            radicand = self.argument()
            return _binary("^", radicand, _binary("/", lambda _: 1 + 0j, degree))
        if token.removeprefix("\\") in _FUNCTIONS and token.startswith("\\"):
            function, argument = _FUNCTIONS[token[1:]], self.power()
            return lambda values: function(argument(values))
        if len(token) == 1 and token.isalpha():
            return lambda values: values[token]
        raise SyntaxError(token)

    def argument(self) -> Value:
        r"""What follows \frac or \sqrt: a group in braces, or one digit as in \frac12."""
        token = self.peek()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = list(token)
        return self.atom()


def _binary(operator: str, left: Value, right: Value) -> Value:
    match operator:
        case "+":
            return lambda values: left(values) + right(values)
        case "-":
            return lambda values: left(values) - right(values)
        case "*":
            return lambda values: left(values) * right(values)
        case "/":
            return lambda values: left(values) / right(values)
        case _:
            return lambda values: _power(left(values), right(values))


def _power(base: complex, exponent: complex) -> complex:
    if abs(exponent) > 1000:
        raise OverflowError("an exponent beyond 1000")
    return complex(base**exponent)
