"""Which answers are the same."""

import pytest

from mlxmath.grading import equal
from mlxmath.grading.equal import compare

SAME = [
    # numbers
    ("1,234", "1234"), ("1 234", "1234"), ("12,345,678", "12345678"), ("1{,}234", "1234"), (r"1,\!234", "1234"),
    ("1234.0", "1234"), (".5", "0.5"), ("0.50", "0.5"), ("+5", "5"), ("-5", "−5"), ("5.", "5"), ("005", "5"), ("1234,5", "1234.5"),
    ("5e4", "50000"), ("5 \\times 10^4", "50000"), ("5 × 10⁴", "50000"), ("1.5e-3", "0.0015"), ("3*10^{-2}", "0.03"),
    ("1/2", "0.5"), (r"\frac{1}{2}", "0.5"), (r"\dfrac12", "1/2"), (r"\frac{2}{4}", r"\frac12"), ("½", "0.5"), ("-1/2", r"-\frac{1}{2}"),
    (r"\frac{-1}{2}", r"-\frac{1}{2}"), (r"12\frac{3}{5}", "12.6"), ("12 3/5", "63/5"), ("1 1/2", "1.5"), ("2½", "2.5"),
    ("$6", "6"), (r"\$6", "6"), (r"\$1,000.50", "1000.5"), ("€20", "20"), ("20 USD", "20"), ("6 dollars", "$6"), ("£3.20", "3.2"),
    ("50%", "50"), ("50.0\\%", "50"), ("50 percent", "50%"), ("0.5", "50%"), ("50", "50\\%"), ("28 pct", "28\\%"),
    ("five", "5"), ("twenty-five", "25"), ("one hundred and five", "105"), ("two thirds", "2/3"), ("a dozen", "12"), ("5 million", "5000000"),
    ("twelve apples", "12"), ("minus three", "-3"),
    ("5 hours", "5"), ("5 hrs", "5 hours"), (r"5 \text{ cm}", "5"), ("15 cm^2", r"15\mbox{ cm}^2"), ("18 m²", "18"), ("60 km/h", "60"),
    ("30 miles per hour", "30"), ("48", r"48^\circ"), ("90°", "90 degrees"), (r"65 \text{ children tickets }", "65"), ("5 apples", "5"),
    ("9867630", "9867630.0"), ("33.333333", "33.333333333333336"), ("33.33", "33.333333333333336"), ("1/3", "0.3333333333333333"),
    (r"\sqrt{17}", "4.123105625617661"), ("0.333333", "1/3"), ("9300000000000", "9300000000000.0"), ("-0", "0"),
    # arithmetic
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), (r"7\pi", r"\pi \cdot 7"), (r"2\sqrt{3}", r"\sqrt{12}"), ("2^{10}", "1024"), ("5!", "120"),
    (r"\frac{9}{4}\pi", r"\frac94\pi"), (r"\binom{10}{2}", "45"), (r"\sqrt[3]{27}", "3"), ("(9+1)", "10"), (r"|-3|", "3"), (r"\cos 60^\circ", "0.5"),
    (r"\sin^2(\pi/6)", r"\frac14"), ("3 \\cdot 4", "12"), (r"10^{\frac{\sqrt{13}-5}{6}}", r"10^{\frac{-5+\sqrt{13}}{6}}"), (r"e^2", r"\mathrm{e}^{2}"),
    (r"\left(\frac{1}{3}\right)", "1/3"), (r"-\frac{\pi}{3}", r"\frac{-\pi}{3}"), ("8^{2/3}", "4"), (r"\sqrt 2", r"\sqrt{2}"),
    # names
    ("x = 5", "5"), ("5", "x=5"), (r"x \approx 11", "11"), ("f(x)=1", "1"), (r"x = 5+5+1 = 11", "11"), ("AB = 4", "4"), ("total = 12", "12"),
    (r"\theta = \frac{\pi}{2}", r"\frac{\pi}{2}"), (r"x = 1/3 \approx 0.33", "1/3"),
    # tuples, intervals, sets, lists
    ("(1,2)", "(1, 2)"), (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"), ("(0.5, 2)", r"(\frac12, 2)"), ("[0,1)", "[0, 1)"),
    (r"x \in [-2,7]", "[-2,7]"), (r"(-\infty,0)\cup(0,\infty)", r"(0,\infty)\cup(-\infty,0)"), (r"\{1,2,3\}", r"\{3,2,1\}"), ("1,-2", "-2, 1"),
    ("1 and 2", "1, 2"), ("1 or 2", "2,1"), (r"\{5\}", "5"), ("x=1, x=2", "1,2"), ("(1,2),(3,4)", "(3,4),(1,2)"), ("x = 1 or x = 2", "x=2 or x=1"),
    ("k = 45, n = 2", "n = 2, k = 45"), ("(p,q)=(3,2)", "(3,2)"), ("(0;0;6)", "(0,0,6)"), ("6 \\text{ and } 8", "6, 8"), ("(1,2,3)", "[1,2,3]"),
    (r"[1, +\infty)", r"[1,\infty)"),
    # letters, times, words, bases
    ("C", "(C)"), (r"\text{(C)}", "C"), ("C.", "C"), ("(C) 12", "C"), ("option C", "C"), (r"\text{C}", "C"),
    ("4:30 PM", r"\text{4:30 p.m.}"), ("16:30", "4:30 p.m."), ("4:30", "4:30 p.m."), ("4 pm", "4:00 PM"), ("12:00 am", "0:00 a.m."),
    ("Evelyn", r"\text{Evelyn}"), ("ellipse", r"\text{ellipse}"), ("an ellipse", "ellipse"), ("EVEN", "even"),
    ("1011_2", "1011_{2}"), ("1011", "1011_2"), ("7:32", "7:32"),
]  # fmt: skip

