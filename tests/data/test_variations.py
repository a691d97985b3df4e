"""Varied problems: which are taken, what changes in them, and that their answers follow."""

import contextlib
import random
import re
from dataclasses import replace
from fractions import Fraction

import pytest

from mlxmath.data.datasets import DATASETS
from mlxmath.data.problem import Problem
from mlxmath.data.variations.arithmetic import equations_of
from mlxmath.data.variations.names import draw_names, people, with_names
from mlxmath.data.variations.numbers import draw
from mlxmath.data.variations.order import reordered
from mlxmath.data.variations.quantities import numbers_of
from mlxmath.data.variations.tracing import Untraceable, trace
from mlxmath.data.variations.vary import KINDS, MOST_CHARACTERS, Kind, Varied, vary


def row(question: str, *steps: str) -> dict[str, str]:
    """A row in GSM8K's columns: each step's equation in a calculator mark, the last result is the answer."""
    lines = [f"This is {s.partition('=')[0]} = <<{s}>>{s.partition('=')[2]}." for s in steps]
    return {"question": question, "answer": "\n".join([*lines, f"#### {steps[-1].partition('=')[2]}"])}


def problem(question: str, *steps: str) -> Problem:
    return DATASETS["gsm8k"].problem(row(question, *steps), 0)


FARM = (
    "Nora sells 14 crates of 25 plums each and gives 30 plums to Omar. How many plums leave the farm?",
    "14*25=350", "350+30=380",
)  # fmt: skip
SHOP = (
    "Ida buys 5 lamps at $16 each and pays with a $100 bill. With a 25% discount on everything, how much is left?",
    "5*16=80", "80*.25=20", "80-20=60", "100-60=40",
)  # fmt: skip
AGES = (
    "Uma is 12. Her brother is twice as old, and in 5 years he will move out. How old is he then?",
    "12*2=24",
    "24+5=29",
)
PROBLEMS = (FARM, SHOP, AGES)


def values(text: str) -> list[Fraction]:
    return [Fraction(n) for n in re.findall(r"\d+(?:\.\d+)?", text)]


@pytest.mark.parametrize("seed", range(20))
def test_the_answer_is_what_the_new_numbers_give(seed: int) -> None:
    crates, plums, given = values(vary(problem(*FARM), "numbers", seed).problem.question)
    assert vary(problem(*FARM), "numbers", seed).problem.answer == str(crates * plums + given)
    lamps, price, bill, percent = values((shop := vary(problem(*SHOP), "numbers", seed).problem).question)
    assert bill == 100 and Fraction(shop.answer or "") == 100 - lamps * price * (1 - percent / 100) > 0
    age, years = values((ages := vary(problem(*AGES), "numbers", seed).problem).question)
    assert int(ages.answer or "") == 2 * age + years


@pytest.mark.parametrize("case", PROBLEMS)
def test_the_solution_follows_line_by_line(case: tuple[str, ...]) -> None:
    varied = vary(problem(*case), "numbers", 3).problem
    assert varied.marked is not None and varied.solution is not None
    equations = equations_of(varied.marked)
    assert equations is not None and len(equations) == len(case) - 1, "each is still true"
    assert str(varied.answer) == varied.solution.rpartition("#### ")[2] and "<<" not in varied.solution
    assert [re.sub(r"[\d.]+", "#", text) for text in (varied.question, varied.marked)] == [
        re.sub(r"[\d.]+", "#", text) for text in (case[0], row(*case)["answer"])
    ]


def test_one_seed_is_one_variation_and_another_is_another() -> None:
    first, again, other = (vary(problem(*FARM), "numbers", seed).problem.question for seed in (1, 1, 2))
    assert first == again != other != FARM[0]


@pytest.mark.parametrize(
    ("question", "steps", "reason"),
    [
        ("Ann has 14 eggs and buys 30. How many eggs?", ["14+30=43"], "not exact"),
        ("Ann has 14 eggs and buys 30. How many eggs?", ["14+31=45"], "comes from nowhere"),
        ("Ann has 14 eggs and buys 30 on day 9 of 23. How many eggs?", ["14+30=44"], "that no equation needs"),
        ("A dog has 4 legs. How many legs have two dogs?", ["4*2=8"], "no number that may change"),
        ("There are 12 inches in a foot. How many inches are 3 feet?", ["12*3=36"], "no number that may change"),
        ("Ann has 14 eggs and buys 30. How many eggs?", ["30-14=16", "14+30=44"], "does not need"),
        ("Ann pays 30 dollars on July 14. What is half of it?", ["30/2=15", "15+1=16"], None),
    ],
)
def test_what_cannot_be_traced_is_not_taken(question: str, steps: list[str], reason: str | None) -> None:
    made = row(question, *steps)
    if reason is None:
        assert vary(DATASETS["gsm8k"].problem(made, 0), "numbers", 0).changes.keys() == {"30"}
        return
    with pytest.raises(Untraceable, match=reason):
        trace(question, made["answer"], Fraction(made["answer"].rpartition("#### ")[2]))


