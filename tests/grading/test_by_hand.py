"""Measures of rationales and of doubt, worked out by hand."""

import pytest

from mlxmath.grading import doubt, faithfulness

Measures = tuple[float | None, float | None, bool | None, float | None, float | None]
RATIONALES: list[tuple[str, str, str | None, Measures]] = [
    ("She has 3 + 4 = 7.\n#### 7", "Ann has 3 apples and gets 4.", None, (1, 1, True, 1, 0)),
    ("She has 3 + 4 = 8.\n#### 8", "Ann has 3 apples and gets 4.", None, (0, 1, True, 1, 0)),
    ("3 + 4 = 7. 7 * 2 = 14.\n#### 14", "3 and 4, doubled", None, (1, 1, True, 1, 0)),
    ("3 + 4 = 7. 5 * 2 = 10.\n#### 10", "3 and 4, 5", None, (1, 1, True, 0.5, 0)),
    ("3 + 4 = 7. 9 * 8 = 72.\n#### 72", "3 and 4", None, (1, 0.5, True, 0.5, 0)),
    ("3 + 4 = 7\n#### 12", "3 and 4", None, (1, 1, False, 0, 0)),
    ("x + 4 = 7. 3 + 4 = 7.\n#### 7", "3 and 4", None, (1, 1, True, 1, 0.5)),
    ("10 / 3 = 3.33\n#### 3.33", "10 over 3", None, (1, 1, True, 1, 0)),
    ("10 / 3 = 3.3\n#### 3.3", "10 over 3", None, (1, 1, True, 1, 0)),
    ("10 / 3 = 3.4\n#### 3.4", "10 over 3", None, (0, 1, True, 1, 0)),
    ("2 × 3 = 6\n#### 6", "2 and 3", None, (1, 1, True, 1, 0)),
    ("2 · 3 = 6\n#### 6", "2 and 3", None, (1, 1, True, 1, 0)),
    ("12 ÷ 4 = 3\n#### 3", "12 by 4", None, (1, 1, True, 1, 0)),
    ("$5 * 3 = $15\n#### 15", "$5 each, 3 of them", None, (1, 1, True, 1, 0)),
    ("20% of 50 = 10\n#### 10", "20% of 50", None, (1, 1, True, 1, 0)),
    ("3 apples + 4 apples = 7 apples\n#### 7", "3 and 4", None, (1, 1, True, 1, 0)),
    ("\\frac{1}{2} * 8 = 4\n\\boxed{4}", "half of 8", None, (1, 1, True, 1, 0)),
    ("1/2 * 8 = 4\n#### 4", "half of 8", None, (1, 1, True, 1, 0)),
    ("No equations here.\n#### 5", "5", None, (None, None, False, None, None)),
    ("3 + 4 = 7", "3 and 4", "7", (1, 1, True, 1, 0)),
    ("3 + 4 = 7", "3 and 4", "8", (1, 1, False, 0, 0)),
    ("1,000 + 500 = 1,500\n#### 1500", "1000 and 500", None, (1, 1, True, 1, 0)),
    ("2^3 = 8\n#### 8", "2 cubed 3", None, (1, 1, True, 1, 0)),
    ("(3 + 4) * 2 = 14\n#### 14", "3, 4", None, (1, 1, True, 1, 0)),
    ("3 + 4 * 2 = 14\n#### 14", "3, 4", None, (0, 1, True, 1, 0)),
    ("<<3+4=7>>7 apples. 3 + 4 = <<3+4=7>>7\n#### 7", "3, 4", None, (1, 1, True, 1, 0)),
    ("-5 + 8 = 3\n#### 3", "-5 and 8", None, (1, 1, True, 1, 0)),
    ("- 5 + 8 = 13\n#### 13", "5 and 8", None, (1, 1, True, 1, 0)),
    ("-12*3=36\n#### 36", "12 3", None, (1, 1, True, 1, 0)),
    ("-12*3=-36\n#### -36", "-12 3", None, (1, 1, True, 1, 0)),
    ("5 - 8 = -3\n#### -3", "5 and 8", None, (1, 1, True, 1, 0)),
    ("60 cents * 5 = $3\n#### 3", "60 cents, 5", None, (1, 1, True, 1, 0)),
    ("3 hours * 60 = 180 minutes\n#### 180", "3 hours", None, (1, 1, True, 1, 0)),
    ("5 * 60 = 300 minutes. 300 / 60 = 5 hours. 5 + 1 = 6\n#### 6", "5 hours", None, (1, 1, True, 1, 0)),
    ("a = 5, b = 6, a + b = 11\n#### 11", "5 6", None, (None, None, False, None, 1)),
    ("-5 + 8 = 3\nThen -5 + 9 = 4\n#### 4", "-5, 8 and 9", None, (1, 1, True, 0.5, 0)),
]
"""Rationale, question, answer (None: the one it states), F1 to F5."""


@pytest.mark.parametrize(("rationale", "question", "answer", "expected"), RATIONALES)
def test_rationales(rationale: str, question: str, answer: str | None, expected: Measures) -> None:
    found = faithfulness(rationale, question, answer)
    measured = (found.validity, found.provenance, found.support, found.liveness, found.abstention)
    assert measured == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "markers", "computations", "flips", "null", "flagged"),
    [
        ("", 0, 0, 0, 0, False),
        ("Wait, 2 + 2 = 4.", 1, 1, 0, 0, False),
        ("5 + 5 = 11. Wait, 5 + 5 = 10.\n#### 10", 1, 1, 0, 0, False),
        ("3 * 4 = 12. 3 x 4 = 12. 3 × 4 = 12.", 0, 3, 0, 0, True),
        ("3 * 4 = 12. Then 3 * 4 = 12 again.", 0, 2, 0, 0, False),
        ("The answer is 5. The answer is 6. The answer is 5.", 0, 0, 2, 0, False),
        ("The answer is 5. The answer is 5.", 0, 0, 0, 0, False),
        ("It is 4. Wait. Oops. Hmm. It is 4.", 3, 0, 0, 1, True),
        ("It is 4. Wait, 4 + 1 = 5. Hmm, 5 + 1 = 6. Actually, 6 + 1 = 7.", 3, 1, 0, 0, False),
        ("so so " * 20, 0, 0, 0, 0, True),
    ],
)
def test_doubts(text: str, markers: int, computations: int, flips: int, null: float, flagged: bool) -> None:
    found = doubt(text)
    measured = (found.num_markers, found.max_same_computation, found.answer_flips, found.null_doubt)
    assert measured == (markers, computations, flips, null)
    assert found.flagged is flagged


def test_the_scales_of_doubt() -> None:
    assert doubt("Wait, no.").markers_per_1000_tokens == 250  # wait , no .
    twice = " ".join(f"w{i}" for i in range(60)) + " " + " ".join(f"w{i}" for i in range(60))
    # 120 words have 113 8-grams; the second copy's 53 that lie inside it have occurred before.
    assert doubt(twice).repeated_ngrams == pytest.approx(53 / 113)
    assert doubt("well " + "a b c " * 4).tail_period == 3