DIFFERENT = [
    ("1234", "1235"), ("1.234", "1234"), ("-5", "5"), ("0.5", "5"), ("1/3", "3"), ("12 3/5", "12.5"), ("1 1/2", "11/2"), ("5e4", "5000"),
    ("0.28", "28"), ("28", "0.28"), ("28", "28/100"), ("5 cm", "5 m"), ("5 hours", "5 minutes"), ("9867631", "9867630.0"), ("0.33", "1/3"),
    ("0.3333", "1/3"), ("33.3", "33.333333333333336"), ("7.7", "7.78"), ("16386", "16386.20"), ("34", "33.333333333333336"), ("5 million", "5"),
    (r"2\sqrt{3}", r"3\sqrt{2}"), (r"\frac{\pi}{3}", "1.05"), (r"1 - \frac{1}{e}", r"1 + \frac{1}{e}"), ("2", r"\frac{1+\sqrt5}{2}"), ("2^{10}", "1025"),
    (r"4\sqrt{2}", "4"), ("x = 5", "6"), ("(1,2)", "(2,1)"), ("[0,1)", "[0,1]"), ("(0,9)", "[0,9)"), (r"\{1,2\}", r"\{1,3\}"), ("1,2", "1,2,3"),
    ("1,2,3", "1,2"), ("5", "3, 5"), ("3, 5", "5"), (r"\{1,2\}", "(1,2)"), ("k = 2, n = 45", "k = 45, n = 2"), ("32, 349", "32349"), ("A", "B"),
    ("(A) 5", "B"), ("4:30 PM", "4:30 a.m."), ("4:31", "4:30 p.m."), ("12:00", "1:00"), ("Evelyn", "Carla"), ("five", "6"), ("1011_3", "1011_2"),
    ("", "5"), ("5", ""), ("", ""), (r"(-\infty,0)", r"(0,\infty)"), (r"\infty", "5"), (r"-\infty", r"\infty"), ("three apples", "4"), ("Evelyn", "5"),
    ("1:2", "2:1"), ("15", "15!"), ("5x", "5"),
]  # fmt: skip

ALGEBRA_SAME = [
    ("3(x+2)", "3x+6"), (r"\frac{x}{7}+\frac{2}{7}", r"\frac{x+2}{7}"), (r"\sec^2 y", r"\tan^2 y + 1"), ("x \\geq 5", "5 \\le x"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"), (r"-2 \le x \le 7", "[-2, 7]"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}"), ("y = 2x + 3", "2x - y + 3 = 0"), ("2i+1", "1+2i"),
]  # fmt: skip
ALGEBRA_DIFFERENT = [
    ("3x+5", "3x+6"), ("x > 5", "x < 5"), ("x+y-z+2=0", "5x-7y+11z+4=0"), (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1&3\end{pmatrix}"),
    ("-1-5i", "-1+5i"), ("x", "y"), ("11a+c", "7=11a+c"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "gold"), SAME)
def test_same_without_algebra(answer: str, gold: str) -> None:
    assert compare(answer, gold) is True
    assert compare(f"${answer}$", gold) is True


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_different(answer: str, gold: str) -> None:
    assert not equal(answer, gold)


@pytest.mark.parametrize(("answer", "gold"), ALGEBRA_SAME)
def test_same_by_algebra(answer: str, gold: str) -> None:
    assert equal(answer, gold)


@pytest.mark.parametrize(("answer", "gold"), ALGEBRA_DIFFERENT)
def test_different_by_algebra(answer: str, gold: str) -> None:
    assert not equal(answer, gold)
