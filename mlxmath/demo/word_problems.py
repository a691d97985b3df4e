"""A seeded generator of small arithmetic word problems, each with a worked solution.

The bundled demo needs problems that nobody has to download and that a model of two million parameters can learn
to solve: one to three steps of +, -, * and exact /, every number between 2 and 99, everyday stories. The same seed
gives the same problems on every machine: all choices come from one `random.Random`, and no set is iterated.
"""

import random
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from mlxmath.demo.scenarios import counting, making, money, possessions
from mlxmath.demo.story import LARGEST_NUMBER, SMALLEST_NUMBER, WordProblem

_Scenario = Callable[[random.Random, int], WordProblem]

_SCENARIOS: tuple[tuple[_Scenario, tuple[int, ...], int], ...] = (
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
    (possessions.compare, (1, 2, 3), 4),
    (possessions.times_as_many, (1, 2), 3),
    (possessions.sharing, (1, 2, 3), 4),
    (making.journey, (1, 2, 3), 2),
    (counting.ages, (1, 2, 3), 3),
    (counting.temperature, (1, 2, 3), 2),
    (counting.school_class, (1, 2, 3), 2),
    (counting.farm, (1, 2, 3), 3),
    (money.two_products, (3,), 2),
    (money.wages, (1, 2, 3), 2),
    (counting.bare, (1, 2, 3), 7),
)
"""Every scenario with the numbers of steps it can tell and its share."""

_STEP_SHARES = {1: 25, 2: 45, 3: 30}
_SHARES_BY_STEPS = {
    steps: (
        [scenario for scenario, possible, _ in _SCENARIOS if steps in possible],
        [share for _, possible, share in _SCENARIOS if steps in possible],
    )
    for steps in _STEP_SHARES
}
_NUMBER = re.compile(r"\d+")


def _in_range(draft: WordProblem) -> bool:
    """Whether every number is within the bounds; drafts that are not are thrown away."""
    texts = (draft.problem, *draft.steps)
    return all(SMALLEST_NUMBER <= int(number) <= LARGEST_NUMBER for text in texts for number in _NUMBER.findall(text))


def make_problem(rng: random.Random) -> WordProblem:
    """Draw one problem: first the number of steps, then the scenario, then names and numbers."""
    while True:
        steps = rng.choices((1, 2, 3), weights=tuple(_STEP_SHARES.values()))[0]
        scenarios, shares = _SHARES_BY_STEPS[steps]
        scenario = rng.choices(scenarios, weights=shares)[0]
        draft = scenario(rng, steps)
        if len(draft.steps) == steps and _in_range(draft):
            return draft


def normalise_question(text: str) -> str:
    """The question with case, spacing and punctuation evened out: equal results mean the same problem."""
    return " ".join(re.findall(r"[a-z]+|\d+|[-+*/]", text.lower()))


def problem_stream(seed: int, exclude: Collection[str] = ()) -> Iterator[WordProblem]:
    """Problems without end, none of whose normalised texts is in `exclude`; repeats are possible."""
    rng = random.Random(seed)
    while True:
        problem = make_problem(rng)
        if normalise_question(problem.problem) not in exclude:
            yield problem


@dataclass(frozen=True)
class ProblemSets:
    """The three data sets of the demo; no problem is in two of them."""

    train: tuple[WordProblem, ...]
    validation: tuple[WordProblem, ...]
    test: tuple[WordProblem, ...]

    def normalised_questions(self) -> frozenset[str]:
        """All problem texts, evened out, for keeping them out of the pretraining corpus."""
        return frozenset(normalise_question(p.problem) for p in (*self.train, *self.validation, *self.test))


def make_problem_sets(seed: int = 0, train: int = 1500, validation: int = 100, test: int = 200) -> ProblemSets:
    """Draw the data sets, each from its own seed, test first so that it does not depend on the other sizes."""
    seen: set[str] = set()
    sets: dict[str, tuple[WordProblem, ...]] = {}
    for offset, (name, size) in enumerate((("test", test), ("validation", validation), ("train", train))):
        stream = problem_stream(1_000_003 * (seed + 1) + offset)
        chosen: list[WordProblem] = []
        while len(chosen) < size:
            problem = next(stream)
            key = normalise_question(problem.problem)
            if key not in seen:
                seen.add(key)
                chosen.append(problem)
        sets[name] = tuple(chosen)
    return ProblemSets(sets["train"], sets["validation"], sets["test"])
