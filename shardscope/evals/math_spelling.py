r"""One spelling for each of the many ways to write a mathematical answer: `½`, `\dfrac12` and `\frac {1} {2}` are one.

Only what changes no meaning is changed: dress (dollar signs, boxes, bold, colours), thousands' separators, names that
LaTeX, Unicode and keyboards have for the same sign, and the words and signs of money, degrees and percents.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from shardscope.evals.math_solutions import boxed

_GONE = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|large|Large|small|bf|rm|it|q?quad|textdollar|mathdollar|pounds)"
    r"(?![a-zA-Z])|\\(?:[hv]space\*?|h?phantom|color)\{[^{}]*\}|\\!"
    r"|\\?%|\\?\$|[€£¥¢]|\\[()\[\]]|\""
    r"|(?<![a-zA-Z])(?:USD|EUR|GBP)(?![a-zA-Z])"
    r"|(?<=\d)\^(?:o(?![a-zA-Z])|\{o\}|\{\\(?:text|mathrm)\{o\}\})"
    r"|(?<=\d)(?:st|nd|rd|th|\^\{?(?:st|nd|rd|th)\}?|\^\{?\\(?:text|mbox|mathrm)\{(?:st|nd|rd|th)\}\}?)(?![a-zA-Z])"
)
_NEW_ROW = re.compile(r"\\\\(?:\s*\[-?[\d.]+ ?[a-z]{2}\])?")
# `1\,234`, `1 234`, `1'234`: groups of three.
_THIN_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,;: ]|~|,\s*\\!\s*)(?=\d{3}(?!\d))")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,] )(?<![\d.,])[1-9]\d{0,2}(?:([ '’])\d{3})(?:\1\d{3})*(?![\d'’])(?! \d)")
_THOUSANDS = re.compile(r"(?<![\d(\[,.])\d{1,3}(?:,\d{3})+(?!\d)")
_SPACES = re.compile(r"\\[,;: ]|~|\s+")
_DEGREE = r"\^? ?\{? ?(?:\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])|[°º˚]) ?\}?(?: ?[CF](?![a-zA-Z]))?"
_TRIGONOMETRY = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_UNICODE = {
    "−": "-",
    "–": "-",
    "×": "*",
    "·": "*",
    "⋅": "*",
    "÷": "/",
    "⁄": "/",
    "∶": ":",
    "≤": "<=",
    "⩽": "<=",
    "≥": ">=",
    "⩾": ">=",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∞": r"\infty ",
    "√": r"\sqrt",
    "∛": r"\sqrt[3]",
    "∪": r"\cup ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R}",
    "∠": r"\angle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "⟨": "(",
    "⟩": ")",
    "…": r"\ldots ",
    **{
        letter: rf"\{name} "
        for letter, name in zip(
            "αβγδθλμπρτφω",
            ("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "pi", "rho", "tau", "phi", "omega"),
            strict=True,
        )
    },
}
_NAMES = {
    r"\\[dtc]frac(?![a-zA-Z])|\\(?:nice|s)frac(?![a-zA-Z])": r"\\frac",
    r"\\(?:cdot|times|ast)(?![a-zA-Z])": "*",
    r"\\div(?![a-zA-Z])": "/",
    r"\\colon(?![a-zA-Z])": ":",
    r"\\[pb]mod(?![a-zA-Z])": r"\\mod",
    r"\\le(?:q|qslant)?(?![a-zA-Z])": "<=",
    r"\\ge(?:q|qslant)?(?![a-zA-Z])": ">=",
    r"\\lt(?![a-zA-Z])": "<",
    r"\\gt(?![a-zA-Z])": ">",
    r"\\neq(?![a-zA-Z])|\\not ?=|!=": r"\\ne ",
    r"\\lbrace(?![a-zA-Z])": r"\\{",
    r"\\rbrace(?![a-zA-Z])": r"\\}",
    r"\\(?:[lr]?vert|mid)(?![a-zA-Z])": "|",
    r"\\lbrack(?![a-zA-Z])": "[",
    r"\\rbrack(?![a-zA-Z])": "]",
    r"\\langle(?![a-zA-Z])": "(",
    r"\\rangle(?![a-zA-Z])": ")",
    r"(?<![\\a-zA-Z])(?:inf|infty|infinity)(?![a-zA-Z])|\\infin(?![a-zA-Z])": r"\\infty",
    r"(?<=[)\]}]) ?U ?(?=[(\[\\])": r"\\cup ",
    r"\\varnothing(?![a-zA-Z])|\\\{ ?\\\}": r"\\emptyset",
    r"\\(?:mathbb|Bbb|mathbf) ?(?:\{R\}|R)(?![a-zA-Z])|\\R(?:eals)?(?![a-zA-Z])": r"(-\\infty, \\infty)",
    r"\+/?-|\\plusmn(?![a-zA-Z])": r"\\pm ",
    r"\*\*": "^",
    r";": ",",
    r"(?<=\d)\+? ?\band a half\b": r" 1/2",
    r"(?<=\d) ?[xX] ?(?=10 ?\^)": "*",
    r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![\w.])": r"\1*10^{\2}",
    r"\\(?:overline|overbar)\{(\w+)\}(?=_)": r"\1",
    r"\\overrightarrow(?![a-zA-Z])": r"\\vec",
    r"\\surd(?![a-zA-Z])": r"\\sqrt",
    r"\\root ?\{?(\w)\}? ?\\of ?(\{[^{}]*\}|\w)": r"\\sqrt[\1]{\2}",
    r"\^\{?(\d+)\}? ?/ ?_\{?(\d+)\}?": r"\\frac{\1}{\2}",
    r"\\begin\{(?:array\}(?:\{[clr| ]*\})?|smallmatrix\})": r"\\begin{matrix}",
    r"\\end\{(?:array|smallmatrix)\}": r"\\end{matrix}",
    r"\\[pb]?matrix\{([^{}]*)\}": r"\\begin{matrix}\1\\end{matrix}",
    r"[(\[] ?(\\begin\{matrix\}[^()\[\]]*\\end\{matrix\}) ?[)\]]": r"\1",
    r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}": r"\\frac{\1}{\2}",
    r"^([^{}]*)\\over(?![a-zA-Z])([^{}]*)$": r"\\frac{\1}{\2}",
    r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}": r"\\binom{\1}{\2}",
    r"\\[dt]binom(?![a-zA-Z])": r"\\binom",
    r"(?<![\\a-zA-Z])(pi|sqrt|sin|cos|tan|log|ln)(?![a-zA-Z])": r"\\\1",
}
_TEXT = re.compile(
    r"\\(?:text(?:bf|rm|it|sf|normal)?|mbox|math(?:rm|bf|it|sf)|bold(?:symbol)?|operatorname|emph|underline|ensuremath"
    r"|textcolor\{[^{}]*\})\s*(?:\{([^{}]*)\}|(\w)(?!\w))"
)
_WORDED_NUMBER = re.compile(r"\"\s*([-+]?\d[^\"]*)\"")  # `\text{5 apples}`
_AND = re.compile(r"\"\s*(?:and|or)\s*\"|(?<=[ ,])(?:and|or)(?= )")
_MIXED_BY_AND = re.compile(r"(?<=\d) and (?=(\d+)/(\d+)(?![\d/.])|\\[dt]?frac ?(?:\{(\d+)\}|(\d)) ?(?:\{(\d+)\}|(\d)))")
# What an answer may begin with: `\textbf{(C) } 5`, "The answer is 5", "about 5", "= 5".
_LEADING = re.compile(
    r"^(?:\"\([A-E]\) *\"(?= *[^ .])|(?:the )?(?:final )?answer(?: is|:)|\"?(?:about|approximately|option|choice)\"?"
    r"|\\approx(?![a-z])|=)\s*",
    re.IGNORECASE,
)
_PHRASES = {
    r"\"?\s*(?:the set of )?all real(?: number)?s\s*\"?": r"(-\\infty, \\infty)",
    r"\"?\s*no (?:(?:real )?solutions?|such [a-z]+ exists?)\s*\"?": r"\\emptyset",
    r"\"?\s*(?:dne|does not exist)\s*\"?": "does not exist",
    r"([a-zA-Z]) (?:equals|is) (?=[-\d\\])": r"\1 = ",
    r"([a-zA-Z]) in (?=[\[({\\])": r"\1 \\in ",
    r"^([A-E])\)$": r"\1",
    r"(?<=\d) \((?!mod|base)[a-z]{3}[a-z -]*\)$": "",
    r"(?<=\d) ?per ?cent(?![a-z])|(?<=\d) ?pct(?![a-z])": "",
}
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|dot|bar)\{(\d+)\}")
_REPEATED = re.compile(r"(\d*)\.(\d*?)(\d|\d{2,}?)(\3{2,})(?:\.\.\.|\\l?dots(?![a-z]))")
# `]1, 2[` is (1, 2), as in France.
_OPEN_BELOW = re.compile(r"(?:^|(?<=\\cup)|(?<=\\in)|(?<=\\cup )|(?<=\\in ))\]([^\[\]()]+,[^\[\]()]+)([\[\]])")
_OPEN_ABOVE = re.compile(r"\[([^\[\]()]+,[^\[\]()]+)\[")


def tidy(answer: str) -> str:
    r"""The answer in one spelling. What `\text` held stands in quotes; a new line is a new row of a matrix.

    Degrees stay, as `\degree`, only where a sine or another function of angles stands, which they change.
    """
    answer = _of_unicode(_undressed(answer))
    rows = _NEW_ROW.split(_MIXED_BY_AND.sub(_mixed, re.sub(r"\s+", " ", answer)))
    keeps_degrees = _TRIGONOMETRY.search(answer) is not None
    answer = "\n".join(_tidy_row(row, r"\\degree " if keeps_degrees else "") for row in rows)
    answer = answer.replace("{,}", ",")
    answer = answer if re.search("matrix|array", answer) else answer.replace("&", ",")
    for name, plain in _NAMES.items():
        answer = re.sub(name, plain, answer)
    answer = _TEXT.sub(lambda found: f'"{found[1] or found[2] or ""}"', answer)
    answer = _AND.sub(",", _WORDED_NUMBER.sub(r" \1 ", answer))
    answer = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), answer)
    answer = _SPACED_THOUSANDS.sub(lambda number: number[0].replace(number[1], ""), answer)
    answer = _REPEATING.sub(lambda found: _fraction(found[1], found[2], found[3]), answer)
    answer = _LEADING.sub("", answer.strip())
    for phrase, plain in _PHRASES.items():
        answer = re.sub(phrase, plain, answer, flags=re.IGNORECASE)
    answer = _OPEN_ABOVE.sub(r"[\1)", _OPEN_BELOW.sub(_turn_bracket, answer.strip()))
    return _without_braces(answer.strip().rstrip(". \\"))


def _undressed(answer: str) -> str:
    """Without a box around it, nor bold, code or quotes of Markdown."""
    for _ in range(4):
        answer = answer.strip()
        if re.match(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])", answer):
            answer = boxed(answer) or answer
        answer = re.sub(r"^(\*\*|__|\*|`|')(.+)\1$", r"\2", answer, flags=re.DOTALL)
        answer = re.sub(r"(?<!\*)\*\*$", "", answer)
    return answer


def _of_unicode(answer: str) -> str:
    answer = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda found: "^{" + found[0].translate(_SUPERSCRIPTS) + "}", answer)
    for letter, plain in _UNICODE.items():
        answer = answer.replace(letter, plain)
    if answer.isascii():
        return answer
    # `½`, and letters and digits in other widths and scripts; degree signs are left alone.
    answer = re.sub("[¼-¾⅐-⅞]", lambda found: rf"\frac{{{Fraction(_halves(found[0]))}}}".replace("/", "}{"), answer)
    return "".join(unicodedata.normalize("NFKC", letter) if letter not in "º°˚" else letter for letter in answer)


def _halves(vulgar: str) -> str:
    return unicodedata.normalize("NFKC", vulgar).replace("⁄", "/")


def _tidy_row(row: str, degree: str) -> str:
    row = _REPEATED.sub(lambda found: _fraction(found[1], found[2], found[3]), row)
    row = re.sub(r"\\ldots(?![a-zA-Z])", "", _THIN_THOUSANDS.sub("", row))
    row = re.sub(r"\{\}(?=\^)", "", re.sub(r"\\ang\{([^{}]*)\}", r"\1\\degree ", row))
    return _SPACES.sub(" ", _GONE.sub("", re.sub(_DEGREE, degree, row)))


def _fraction(whole: str, fixed: str, repeating: str) -> str:
    r"""Of a decimal that repeats: `0.1\overline{6}` is 1/6."""
    scale = 10 ** len(fixed)
    value = Fraction(int(whole + fixed or "0"), scale) + Fraction(int(repeating), scale * (10 ** len(repeating) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _mixed(fraction: re.Match[str]) -> str:
    """`1 and 1/2` is 1 1/2; 1 and 3/2 are two numbers."""
    above, below = (int(number) for number in fraction.groups() if number)
    return " " if above < below else fraction[0]


def _turn_bracket(interval: re.Match[str]) -> str:
    return f"({interval[1]}{')' if interval[2] == '[' else ']'}"


def _without_braces(answer: str) -> str:
    """`{1, 2}` prints as 1, 2."""
    found = re.fullmatch(r"\{([^{}]*,[^{}]*)\}", answer)
    return found[1] if found and not found[1].endswith("\\") else answer