def test_an_answer_that_the_equations_do_not_give_is_not_taken() -> None:
    made = row(*FARM)
    with pytest.raises(Untraceable, match="do not end in the answer"):
        trace(made["question"], made["answer"], Fraction(381))


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        ("a 7 in two places: 7", ["7", "7"]),
        ("9 boys and nine girls", ["9"]),
        ("half past, 2 of them", ["2"]),
        ("at 5:30 with 15 people", ["5", "30"]),
        ("in grade 6 with 15 people", ["6"]),
        ("May 17, 15 people", ["17"]),
        ("3/4 of 20", ["3"]),
        ("the 4th of 20", ["4"]),
        ("3 out of 20", ["3"]),
        ("a dozen of 12", ["12"]),
        ("a week has 7 days", ["7"]),
        ("3 groups, 2 of them equal, and 40 more", ["3", "2"]),
        ("five $20 bills and 35 more", ["20"]),
    ],
)
def test_numbers_that_stay(text: str, fixed: list[str]) -> None:
    assert [numeral.text for numeral in numbers_of(text).numerals if numeral.fixed] == fixed


def test_a_value_that_may_come_from_two_places_stays() -> None:
    question = "Tim has 20 cards and buys 30 cards, of which he loses 50. Eli has 15 times 50 cents."
    assert {n.fixed for n in numbers_of(question).numerals if n.text == "50"} == {"occurs twice"}
    traced = trace(
        "Of 20 and 30 cards, Tim loses 50 and finds 8.", row("", "20+30=50", "50-50=0", "0+8=8")["answer"], Fraction(8)
    )
    assert [traced.question.numerals[i].text for i in traced.free] == ["8"], "50 is a number and a sum"


def test_the_same_result_twice_is_one_place() -> None:
    made = row("A 14 x 25 plot with 35 trees.", "14*25=350", "14*25=350", "350+35=385")
    traced = trace(made["question"], made["answer"], Fraction(385))
    assert [traced.question.numerals[i].text for i in traced.free] == ["25", "35"], "350 is not ambiguous"


@pytest.mark.parametrize("seed", range(30))
def test_whole_positive_ordered(seed: int) -> None:
    """People stay whole, a part stays below its whole, an hour keeps its minutes, and the smaller one stays smaller."""
    made = row(
        "Of 120 guests 25% leave. The rest sit at tables of 6, and 4 tables stay empty. How many tables are there?",
        "120*.25=30", "120-30=90", "90/6=15", "15+4=19",
    )  # fmt: skip
    traced = trace(made["question"], made["answer"], Fraction(19))
    drawn = draw(traced, random.Random(seed))
    guests, percent, seats, empty = drawn.values
    assert all(result.denominator == 1 and result > 0 for result in drawn.results)
    assert empty < seats < percent < guests and 0 < percent < 100
    before = traced.results([n.value for n in traced.question.numerals])
    assert before is not None
    assert sorted(range(4), key=before.__getitem__) == sorted(range(4), key=drawn.results.__getitem__)


@pytest.mark.parametrize("seed", range(10))
def test_articles_and_prices_stay_as_they_are_written(seed: int) -> None:
    rope = vary(
        problem(
            "An 18-meter rope costs $4.50 a meter; postage is $1,200. How much is it?", "18*4.5=81", "81+1200=1281"
        ),
        "numbers",
        seed,
    )
    assert re.fullmatch(
        r"An (8\d?|11|18)-meter rope costs \$\d+\.\d\d a meter; postage is \$\d(,\d{3}|\d\d)\. How much is it\?",
        rope.problem.question,
    )


TALE = "Sarah has 5 hats and Ben has 7. Sarah gives Ben 2 of her hats. Sarah's mother likes Ben Street."


def test_names_are_replaced_wherever_they_stand() -> None:
    assert set(people(TALE)) == {"Sarah"}, "Ben is a street too"
    names = draw_names(TALE, random.Random(1))
    assert names is not None and set(names) == {"Sarah"}
    assert with_names(TALE, names).count(names["Sarah"]) == 3 and "Sarah" not in with_names(TALE, names)
    varied = vary(problem("Sarah has 14 eggs, Tom 30. How many have Sarah and Tom?", "14+30=44"), "names", 1)
    assert varied.problem.answer == "44" and len(set(varied.changes.values())) == 2
    assert not set(varied.changes) & set(re.findall(r"\w+", varied.problem.question))


@pytest.mark.parametrize(
    "text", ["How many letters has Sarah's name?", "It rains.", "Sarah Street is long.", "It rains. Mark the day."]
)
def test_without_a_name_that_may_change_nothing_is_varied(text: str) -> None:
    assert draw_names(text, random.Random(0)) is None


