"""Verdicts against published ones: real model answers, reference solutions, math_verify's own cases."""

import json
from pathlib import Path

from mlxmath.grading import grade, grade_many
from tests.grading.shared_data import gsm8k, rows

CASES = Path(__file__).parent / "data" / "math_verify_cases.jsonl"


def test_graded_answers() -> None:
    graded = [row for row in rows("graded_dev.jsonl") if not row["policy"]]
    grades = grade_many([(row["response"], row["gold"]) for row in graded])
    wrong = [row["id"] for row, verdict in zip(graded, grades, strict=True) if verdict.correct != row["correct"]]
    false_positives = [row["id"] for row, v in zip(graded, grades, strict=True) if v.correct and not row["correct"]]
    assert not false_positives
    assert len(wrong) <= 0.003 * len(graded), wrong


def test_gsm8k_reference_solutions() -> None:
    problems = [row["answer"] for split in ("train", "test") for row in gsm8k(split)]
    golds = [text.rpartition("####")[2].strip() for text in problems]
    verdicts = [grade(text, gold) for text, gold in zip(problems, golds, strict=True)]
    assert len(problems) == 8792
    assert all(verdict.correct and verdict.rule == "####" for verdict in verdicts)
    shifted = [grade(text, gold).correct for text, gold in zip(problems[1:], golds, strict=False)]
    same = [a.replace(",", "") == b.replace(",", "") for a, b in zip(golds[1:], golds, strict=False)]
    assert shifted == same


def test_math_solutions_state_their_answers() -> None:
    problems = rows("math500/test.jsonl")
    assert all(verdict.correct for verdict in grade_many([(row["solution"], row["answer"]) for row in problems]))
    others = [(row["solution"], other["answer"]) for row, other in zip(problems[::7], problems[3::7], strict=False)]
    assert not any(verdict.correct for verdict in grade_many(others))


def test_float_golds() -> None:
    golds = [row["target"] for row in rows("gsm_hard/train.jsonl")]
    right = grade_many([(f"So it is {gold!r}.", str(gold)) for gold in golds])
    long = [gold for gold in golds if abs(gold) > 100 and len(str(gold).partition(".")[2]) > 4]
    rounded = grade_many([(f"The answer is {gold:,.2f}", str(gold)) for gold in long])
    wrong = grade_many([(f"#### {gold + 1.25}", str(gold)) for gold in golds])
    assert all(verdict.correct for verdict in right) and all(verdict.correct for verdict in rounded)
    assert not any(verdict.correct for verdict in wrong)


def test_published_cases_of_math_verify() -> None:
    cases = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    counted = [case for case in cases if "setting" not in case]
    grades = grade_many([(case["prediction"], case["gold"]) for case in counted])
    assert len(counted) == 253
    assert [c for c, verdict in zip(counted, grades, strict=True) if verdict.correct != c["expected"]] == []
