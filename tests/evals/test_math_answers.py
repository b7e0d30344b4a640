from __future__ import annotations

import re
from itertools import pairwise
from random import Random

import pytest
from real_items import MATH_SUBJECTS, real_rows

from shardscope.evals.math_answers import equivalent
from shardscope.evals.math_solutions import boxed, final_answer


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("0.5", r"\frac{1}{2}"),
        (r"\frac12", r"\dfrac{1}{2}"),
        ("1/2", "$0.50$"),
        (r"x = \frac{7}{3}", "7/3"),
        ("1,234", "1234"),
        (r"12\text{ cm}", "12"),
        (r"45^\circ", "45"),
        (r"\$3.50", "3.5"),
        (r"25\%", "25"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt2}{2}"),
        (r"\sqrt[3]{8}", "2"),
        (r"3\frac{1}{2}", "3.5"),
        ("(x+1)^2", "x^2+2x+1"),
        ("2(a+b)", "2b + 2a"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"),
        ("-3, 5", "5, -3"),
        (r"\{1,2\}", r"\{2, 1\}"),
        (r"[2,5)", r"\left[2, 5\right)"),
        (r"\text{Tuesday}", r"\text{tuesday}"),
        (r"\sin x", r"\sin(x)"),
        ("2^{10}", "1024"),
        # Words, whether in \\text or not.
        ("monday", r"\text{Monday}"),
        (r"\mbox{Saturday}", "Saturday"),
        ("C", r"\text{(C)}"),
        (r"(\text{A})", "(A)"),
        ("D and A", r"\text{A,D}"),
        ("4:30 PM", r"\text{4:30 p.m.}"),
        (r"12\text{ and }13", "13, 12"),
        # Units after a number.
        ("12 cm", "12"),
        ("144 m^3", r"144 \mbox{ m}^3"),
        (r"99\pi \text{ square inches}", r"99\pi"),
        ("45 degrees", r"45^{\circ}"),
        # Structure.
        (r"\begin{pmatrix} 1/2 \\ 3 \end{pmatrix}", r"\begin{bmatrix}\frac12\\3\end{bmatrix}"),
        (r"(3,\infty)\cup(-\infty,1)", r"(-\infty, 1) \cup (3, \infty)"),
        ("(3,4),(1,2)", "(1,2), (3,4)"),
        (r"\pm 1", "1, -1"),
        # Formulas.
        (r"-3\frac12", "-3.5"),
        (r"x^2\frac12", r"\frac{x^2}{2}"),
        (r"\sin 2x", r"\sin(2x)"),
        (r"\sin^2\theta", r"(\sin\theta)^2"),
        ("5xy", "5yx"),
        ("1{,}234", r"1,\!234"),
        (r"12\,345\,678", "12345678"),
        # Mixed numbers.
        ("1 1/2", "3/2"),
        ("-1 1/2", "-1.5"),
        ("2 3/4 cm", r"2\frac{3}{4}"),
        (r"\frac 1 2", "0.5"),
        # Sums that are zero but for rounding.
        (r"\sqrt{2}\sqrt{2} - 2", "0"),
        (r"\sin\pi", "0"),
        (r"\sqrt{3}(a+b) - \sqrt{3}b", r"a\sqrt{3}"),
        ("2x 3y", "6xy"),
        # A number with its base.
        ("101_{2}", "101_2"),
        ("152a_{11}", "152A_11"),
        (r"(141)_{\text{twelve}}", "141_{12}"),
        (r"4210\text{ (base 5)}", "4210_{5}"),
        ("4210 base 5", r"4210_{\text{base }5}"),
        (".0011_2", "0.0011_{2}"),
        # Thousands, units, signs of currency, degrees, order numbers, dress.
        (r"11,\! 111,\! 111,\! 100", "11111111100"),
        (r"1\;234", "1,234"),
        (r"\textdollar 40", r"\$40.00"),
        (r"12\hspace{1mm}\text{cm}", "12"),
        (r"45\degree", r"45^\circ"),
        (r"45^{\text{o}}", "45"),
        (r"5^{\text{th}}", "5"),
        (r"\(5\)", r"\[5\]"),
        ("**5**", r"\boxed{5}"),
        (r"\boldsymbol{5}", "5"),
        # Intervals, sets, tuples and matrices.
        ("5 < x", r"(5,\infty)"),
        ("x > 5", "5 < x"),
        (r"-2 \leqslant x < 7", r"x \in [-2,7)"),
        (r"(-∞, 3\rbrack", r"(-\infty, 3]"),
        (r"(-\infty,-2) U (3,\infty)", r"\left(-\infty,-2\right)\cup\left(3,\infty\right)"),
        (r"\{\}", r"\varnothing"),
        (r"1 \mp \sqrt{19}", r"\{1-\sqrt{19}, 1+\sqrt{19}\}"),
        (r"x\in\{1,2\}", "2; 1"),
        (r"\bigl(1,2\bigr)", r"(x, y) = \langle 1,2\rangle"),
        (r"\mathbf{v} = \left(\begin{array}{c}1\\[2pt] 2\end{array}\right)", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\begin{smallmatrix}1&2\\3&4\end{smallmatrix}", r"\left[\begin{matrix}1&2\\3&4\\\end{matrix}\right]"),
        # What is declared.
        ("5 = x", "x_{1} = 5"),
        (r"\theta = \frac{\pi}{4}", "π/4"),
        (r"\angle ABC = 45^\circ", "45"),
        ("AB = 5", "5"),
        # Equations and orders.
        ("x^2 + y^2 = 13", "13 = y^2 + x^2"),
        ("10x - 4y - 5z - 20 = 0", "-10x + 4y + 5z = -20"),
        ("f(2) < f(1) < f(4)", "f(4) > f(1) > f(2)"),
        # More formulas.
        (r"{1 \over 2}", r"\cfrac{1}{2}"),
        ("x**2", "x^{2}"),
        (r"\dbinom{5}{2}", "10"),
        ("1/2004!", r"\frac{1}{2004!}"),
        ("2^{2005}", r"2 \cdot 2^{2004}"),
        ("i^2", "-1"),
        # Ratios.
        ("1:2", "2:4"),
        ("2:4:6", r"1\!:\!2\!:\!3"),
        ("1 : 2", r"\frac12"),
        ("3 to 4", "3:4"),
        # Logarithms, floors, angles.
        (r"\log_2 8", "3"),
        (r"\log_{10} 100", "2"),
        (r"\log_b a", r"\frac{\ln a}{\ln b}"),
        (r"2\log_3 5", r"\log_3 25"),
        (r"\left\lfloor\frac{7}{2}\right\rfloor", "3"),
        ("⌈3.2⌉", "4"),
        (r"\cos 60^\circ", "0.5"),
        (r"2\sin(15^{\circ})", r"2\sin 15\degree"),
        (r"\tan^{-1}(1)", r"\frac{\pi}{4}"),
        (r"\cos^{-1} x", r"\arccos x"),
        # Mixed numbers and decimals.
        ("1 and 1/2", r"1\frac12"),
        ("3½", "3.5"),
        ("1 and a half", "1.5"),
        (r"0.\overline{3}", r"\frac13"),
        (r"0.1\overline{6}", "1/6"),
        ("0.333...", r"0.\overline{3}"),
        ("5e3", "5000"),
        ("1.5x10^3", r"1.5\times 10^{3}"),
        # Degrees, percents, money, units.
        (r"45 ^ \circ", "45"),
        (r"45{}^\circ", "45 deg"),
        (r"30^{\circ}C", "30°"),
        (r"\ang{45}", "45º"),
        ("50 percent", r"50\%"),
        ("50 per cent", "50"),
        ("€5", "5"),
        ("5 USD", r"\$5.00"),
        ("60 km/h", r"60\text{ km/h}"),
        ("60 miles per hour", "60"),
        ("5 sq. ft.", "5"),
        ("5 cm²", "5"),
        ("5 m", "5"),
        (r"\text{5 apples}", "5"),
        ("1 000", "1000"),
        ("12'345'678", "12345678"),
        # Intervals, sets, unions.
        ("]1, 2[", "(1,2)"),
        ("[1, 2[", "[1,2)"),
        ("x in (1,2)", "1 < x < 2"),
        ("2 > x > 1", "(1,2)"),
        (r"\mathbb{R}", r"(-\infty, +\infty)"),
        ("all real numbers", r"x \in ℝ"),
        (r"x \neq 2", r"(-\infty, 2) \cup (2, \infty)"),
        (r"x \le 1 \text{ or } x \ge 2", r"[2,\infty) \cup (-\infty,1]"),
        (r"\{x \mid 1 < x < 2\}", "(1,2)"),
        (r"\{x \in \mathbb{R} : x > 5\}", r"(5,\infty)"),
        ("{1,2}", r"\{2, 1\}"),
        ("1 & 2", "1,2"),
        ("4,5,and 6", "6,5,4"),
        # Names in front.
        ("x=1, y=2", "(1,2)"),
        ("x=1, y=2", r"y=2 \text{ and } x=1"),
        (r"\text{Area} = 5\text{ cm}^2", "5"),
        ("area = 5", "5"),
        (r"P(A) = \frac12", "1/2"),
        (r"f^{-1}(x) = 2x", "2x"),
        (r"\triangle ABC = 5", "5"),
        ("= 5", r"\approx 5"),
        ("The answer is 5", "x equals 5"),
        ("Option B", "B)"),
        (r"\textbf{(C) } 5", "5"),
        # Signs that Unicode or keyboards have.
        ("±2", "2, -2"),
        ("+/-2", "2,-2"),
        ("–3", "-3"),
        ("x ⩾ 2", r"[2, ∞)"),
        ("x²", "x^2"),
        ("∛8", r"\root 3 \of 8"),
        ("２", "2"),
        (r"1\over2", r"\nicefrac{1}{2}"),
        # Vectors, matrices, bases, residues, no solution.
        ("[[1,2],[3,4]]", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
        (r"\pmatrix{1\\2}", "(1,2)"),
        (r"10 \text{ base } 2", r"\overline{10}_2"),
        (r"5 \pmod{7}", "5"),
        ("no real solutions", r"\emptyset"),
        ("DNE", "does not exist"),
        ("infinity", r"+\infty"),
        # Equations whose terms change sides.
        ("y = 2x + 3", "2x - y + 3 = 0"),
        ("y - 3 = 2x", "y = 2x + 3"),
        # Dress.
        ("`5`", "*5*"),
        ("__5__", "5 (five)"),
        ("2 + 3 = 5", "5"),
        (r"\framebox{5}", r"\boxed 5"),
        (r"{\bf 5}", r"\underline{5}"),
        (r"\textcolor{red}{5}", r"\color{red}5"),
        (r"4^\text{th}", "4"),
    ],
)
def test_equal_answers_are_equal_however_they_are_written(answer: str, gold: str) -> None:
    assert equivalent(answer, gold)
    assert equivalent(gold, answer)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("", "5"),
        ("", ""),
        ("6", "5"),
        ("0.33", r"\frac{1}{3}"),
        ("(1,2)", "(2,1)"),
        ("(2,5)", "[2,5)"),
        ("x^2", "x^3"),
        ("1,2", "1,2,3"),
        ("1,1,2", "1,2,2"),
        (r"\text{east}", r"\text{west}"),
        ("__import__('os')", "5"),
        ("9^9^9^9^9", "5"),
        ("((((", "5"),
        ("1/0", "5"),
        (r"(\text{A})", r"(\text{E})"),
        ("1943", r"19 \text{ and }43"),
        ("on", "no"),
        (r"\text{east}, \text{west}", r"\text{red}, \text{blue}"),
        (r"\text{AD}", r"\text{A,D}"),
        (r"9\text{ a.m.}", "9 p.m."),
        ("X", "x"),
        ("5 xy", "5"),
        ("1000000", "1000001"),
        ("9" * 400, "8" * 400),
        ("9" * 200 + "^9", "8" * 200 + "^9"),
        (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
        (r"\sin 2x", r"x\sin 2"),
        ("(1,2),(3,4)", "(2,1),(3,4)"),
        ("2" * 290 + "a", "5"),
        ("[" * 299, "5"),
        ("x" * 280, "5y"),
        ("mathematical function " * 64, "5"),
        # Every letter has a value of its own.
        ("a+c", "2b"),
        ("m-n", "x-y"),
        ("a-b", "p - q"),
        # Numbers are compared exactly, however large or small.
        ("2^{100}-1", "2^{100}"),
        (r"2\times10^{-11}", r"3\times10^{-11}"),
        ("10^{-12}", "0"),
        (r"\sqrt{2}\cdot10^{-11}", r"\sqrt{3}\cdot10^{-11}"),
        # Numbers side by side are neither multiplied nor joined.
        ("2 3", "6"),
        ("1 1/2", "1/2"),
        ("1 1/2", "11/2"),
        ("1 2", "12"),
        (r"1\, \, 2", "12"),
        ("2 3x", "6x"),
        ("1 .5", "1.5"),
        ("1.5.2", "0.3"),
        ("((9^{999})^{999})^{999}", "((9^{999})^{999})^{998}"),
        # Another base, another value, another order, another end.
        ("101_{2}", "101_3"),
        ("101_2", "11_2"),
        ("101_2", "-101_2"),
        ("101_2", "101"),
        ("101_2", "1012"),
        ("a_{11}", "A_{11}"),
        ("x_1", "x_2"),
        (r"11,\! 111", "11, 111"),
        ("12\\%", "0.12"),
        ("x > 5", "x < 5"),
        ("x > 5", r"x \ge 5"),
        (r"-2 \le x < 7", "[-2,7]"),
        ("x > 5", "5"),
        (r"\{1,2\}", "(1,2)"),
        (r"\{1,2\}", r"\{1,2,3\}"),
        (r"\emptyset", "0"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}"),
        ("x^2 + y^2 = 13", "x^2 - y^2 = 13"),
        ("x^2 + y^2 = 13", "13"),
        ("x - y = 1", "x - y = 2"),
        ("f(2) < f(1) < f(4)", "f(2) < f(4) < f(1)"),
        ("f(2) < f(1)", r"f(2) \le f(1)"),
        ("5!", "5"),
        (r"\binom{5}{2}", r"\binom{5}{1}"),
        ("99999!", "5"),
        ("xy = 5", "5"),
        # Another ratio, time, base of a logarithm, rounding.
        ("1:2", "2:1"),
        ("1:2:3", "1:2:4"),
        ("1:2", "1:2:3"),
        ("0:1:2", "0:3:1"),
        ("6:20", "3:10"),
        (r"\log_2 8", r"\log_3 8"),
        (r"\log_b a", r"\log_a b"),
        (r"\lfloor -3.5\rfloor", "-3"),
        (r"\lfloor x\rfloor", r"\lceil x\rceil"),
        # Angles are no numbers, an inverse is no reciprocal.
        (r"\sin 30^\circ", r"\sin 30"),
        (r"\cos^{-1} x", r"\frac{1}{\cos x}"),
        # Two numbers are no mixed number; a decimal ends where it ends.
        (r"1\text{ and }\frac12", "3/2"),
        ("1 and 3/2", "5/2"),
        ("0.333", "1/3"),
        ("0.333...", "0.333"),
        (r"0.\overline{3}", "0.3"),
        ("1.4142...", r"\sqrt2"),
        ("x²", "x2"),
        ("2³", "23"),
        ("12 34", "1234"),
        ("1 00", "100"),
        # A letter is no unit, and no name that is not one.
        ("4 t", "4"),
        ("5m", "5"),
        ("60 x/y", "60"),
        ("abc = 5", "5"),
        ("2x = 5", "5"),
        ("|x| = 5", "5"),
        ("x+1 = 5", "5"),
        (r"\sin x = 5", "5"),
        # Ends, order and names count.
        ("]1, 2]", "[1,2]"),
        ("2 > x > 1", "(1,2]"),
        (r"x \ne 2", "x = 2"),
        (r"x \ne 2", r"x \ne 3"),
        (r"\{x \mid x > 5\}", r"\{x \mid x < 5\}"),
        ("x < 1 or x > 2", "x < 1, x > 3"),
        (r"\mathbb{R}", "R"),
        ("x=1, y=2", "y=1, x=2"),
        ("x=1, y=2", "(2,1)"),
        ("x=1, x=2", "(1,2)"),
        ("[[1,2],[3,4]]", "[[1,3],[2,4]]"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "(2,1)"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "[1,2]"),
        (r"5 \pmod 7", r"5 \pmod 6"),
        ("infinity", "-infinity"),
        ("5 (mod 7)", "5 (mod 6)"),
        ("2 + 3 = 5", "3"),
        ("no solution", "0"),
        ("y = 2x", "x = 2y"),
        ("y = 2x + 3", "2x + y + 3 = 0"),
    ],
)
def test_different_or_meaningless_answers_are_not(answer: str, gold: str) -> None:
    assert not equivalent(answer, gold)