@pytest.mark.parametrize(
    ("text", "may_be"),
    [
        ("He buys 3 apples, 4 pears, and 5 plums. How many?", r"He buys \d \w+, \d \w+, and \d \w+\. How many\?"),
        (
            "He buys a rope that costs $6 and a ball that costs $11, and leaves.",
            r"He buys a ball that costs \$11 and a rope .*",
        ),
        (
            "He buys 3 pens at $2 each and 4 rulers at $5 each.",
            r"He buys 4 rulers at \$5 each and 3 pens at \$2 each\.",
        ),
        ("Ben has 18 hats. Ann has 35 more hats than Ben. How many?", r"Ann .* Ben\. Ben has 18 hats\. How many\?"),
    ],
)
def test_another_order_has_the_same_parts(text: str, may_be: str) -> None:
    found = reordered(text, random.Random(2))
    assert found is not None and found != text and re.fullmatch(may_be, found)
    assert sorted(re.findall(r"\w+", found)) == sorted(re.findall(r"\w+", text))


@pytest.mark.parametrize(
    "text",
    [
        "He buys 3 apples, 4 pears, and 5 plums. The first ones are red.",
        "Ben has 18 hats. He loses 3. How many?",
        "Kate has 3 beads. Ruth has 4 times as many. How many?",
        "He buys 3 pens and 4 rulers at $5 each.",
        "Ann has 5 hats. Then Ben has 7 hats. How many?",
    ],
)
def test_an_order_that_says_something_stays(text: str) -> None:
    assert reordered(text, random.Random(0)) is None


def test_order_keeps_the_answer() -> None:
    varied: Varied = vary(
        problem("Ben has 18 hats. Ann has 35 more hats than Ben. How many has Ann?", "18+35=53"), "order", 0
    )
    assert (varied.problem.answer, varied.changes) == ("53", {})


def test_rows_keep_their_marks_beside_the_solution() -> None:
    made = problem(*FARM)
    assert made.marked == row(*FARM)["answer"] and made.solution is not None and "<<" not in made.solution
    assert DATASETS["svamp"].problem({"Body": "b", "Question": "q", "Equation": "1+1", "Answer": 2.0}, 0).marked is None


def expression(rng: random.Random, depth: int) -> str:
    """Arithmetic in a form that Python reads too."""
    if depth == 0 or rng.random() < 0.2:
        return rng.choice([str(rng.randrange(1, 90)), f"{rng.randrange(1, 9)}.{rng.randrange(10)}", ".5"])
    left, right = expression(rng, depth - 1), expression(rng, depth - 1)
    return rng.choice([f"{left}{{}}{right}", f"({left}{{}}{right})", f"{left}{{}}({right})"]).format(rng.choice("+-*/"))


@pytest.mark.parametrize("seed", range(200))
def test_marks_are_read_as_arithmetic_is(seed: int) -> None:
    """Precedence, brackets and order, against Python's own parser in exact numbers."""
    text = expression(random.Random(seed), 3)
    exact = re.sub(r"\d*\.?\d+", lambda number: f"Fraction('{number[0]}')", text)
    try:
        value = eval(exact, {"Fraction": Fraction})  # noqa: S307
    except ZeroDivisionError:
        return
    whole = value * Fraction(10**6)
    shown = f"{float(value):.6f}" if whole.denominator == 1 and value >= 0 else None
    if shown is None:
        assert equations_of(f"<<{text}={abs(float(value)):.6f}>>") in (None, []) or value == Fraction(
            f"{abs(float(value)):.6f}"
        )
        return
    (equation,) = equations_of(f"<<{text}={shown}>>") or [None]
    assert equation is not None and equation.result == value == equation.value(equation.operands)
    assert equations_of(f"<<{text}={float(value) + 1:.6f}>>") is None, "it is not true"


@pytest.mark.parametrize(
    "text",
    [
        "<<1+=2>>",
        "<<(1+1=2>>",
        "<<1 1=2>>",
        "<<x+1=2>>",
        "<<1+1>>",
        "<<=2>>",
        "<<1/0=2>>",
        "<<" + "1+" * 300 + "1=301>>",
    ],
)
def test_marks_that_are_no_arithmetic_are_not_read(text: str) -> None:
    assert equations_of(text) is None


@pytest.mark.parametrize(
    "part", ["1,", "1 ", "3 a, ", "3 a and ", "$1.", "1/", "Ann has 3. ", "a", "1+1=2 ", "<<1+1=2>>"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_texts_made_of_one_part_are_told_in_time(part: str, kind: Kind) -> None:
    for count in (MOST_CHARACTERS // len(part), MOST_CHARACTERS):
        text = part * count
        with contextlib.suppress(Untraceable):
            vary(Problem("0", text, answer="2", solution=f"{text}\n1+1=2\n#### 2", marked=text), kind, 0)


def test_a_number_longer_than_python_converts_ends_the_solution_alone() -> None:
    question, *steps = SHOP
    original = problem(question, *steps)
    marked = f"{'7' * 5000}\n{original.marked}"
    varied = vary(replace(original, marked=marked), "numbers", 3).problem
    assert varied.solution is None and varied.answer != original.answer
