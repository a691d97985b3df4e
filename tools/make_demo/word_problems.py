"""A seeded generator of small arithmetic word problems, each with a worked solution.

The bundled demo needs problems that nobody has to download and that a model of two million parameters can learn
to solve: one to three steps of +, -, * and exact /, every number between 2 and 99, everyday stories. The same seed
gives the same problems on every machine: all choices come from one `random.Random`, and no set is iterated.

Problems are of six kinds. The base model learns two of them; the other four need more steps, or a way of putting
steps together that it has never seen worked, and are what fine-tuning teaches.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from tools.make_demo.scenarios import backwards, counting, making, money, possessions
from tools.make_demo.story import LARGEST_NUMBER, SMALLEST_NUMBER, WordProblem

_Scenario = Callable[[random.Random, int], WordProblem]

_STORIES: tuple[tuple[_Scenario, tuple[int, ...], int], ...] = (
    (possessions.collection, (1, 2, 3), 4),
    (possessions.packs, (1, 2, 3), 4),
    (possessions.colours, (1, 2, 3), 3),
    (counting.bus, (1, 2, 3), 3),
    (money.savings, (1, 2, 3), 3),
    (money.shopping, (1, 2, 3), 3),
    (money.wallet, (1, 2, 3), 3),
    (making.reading, (1, 2, 3), 3),
    (making.recipe, (1, 2, 3), 2),
    (making.points, (1, 2, 3), 3),
    (counting.rows, (1, 2, 3), 3),
    (making.bakery, (1, 2, 3), 3),
    (possessions.compare, (1,), 4),
    (possessions.times_as_many, (1,), 3),
    (possessions.sharing, (1, 2, 3), 4),
    (making.journey, (1, 2, 3), 2),
    (counting.ages, (1, 2, 3), 3),
    (counting.temperature, (1, 2, 3), 2),
    (counting.school_class, (1, 2, 3), 2),
    (counting.farm, (1, 2, 3), 3),
    (money.wages, (1, 2, 3), 2),
    (counting.bare, (1, 2, 3), 7),
)
"""Stories whose events are worked one after the other: the numbers of steps each can tell, and its share."""

_Told = tuple[tuple[_Scenario, int], int]


def _stories(steps: int) -> tuple[_Told, ...]:
    return tuple(((scenario, steps), share) for scenario, possible, share in _STORIES if steps in possible)


KINDS: Mapping[str, tuple[_Told, ...]] = {
    "one step": _stories(1),
    "two steps": _stories(2),
    "three steps": _stories(3),
    "comparison": (
        ((possessions.compare, 2), 3), ((possessions.compare, 3), 3), ((possessions.times_as_many, 2), 4),
    ),
    "two products": (((money.two_products, 3), 1),),
    "backwards": (
        ((backwards.collection, 2), 2), ((backwards.vehicle, 2), 1), ((backwards.wallet, 2), 1),
    ),
}  # fmt: skip
"""What each kind of problem is told by, with the number of steps and the share."""

LEARNED_KINDS = ("one step", "two steps")
"""What the base model sees worked; of the other kinds it reads questions only."""

CORPUS_SHARES = {"one step": 45, "two steps": 55}
READ_SHARES = {"one step": 1, "two steps": 1, "three steps": 2, "comparison": 2, "two products": 2, "backwards": 2}
DEMO_SHARES = {"one step": 8, "two steps": 12, "three steps": 30, "comparison": 18, "two products": 14, "backwards": 18}
"""Shares of the kinds in what the base sees worked, in what it only reads, and in the bundled problems."""

_NUMBER = re.compile(r"\d+")


def _in_range(draft: WordProblem) -> bool:
    """Whether every number is within the bounds; drafts that are not are thrown away."""
    texts = (draft.problem, *draft.steps)
    return all(SMALLEST_NUMBER <= int(number) <= LARGEST_NUMBER for text in texts for number in _NUMBER.findall(text))


def make_problem(rng: random.Random, shares: Mapping[str, int]) -> WordProblem:
    """Draw one problem: first the kind, then the scenario, then names and numbers."""
    while True:
        kind = rng.choices(list(shares), weights=list(shares.values()))[0]
        told = KINDS[kind]
        scenario, steps = rng.choices([each for each, _ in told], weights=[share for _, share in told])[0]
        draft = scenario(rng, steps)
        if len(draft.steps) == steps and _in_range(draft):
            return replace(draft, kind=kind)


def normalise_question(text: str) -> str:
    """The question with case, spacing and punctuation evened out: equal results mean the same problem."""
    return " ".join(re.findall(r"[a-z]+|\d+|[-+*/]", text.lower()))


def is_held_out(problem: WordProblem) -> bool:
    """Whether it is one of the eighth of all problems, by the hash of the question, that the base never reads."""
    return hashlib.sha256(normalise_question(problem.problem).encode()).digest()[0] % 8 == 0


def problem_stream(seed: int, shares: Mapping[str, int], *, held_out: bool) -> Iterator[WordProblem]:
    """Problems without end, all held out or none; repeats are possible."""
    rng = random.Random(seed)
    while True:
        problem = make_problem(rng, shares)
        if is_held_out(problem) == held_out:
            yield problem


@dataclass(frozen=True)
class ProblemSets:
    """The three data sets of the demo; no problem is in two of them, and the base has read none."""

    train: tuple[WordProblem, ...]
    validation: tuple[WordProblem, ...]
    test: tuple[WordProblem, ...]


def make_problem_sets(seed: int = 0, train: int = 3000, validation: int = 200, test: int = 200) -> ProblemSets:
    """Draw the data sets, each from its own seed, test first so that it does not depend on the other sizes."""
    seen: set[str] = set()
    sets: dict[str, tuple[WordProblem, ...]] = {}
    for offset, (name, size) in enumerate((("test", test), ("validation", validation), ("train", train))):
        stream = problem_stream(1_000_003 * (seed + 1) + offset, DEMO_SHARES, held_out=True)
        chosen: list[WordProblem] = []
        while len(chosen) < size:
            problem = next(stream)
            key = normalise_question(problem.problem)
            if key not in seen:
                seen.add(key)
                chosen.append(problem)
        sets[name] = tuple(chosen)
    return ProblemSets(sets["train"], sets["validation"], sets["test"])
