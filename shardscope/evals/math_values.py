r"""Whether two formulas have the same value. Both are evaluated at a few points; nothing is executed.

A point gives every letter but e and i a complex number of its own. What is rational is computed exactly, the rest in
float64. The parser knows numbers, Latin and Greek letters, + - * / ^, implied products, mixed numbers, brackets,
roots, fractions, |x| and a few functions. Two numbers side by side (`2 3`) are no product, and have no value.
"""

from __future__ import annotations

import cmath
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from math import factorial, floor, isclose
from random import Random
from string import ascii_letters
from typing import Any

Number = Fraction | complex
Value = Callable[[Mapping[str, complex]], Number]  # of the point at which it is evaluated

LARGEST = 10_000  # bits of a power that is computed exactly
LARGEST_FACTORIAL = 3_000
_ROUNDING = 1e-13  # of what a sum is made of; a smaller sum is zero

_FUNCTIONS: dict[str, Callable[[Any], Number]] = {
    "sin": lambda x: _rounded(cmath.sin(x), 1),
    "cos": lambda x: _rounded(cmath.cos(x), 1),
    "tan": lambda x: _rounded(cmath.tan(x), 1),
    "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "ln": cmath.log,
    "log": cmath.log10,
    "lg": cmath.log10,
    "exp": cmath.exp,
}
_GREEK = ("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "varphi", "omega", "rho", "tau", "infty")
_SYMBOLS = (*ascii_letters, *_GREEK)
_INVERSES = {"sin": cmath.asin, "cos": cmath.acos, "tan": cmath.atan}
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_TOKEN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+|\\[a-zA-Z]+|[a-zA-Z]|[-+*/^_()\[\]{}|!])")
# `\frac 1 2` is `\frac12`, and `1 1/2` is 1.5.
_SPACED_FRACTION = re.compile(r"(\\frac\s*\d)\s+(?=\d)")
_BASE_OF_A_LOGARITHM = re.compile(r"(\\log\s*_\s*)(\w)")
_MIXED_NUMBER = re.compile(r"(?<![\d./^])(\d+)\s+(\d+/\d+)(?!\s*[\d./^])")
_SIDE_BY_SIDE = re.compile(r"[\d.]\s+[\d.]|\.\d*\.")
_SIMPLE_FRACTION = re.compile(r"\\frac(?:\{\d+\}|\d)(?:\{\d+\}|\d)")
_POINTS = [
    {symbol: complex(draw.uniform(-2, 2), draw.uniform(-2, 2)) for symbol in _SYMBOLS}
    | {"i": 1j, "e": complex(cmath.e)}
    for draw in map(Random, range(3))
]


def same_value(left: str, right: str) -> bool:
    """False, too, for what does not parse, divides by zero, or is too large or too deeply nested to evaluate."""
    try:
        first, second = _Parser(left).whole(), _Parser(right).whole()
        return all(_close(first(point), second(point)) for point in _POINTS)
    except (SyntaxError, ArithmeticError, ValueError, RecursionError):
        return False


def same_equation(left: tuple[str, str], right: tuple[str, str]) -> bool:
    """Whether the differences of two equations' sides are proportional, as of `x - y = 1` and `2y = 2x - 2`."""
    try:
        first, second = (_binary("-", _Parser(one).whole(), _Parser(other).whole()) for one, other in (left, right))
        ratios = [_binary("/", first, second)(point) for point in _POINTS]
        return _size(ratios[0]) > 0 and all(_close(complex(ratios[0]), complex(ratio)) for ratio in ratios)
    except (SyntaxError, ArithmeticError, ValueError, RecursionError):
        return False


def _close(a: Number, b: Number) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b  # exactly: 1000000 is not 1000001, and 10^{-12} is not 0
    if not (cmath.isfinite(a) and cmath.isfinite(b)):
        raise OverflowError("not a finite value")
    return cmath.isclose(a, b, rel_tol=1e-10)


