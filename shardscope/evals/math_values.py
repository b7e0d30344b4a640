r"""Whether two formulas have the same value. Both are evaluated at a few complex points; nothing is executed.

The parser knows numbers, Latin and Greek letters, + - * / ^, implied products, mixed numbers, brackets, roots,
fractions, |x| and a few functions.
"""

from __future__ import annotations

import cmath
import re
from collections.abc import Callable
from fractions import Fraction
from string import ascii_letters

Value = Callable[[complex], complex]  # of the point at which it is evaluated

_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "ln": cmath.log,
    "log": cmath.log10,
    "exp": cmath.exp,
}
_GREEK = ("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "varphi", "omega", "rho", "tau", "infty")
_SYMBOLS = (*ascii_letters, *_GREEK)
_TOKEN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+|\\[a-zA-Z]+|[a-zA-Z]|[-+*/^()\[\]{}|])")
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)")
_SIMPLE_FRACTION = re.compile(r"\\frac(?:\{\d+\}|\d)(?:\{\d+\}|\d)")
_POINTS = (0.7312 + 0.2141j, -1.3057 + 0.6229j, 2.2381 - 0.4172j)


def same_value(left: str, right: str) -> bool:
    """False, too, for what does not parse, divides by zero, or is too large or too deeply nested to evaluate."""
    if _NUMBER.fullmatch(left) and _NUMBER.fullmatch(right):
        return Fraction(left) == Fraction(right)  # exactly: 1000000 is not 1000001
    try:
        first, second = _Parser(left).whole(), _Parser(right).whole()
        return all(_close(first(point), second(point)) for point in _POINTS)
    except (SyntaxError, ArithmeticError, ValueError, RecursionError):
        return False


def _close(a: complex, b: complex) -> bool:
    if not (cmath.isfinite(a) and cmath.isfinite(b)):
        raise OverflowError("not a finite value")
    return cmath.isclose(a, b, rel_tol=1e-10, abs_tol=1e-10)


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
        if self.at < len(self.tokens):
            raise SyntaxError("a rest is left")
        return value

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        token = self.peek()
        if not token or (wanted and token not in wanted):
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
                value = _binary("*", value, self.power())
        return value

    def signed(self) -> Value:
        if self.peek() in ("+", "-"):
            return _binary(self.take(), lambda _: 0j, self.signed())
        return self.power()

    def power(self) -> Value:
        base = self.mixed_number() or self.atom()
        return _binary("^", base, self.exponent()) if self.peek() == "^" else base

    def exponent(self) -> Value:
        self.take("^")
        if self.peek() in ("+", "-"):
            return _binary(self.take(), lambda _: 0j, self.atom())
        return self.atom()

    def mixed_number(self) -> Value | None:
        r"""`3\frac{1}{2}` is 3.5, not a product."""
        if self.peek().isdigit() and _SIMPLE_FRACTION.match("".join(self.tokens[self.at + 1 : self.at + 8])):
            return _binary("+", self.atom(), self.atom())
        return None

    def atom(self) -> Value:
        token = self.take()
        name = token.removeprefix("\\")
        if token[0].isdigit() or token[0] == ".":
            number = float(token)
            return lambda _: complex(number)
        if token in ("(", "[", "{", "|"):
            inner = self.sum()
            self.take({"(": ")", "[": "]", "{": "}", "|": "|"}[token])
            return inner if token != "|" else lambda point: complex(abs(inner(point)))
        if token == "\\pi":
            return lambda _: complex(cmath.pi)
        if token == "\\frac":
            return _binary("/", self.argument(), self.argument())
        if token == "\\sqrt":
            return self.root()
        if token == "\\" + name and name in _FUNCTIONS:
            return self.function(_FUNCTIONS[name])
        if name in _SYMBOLS:
            place = 1 + 0.1 * _SYMBOLS.index(name)
            return lambda point: point * place
        raise SyntaxError(token)

    def root(self) -> Value:
        degree: Value = lambda _: 2 + 0j  # noqa: E731
        if self.peek() == "[":
            self.take()
            degree = self.sum()
            self.take("]")
        return _binary("^", self.argument(), _binary("/", lambda _: 1 + 0j, degree))

    def function(self, function: Callable[[complex], complex]) -> Value:
        r"""Of a bracket, or of all factors up to the next sign, slash or function: `\sin 2x` is the sine of 2x."""
        exponent: Value = self.exponent() if self.peek() == "^" else lambda _: 1 + 0j
        bracket = self.peek() in ("(", "[", "{", "|")
        argument = self.power()
        while not bracket and self.peek() and self.peek() not in "+-*/)]}|" and self.peek()[1:] not in _FUNCTIONS:
            argument = _binary("*", argument, self.power())
        return _binary("^", lambda point: function(argument(point)), exponent)

    def argument(self) -> Value:
        r"""What follows \frac or \sqrt: a group in braces, or one digit as in \frac12."""
        token = self.peek()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = list(token)
        return self.atom()


def _binary(operator: str, left: Value, right: Value) -> Value:
    match operator:
        case "+":
            return lambda point: left(point) + right(point)
        case "-":
            return lambda point: left(point) - right(point)
        case "*":
            return lambda point: left(point) * right(point)
        case "/":
            return lambda point: left(point) / right(point)
        case _:
            return lambda point: _power(left(point), right(point))


def _power(base: complex, exponent: complex) -> complex:
    if abs(exponent) > 1000:
        raise OverflowError("an exponent beyond 1000")
    return complex(base**exponent)
