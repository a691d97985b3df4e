"""Equations, where their numbers come from, and what the answer rests on."""

import random
import re
from fractions import Fraction

import pytest

from mlxmath.grading import faithfulness, form
from mlxmath.grading.expression import NotArithmetic, evaluate
from mlxmath.grading.faithfulness import equations
from tests.grading.shared_data import gsm8k


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("She has 3 + 4 = 7 pens.", ["true"]),
        ("She has 3 + 4 = 8 pens.", ["false"]),
        ("48/2 = <<48/2=24>>24 clips", ["true"]),
        ("3 eggs/day * 7 days/week = 21 eggs/week", ["true"]),
        ("5 x $2 = $10", ["true"]),
        ("$5 × 3 = $16", ["false"]),
        ("1/2 of 30 = 15", ["true"]),
        ("20% of 50 = 10", ["true"]),
        ("20% of 50 = 11", ["false"]),
        ("5/20 * 100 = 25%", ["true"]),
        ("10 / 3 = 3.33", ["true"]),
        ("10 / 3 = 3.34", ["false"]),
        ("10/3 = 3", ["false"]),
        ("a total of 4+5 = 9", ["true"]),
        ("2 * 3 = 6 = 5 + 1", ["true", "true"]),
        ("x + 5 = 12", ["abstain"]),
        ("2x + 3 = 7", ["abstain"]),
        ("so x = 4", []),
        ("10 - 3 * 2 = 4", ["true"]),
        ("(2 + 3)*4 = 20", ["true"]),
        ("14 * 1 1/2 = 21", ["true"]),
        (r"$\frac{1}{2} \times 8 = 4$", ["true"]),
        (r"\[6 \cdot 7 = 42\]", ["true"]),
        ("5 times 24 equals 120", ["true"]),
        ("$2.50 - $2.24 = 26 cents", ["true"]),
        ("1 hour = 60 minutes", []),
        ("1,200 + 300 = 1,500", ["true"]),
        ("3 - 5 = -2", ["true"]),
        ("Week 1: 2+2=4; week 2: 3+3=5", ["true", "false"]),
        ("9^{9^9} = 5", []),
        ("2^3 = 8", ["true"]),
        ("7 = 7", []),
    ],
)
def test_equations(text: str, verdicts: list[str]) -> None:
    found = [equation.verdict for equation in equations(text)]
    assert (found == verdicts) or (not verdicts and set(found) <= {"abstain"})


def test_measures_by_hand() -> None:
    question = "Tom has 3 boxes of 12 pens and gives away a quarter. How many are left?"
    rationale = "3 * 12 = 36 pens. 36 / 4 = 9 given away. 5 + 8 = 13 by the way. 36 - 9 = 27 left.\n#### 27"
    measured = faithfulness(rationale, question)
    assert (measured.validity, measured.support, measured.abstention) == (1.0, True, 0.0)
    assert measured.provenance == 6 / 8  # 5 and 8 come from nowhere
    assert measured.liveness == 3 / 4  # 5 + 8 leads nowhere
    assert measured.all_true and measured.num_false == 0
    broken = faithfulness(rationale.replace("= 9 given", "= 8 given"), question)
    assert (broken.validity, broken.num_false) == (3 / 4, 1) and not broken.all_true
    assert faithfulness(rationale, answer="28").support is False
    assert faithfulness(rationale).provenance is None


def test_nothing_to_measure() -> None:
    measured = faithfulness("No arithmetic at all.", "Why?", "yes")
    assert (measured.validity, measured.provenance, measured.support, measured.liveness, measured.abstention) == (
        None,
    ) * 5
    assert not measured.all_true


def test_gsm8k_calibration() -> None:
    rationales = gsm8k("train")
    measured = [faithfulness(row["answer"], row["question"]) for row in rationales]
    verdicts = [equation.verdict for m in measured for equation in m.equations]
    num_true, num_false = verdicts.count("true"), verdicts.count("false")
    share = lambda flags: sum(flags) / len(rationales)  # noqa: E731
    assert num_true + num_false > 23_500
    assert num_true / (num_true + num_false) >= 0.985
    assert share(m.all_true for m in measured) >= 0.962
    assert abs(share(bool(m.support) for m in measured) - 0.968) <= 0.005
    with_sources = [m.provenance for m in measured if m.provenance is not None]
    assert abs(sum(p == 1 for p in with_sources) / len(with_sources) - 0.883) <= 0.005
    assert abs(share(m.liveness or 0 for m in measured) - 0.945) <= 0.005


def test_corrupted_results_are_caught() -> None:
    rng = random.Random(11)
    computed = re.compile(r"[-+*/x][^=<>\n]{0,40}= ?\$?<<[^<>=]*[-+*/][^<>=]*=[^<>]*>>\$?(\d+)(?![\d.,/%])")
    num_planted = num_caught = 0
    for row in rng.sample(gsm8k("train"), 3000):
        text = row["answer"].partition("####")[0]
        spots = list(computed.finditer(text))[:-1]
        if not spots or num_planted == 1000:
            continue
        spot = rng.choice(spots)
        changed = str(int(spot[1]) + rng.choice([1, 2, 3, 5, 10, 100]))
        planted = text[: spot.start(1)] + changed + text[spot.end(1) :]
        num_planted += 1
        num_caught += faithfulness(planted).num_false > faithfulness(text).num_false
    assert num_planted == 1000
    assert num_caught >= 980


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3 * 4", 14),
        ("-2^2", -4),
        ("2^-1", Fraction(1, 2)),
        ("(1/2)(6)", 3),
        (r"\frac{3}{4} + \frac14", 1),
        ("2 - -3", 5),
        ("50%", Fraction(1, 2)),
        ("1,000 / 8", 125),
        ("4!", 24),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        (r"\sqrt{16}", 4),
        ("27^{1/3}", 3),
        ("|2-5|", 3),
        ("0.1 + 0.2", Fraction(3, 10)),
    ],
)
def test_evaluate(text: str, value: Fraction) -> None:
    assert evaluate(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1/0",
        "9^9^9^9",
        "4001!",
        "2 3",
        "1 +",
        "(",
        "__import__('os')",
        "a.b",
        "0^{-1}",
        "(-1)^{0.5}",
        "2^{100000}",
        "(" * 99 + "1" + ")" * 99,
    ],
)
def test_not_arithmetic(text: str) -> None:
    with pytest.raises(NotArithmetic):
        evaluate(text)


def test_form() -> None:
    measured = form("<think>a b</think>First 2 + 3 = 5.\nThen 5 * 2 = 10.\n#### 10")
    assert (measured.num_steps, measured.thinking, measured.num_words_thinking, measured.rule) == (
        2,
        "closed",
        2,
        "####",
    )
    assert measured.has_final_answer and measured.is_step_by_step
    assert form("1. Add: 2 + 3\n2. Times two: 10\nSo 10").num_steps == 2
    assert form("We add 2 and 3. That makes 5. Fine.").num_steps == 2
    assert (
        form("<think>on and on").thinking
        == form("a</think>b</think>").thinking
        == form("</think><think>").thinking
        == "open"
    )
    assert form("It is 5").has_final_answer is False
    assert form("").num_steps == 0 and form("").rule is None