def real_golds() -> list[str]:
    """Every different gold answer of MATH-500 and of all seven subjects of MATH."""
    files = ["MATH-500/default", *(f"hendrycks_math/{subject}" for subject in MATH_SUBJECTS)]
    golds = {boxed(row["solution"]) for file in files for row in real_rows(f"{file}/test.jsonl", 5000)}
    assert None not in golds
    return sorted(gold for gold in golds if gold is not None)


def plain(gold: str) -> str:
    r"""As somebody writes it who does not use \text, thin spaces or sized brackets."""
    gold = re.sub(r"\\(?:text|mbox)\s*\{([^{}]*)\}", r"\1", gold)
    return re.sub(r"\\left|\\right|\s*\\!\s*", "", gold).replace("\\$", "").replace("\\dfrac", "\\frac")


def test_every_real_math_answer_equals_itself_its_plain_form_and_rarely_another() -> None:
    golds = real_golds()
    assert len(golds) > 2000
    assert [gold for gold in golds if not equivalent(gold, gold)] == []
    assert [gold for gold in golds if not equivalent(f"$ {plain(gold)} $.", gold)] == []
    assert [gold for gold in golds if not equivalent(final_answer(f"So it is $\\boxed{{{gold}}}$."), gold)] == []
    # Neighbours in the alphabet look alike. Where they count as equal, they are the same numbers, units aside.
    alike = [(a, b) for a, b in pairwise(golds) if equivalent(a, b)]
    assert [pair for pair in alike if len({str(numbers_of(gold)) for gold in pair}) > 1] == []
    apart = Random(0).sample(golds, 300)
    same = [(a, b) for a, b in zip(apart[::2], apart[1::2], strict=True) if equivalent(a, b)]
    assert [pair for pair in same if len({str(numbers_of(gold)) for gold in pair}) > 1] == []