class _Parser:
    """Recursive descent: sum, product, power, atom. Raises SyntaxError for what it does not know."""

    def __init__(self, text: str) -> None:
        text = _MIXED_NUMBER.sub(r"(\1+\2)", _SPACED_FRACTION.sub(r"\1", text))
        text = _BASE_OF_A_LOGARITHM.sub(r"\1{\2}", text)
        if _SIDE_BY_SIDE.search(text):
            raise SyntaxError(text)
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
        while (token := self.peek()) and token not in ("+", "-", *_CLOSING.values()):
            if token in ("*", "/"):
                value = _binary(self.take(), value, self.signed())
            else:
                value = _binary("*", value, self.power())
        return value

    def signed(self) -> Value:
        if self.peek() in ("+", "-"):
            return _binary(self.take(), lambda _: Fraction(0), self.signed())
        return self.power()

    def power(self) -> Value:
        base = self.mixed_number() or self.atom()
        while self.peek() in ("!", "\\degree"):
            base = _factorial(base) if self.take() == "!" else _binary("*", base, _DEGREE)
        return _binary("^", base, self.exponent()) if self.peek() == "^" else base

    def exponent(self) -> Value:
        self.take("^")
        if self.peek() in ("+", "-"):
            return _binary(self.take(), lambda _: Fraction(0), self.atom())
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
            number = Fraction(token)
            return lambda _: number
        if token in _CLOSING:
            inner = self.sum()
            self.take(_CLOSING[token])
            around = {"|": _size, "\\lfloor": _floor, "\\lceil": lambda x: -_floor(-x)}.get(token)
            return inner if around is None else lambda point: around(inner(point))
        if token == "\\pi":
            return lambda _: complex(cmath.pi)
        if token == "\\frac":
            return _binary("/", self.argument(), self.argument())
        if token == "\\binom":
            above, below = self.argument(), self.argument()
            rest = _factorial(_binary("-", above, below))
            return _binary("/", _factorial(above), _binary("*", _factorial(below), rest))
        if token == "\\sqrt":
            return self.root()
        if token == "\\" + name and name in _FUNCTIONS:
            return self.function(name)
        if name in _SYMBOLS:
            return lambda point: point[name]
        raise SyntaxError(token)

    def root(self) -> Value:
        degree: Value = lambda _: Fraction(2)  # noqa: E731
        if self.peek() == "[":
            self.take()
            degree = self.sum()
            self.take("]")
        return _binary("^", self.argument(), _binary("/", lambda _: Fraction(1), degree))

    def function(self, name: str) -> Value:
        r"""Of a bracket, or of all factors up to the next sign, slash or function: `\sin 2x` is the sine of 2x.

        `\log_2` has its base behind it, and `\sin^{-1}` is the arcsine, as people write it.
        """
        function, base = _FUNCTIONS[name], None
        if self.peek() == "_" and name == "log":
            self.take()
            function, base = cmath.log, self.argument()
        exponent: Value = lambda _: Fraction(1)  # noqa: E731
        if self.peek() == "^":
            is_inverse = self.tokens[self.at + 1 : self.at + 5] == ["{", "-", "1", "}"] and name in _INVERSES
            exponent = self.exponent()
            if is_inverse:
                function, exponent = _INVERSES[name], lambda _: Fraction(1)
        bracket = self.peek() in ("(", "[", "{", "|")
        argument = self.power()
        while not bracket and self.peek() and self.peek() not in "+-*/)]}|" and self.peek()[1:] not in _FUNCTIONS:
            argument = _binary("*", argument, self.power())
        value: Value = lambda point: function(argument(point))  # noqa: E731
        if base is not None:
            value = _binary("/", value, lambda point: cmath.log(base(point)))
        return _binary("^", value, exponent)

    def argument(self) -> Value:
        r"""What follows \frac or \sqrt: a group in braces, or one digit as in \frac12."""
        token = self.peek()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = list(token)
        return self.atom()


def _binary(operator: str, left: Value, right: Value) -> Value:
    match operator:
        case "+":
            return lambda point: _sum(left(point), right(point))
        case "-":
            return lambda point: _sum(left(point), -right(point))
        case "*":
            return lambda point: left(point) * right(point)
        case "/":
            return lambda point: left(point) / right(point)
        case _:
            return lambda point: _power(left(point), right(point))


_DEGREE: Value = lambda _: complex(cmath.pi / 180)  # noqa: E731


def _floor(number: Number) -> Fraction:
    """Raises ValueError for what is not real, as letters are not."""
    if isinstance(number, Fraction):
        return Fraction(floor(number))
    if abs(number.imag) > _ROUNDING * abs(number):
        raise ValueError("only real numbers are rounded down")
    nearest = round(number.real)
    return Fraction(nearest if isclose(nearest, number.real, rel_tol=1e-12) else floor(number.real))


def _factorial(value: Value) -> Value:
    def of(point: Mapping[str, complex]) -> Number:
        number = value(point)
        if not isinstance(number, Fraction) or number.denominator != 1 or not 0 <= number <= LARGEST_FACTORIAL:
            raise ValueError(f"only whole numbers up to {LARGEST_FACTORIAL} have a factorial here")
        return Fraction(factorial(number.numerator))

    return of


def _sum(a: Number, b: Number) -> Number:
    return _rounded(a + b, max(_size(a), _size(b)))


def _rounded(number: Number, of: Fraction | float) -> Number:
    r"""Zero for what is left of terms of size `of` when they cancel but for rounding, as in `\sqrt2\sqrt2 - 2`."""
    return number if isinstance(number, Fraction) or abs(number) >= _ROUNDING * of else Fraction(0)


def _size(number: Number) -> Fraction | float:
    size: Any = abs(number)
    return size  # type: ignore[no-any-return]


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent) > LARGEST:
            raise OverflowError(f"a power of more than {LARGEST} bits")
    elif _size(exponent) > 1000:
        raise OverflowError("an exponent beyond 1000")
    return base**exponent
