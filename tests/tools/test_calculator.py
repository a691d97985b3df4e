"""Arithmetic between the marks: exact, bounded, and nothing else."""

from fractions import Fraction

import numpy as np
import pytest

from mlxmath.tools.calculator import calculate
from mlxmath.tools.forms import MOST_CALLS, behind, by_tool, call_at_end, parts


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12*7", "84"), ("1234*567", "699678"), ("1/3", "0.333333"), ("-7/2", "-3.5"), ("1,234+1", "1235"),
        ("5%*20", "1"), ("2**10", "1024"), ("2^10", "1024"), ("0.1+0.2", "0.3"), ("1/8", "0.125"), ("$5*3", "15"),
        ("- - 3", "3"), ("-2**2", "-4"), ("2**-1", "0.5"), ("1/7*7", "1"), (" ( 2 + 3 ) × 4 ÷ 2", "10"), ("0*-1", "0"),
        ("99999999999*99999999999", "9999999999800000000001"), (".5*3", "1.5"), ("3.*2", "6"), ("2**3**2", "512"),
    ],
)  # fmt: skip
def test_values(text: str, value: str) -> None:
    assert calculate(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "x", "1+", "1 2", "2(3)", "1/0", "0**-1", "9**9**9", "9^9^9^9", "1e5", "1_000", "1,23", "1.5.2", "½", "٣+1",
     "１", "(" * 30 + "1" + ")" * 30, "-" * 201 + "1", "9" * 41, "10**300", "2**0.5", "__import__('os')", "1;2", "1<<9",
     "()",
     "*".join(["9" * 30] * 6), "10**60*10**60", "\x00", "1=1"],
)  # fmt: skip
def test_what_is_no_arithmetic_or_too_large_has_no_value(text: str) -> None:
    assert calculate(text) is None


def test_random_arithmetic_equals_fractions() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        numbers, signs = rng.integers(1, 5000, 4).tolist(), rng.choice(list("+-*"), 3).tolist()
        text = "".join(str(n) + s for n, s in zip(numbers, [*signs, ""], strict=True))
        assert calculate(text) == str(eval(text))  # noqa: S307
        halves = f"({text})/8"
        assert Fraction(calculate(halves) or "") == Fraction(eval(text), 8)  # noqa: S307


def test_a_call_is_seen_where_it_ends_and_its_result_is_told_from_the_text() -> None:
    assert call_at_end("calculator", "so <<12*7=") == "12*7"
    assert call_at_end("calculator", "so <<12*7=84>> =") is call_at_end("calculator", "12*7=") is None
    assert call_at_end("calculator", "so <<12*7=8") is None
    program = "Let us see.\n```python\nprint(1)\n```"
    assert call_at_end("python", program) == call_at_end("python", program + "\n") == "print(1)"
    assert call_at_end("python", "See ```python\nprint(1)\n```") is None
    assert call_at_end("python", "```python\nprint(1)\n```\n```output\n1\n```") is None
    assert behind("calculator", "so <<12*7=", "84") == "84>>"
    assert behind("python", program, "1") == "\n" + behind("python", program + "\n", "1")
    assert set(MOST_CALLS) == {"calculator", "python"}


def test_parts_of_a_whole_answer() -> None:
    text = "He has <<3*4=12>>12, <<x=5>>5 and <<1/2=.5>>.5.\n#### 12"
    assert [part for part, is_tool in parts("calculator", text) if is_tool] == ["12>>", ".5>>"]
    assert "".join(part for part, _ in parts("calculator", text)) == text
    answer = "a\n```python\nprint(1)\n```\n```output\n1\n\n2\n```\nSo\n```python\n2\n```\n```output\n2\n```"
    found = [answer[start:end] for start, end in by_tool("python", answer)]
    assert found == ["\n```output\n1\n\n2\n```\n", "\n```output\n2\n```"]
    assert by_tool("calculator", answer) == []
