"""Nothing that a model writes crashes or holds up the grader."""

import time

import pytest

from mlxmath.grading import doubt, faithfulness, form, grade, grade_many
from mlxmath.grading.extract import extract
from mlxmath.grading.workers import TIME_LIMIT_S, Pool, refuses
from tests.grading.hostile import hostile_strings

GOLDS = ("417", r"\frac{3}{7}", "x^2+1", "(1,2)", "Evelyn")


@pytest.mark.parametrize("seed", [1])
def test_hostile_strings(seed: int) -> None:
    pairs = [(text, GOLDS[i % len(GOLDS)]) for i, text in enumerate(hostile_strings(100, seed))]
    start = time.perf_counter()
    grades = grade_many(pairs)
    assert time.perf_counter() - start < 100 * TIME_LIMIT_S / 10
    assert not any(verdict.correct for verdict in grades)


def test_each_measure_is_quick_on_each_string() -> None:
    for text in hostile_strings(110, seed=2):
        for measure in (doubt, faithfulness, form):
            start = time.process_time()
            measure(text)
            assert time.process_time() - start < 3, (measure, text[:80], len(text))
        start = time.process_time()
        extract(text)
        assert time.process_time() - start < 1, (text[:80], len(text))


@pytest.mark.parametrize(
    "piece",
    [
        r"1",
        r"1 ",
        r"1/",
        r"1 1/",
        r"1 1/2 ",
        r"1 1/1 ",
        r"1 and ",
        r"1½ ",
        r"½",
        r"2 \frac",
        r"2 \frac{1}",
        r"option C ",
        r". C ",
        r"C is ",
        r"C is correct if ",
        r"* ",
    ],
)
@pytest.mark.parametrize("begin", ["", "The answer is ", "Therefore, "])
def test_pieces_in_a_row(begin: str, piece: str) -> None:
    took = []
    for _ in range(3):  # whatever else this process does counts, too
        start = time.process_time()
        extract(begin + piece * (20_000 // len(piece)))
        took.append(time.process_time() - start)
    assert min(took) < 0.3


def test_hostile_golds() -> None:
    for text in ("9^{9^{9^9}}", "(" * 5000, "\\frac{" * 1000, "\x00", "1" * 10_000, "#### " + "\\boxed{" * 500):
        assert not grade("\\boxed{x+1}", text).correct


@pytest.mark.parametrize(
    "text", ["x^4+x^3+x^2+x", "a^2 b^2 c^2 d^2", "x^2y^2z^2", "(x^2+1)^2(x^2-1)^2", "e^{-x^2}+e^{-y^2}", "((2^3)^4)^5"]
)
def test_powers_side_by_side_are_no_tower(text: str) -> None:
    assert not refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^(9^{9})}",
        "2 ^ 3 ^ 4 ^ 5",
        "10^{10^{10^{10}}}",
        "x^{x^{x^x}}+x^2",
        "x" * 1001,
        "9^{9^{9^9}}",
        "(" * 25 + ")" * 25,
        "7" * 200,
        "2^3^4^5",
        "a\x00b",
    ],
)
def test_refused_without_a_worker(text: str) -> None:
    assert refuses(text)
    pool = Pool(1)
    assert pool.ask(text, "x") is False
    assert pool.num_started == 0