RESPELLINGS = {
    "boxed": lambda gold: rf"\boxed{{{gold}}}",
    "named": lambda gold: gold if re.search(r"[=,]|\\in|\\text|[a-zA-Z]{3}$|\\cup", gold) else f"x = {gold}",
    "bold": lambda gold: f"**{gold}**",
    "display": lambda gold: rf"\[{gold}\]",
    "sized": lambda gold: re.sub(r"(?<!\\left)\((?=[^()]*\))([^()]*)\)", r"\\bigl(\1\\bigr)", gold),
    "fractions by slashes": lambda gold: re.sub(r"^(-?)\\d?frac\{(\d+)\}\{(\d+)\}$", r"\1\2/\3", gold),
    "spaced": lambda gold: re.sub(r"([-+=])", r" \1 ", gold),
    "in Unicode": lambda gold: (
        gold.replace("-", "−").replace("\\pi", "π").replace("\\infty", "∞").replace("\\cup", "∪")
    ),
    "with a period": lambda gold: f"{gold}.",
}


@pytest.mark.parametrize("name", RESPELLINGS)
def test_every_real_gold_answer_equals_itself_respelt(name: str) -> None:
    golds = real_golds()[len(name) % 3 :: 3]  # another third for each
    assert [gold for gold in golds if not equivalent(RESPELLINGS[name](gold), gold)] == []


def numbers_of(gold: str) -> list[str]:
    """Its digits, without the exponent of a unit."""
    return re.findall(r"\d", re.sub(r"(?<=[}a-z])\^\{?\d", "", gold))
