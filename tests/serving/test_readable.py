"""Formulas as text, the same however the text is cut into pieces, and nothing that steers a terminal."""

import random

import pytest

from mlxmath.serving.plain_math import to_text
from mlxmath.serving.readable import Readable


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (r"\frac{1}{2}x^2", "1/2 x²"),
        (r"2\frac{1}{2}", "2 1/2"),
        (r"\frac{a+b}{2a}", "(a + b)/(2a)"),
        (r"\frac{-b\pm\sqrt{b^2-4ac}}{2a}", "(−b ± √(b² − 4ac))/(2a)"),
        (r"x_{n+1} = -x_n - (-3)^{2k}", "xₙ₊₁ = −xₙ − (−3)²ᵏ"),
        (r"e^{-x/2}", "e^(−x/2)"),
        (r"\sum_{i=1}^{n} i", "∑ᵢ₌₁ⁿ i"),
        (r"\sqrt[3]{8} = 2", "∛8 = 2"),
        (r"\boxed{19}", "[ 19 ]"),
        (r"\text{Tom has } 1{,}000", "Tom has 1,000"),
        (r"90^\circ \le x \cdot y \ne 3", "90° ≤ x · y ≠ 3"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "(1, 2; 3, 4)"),
        (r"\begin{aligned} x &= 1 \\ y &= 2\end{aligned}", "x = 1\ny = 2"),
        (r"\binom{n}{k}", "(n choose k)"),
        (r"\log_2 8 = 3 \sin^2\theta", "log₂ 8 = 3 sin² θ"),
        (r"f(1, 2) \in \{a, b\}", "f(1, 2) ∈ {a, b}"),
        (r"\hat{x}", "x\u0302"),
        ("x" * 3000, None),
    ],
)
def test_formulas(source: str, expected: str | None) -> None:
    assert to_text(source) == expected


def shown(text: str, sizes: list[int], *, formulas: bool = True) -> str:
    readable, place, written = Readable(formulas=formulas), 0, ""
    while place < len(text):
        size = sizes[place % len(sizes)]
        written += readable.feed(text[place : place + size])
        place += size
    return written + readable.finish()


TEXTS = {
    r"So \(x^2\) is $\frac{1}{2}$.": "So x² is 1/2.",
    "Tom has $5 and $6, then \\$7.": "Tom has $5 and $6, then $7.",
    "It costs $5 per hour for $y_1$ hours.": "It costs $5 per hour for y₁ hours.",
    "$$\n\\frac12\n$$ end": "1/2 end",
    "\\[ x = 1 \\]\nand \\boxed{\\frac{a}{b}}": "x = 1\nand [ a/b ]",
    "\\begin{align*}x&=1\\\\y&=2\\end{align*}": "x = 1\ny = 2",
    "$ 5$ \\b \\[x": "$ 5$ \\b \\[x",
    "$12$5 $a\n$b \\(x": "$12$5 $a\n$b \\(x",
    "a \\[ never closed\n\nnext $n$": "a \\[ never closed\n\nnext n",
    "#### 19": "#### 19",
    "\\undefined{$x}": "\\undefined{$x}",
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_the_same_in_any_pieces(text: str) -> None:
    rng = random.Random(0)
    cuts = [[1], [2], [3], [1000], *([rng.randint(1, 6) for _ in range(7)] for _ in range(20))]
    assert {shown(text, sizes) for sizes in cuts} == {TEXTS[text]}


def test_plain_text_is_not_held_back() -> None:
    readable = Readable(formulas=True)
    assert readable.feed("Tom has 5 apples") == "Tom has 5 apples"
    assert readable.feed(" and $x") == " and "
    assert readable.feed("^2$") == "" and readable.feed(" ") == "x² "


@pytest.mark.parametrize("formulas", [True, False])
def test_nothing_steers_the_terminal(formulas: bool) -> None:
    hostile = (
        "".join(map(chr, range(0x20)))
        + "\x7f\x9b\u202e\u2066\ud800 $\\text{&#27;[31m}$ \\(\\char27\\)$\\text{\x1b]0;x\x07}$"
    )
    for sizes in ([1], [3], [1000]):
        written = shown(hostile, sizes, formulas=formulas)
        assert all(c.isprintable() or c in "\n\t" for c in written)


def test_hostile_formulas_take_no_time() -> None:
    for text in (
        "$" * 5000,
        "\\boxed{" * 400,
        "\\(" * 3000,
        "$" + "{" * 1500 + "$ ",
        "$" + "x^{" * 190 + "}" * 190 + "$ ",
    ):
        assert shown(text, [7])
