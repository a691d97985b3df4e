"""The pieces of a word problem: its people and things, its numbers, and the story as it is told step by step."""

import operator
import random
from dataclasses import dataclass

SMALLEST_NUMBER, LARGEST_NUMBER = 2, 99
"""Bounds of every number in a problem and its solution: never "1 dollars", and two digits are learned reliably."""


@dataclass(frozen=True)
class WordProblem:
    """One problem in pieces, so that it can be written out in different styles.

    `context` tells the story, `question` asks; a bare calculation has an empty context. `steps` are the worked
    sentences, one equation each; the last equation's result is `answer`.
    """

    context: str
    question: str
    steps: tuple[str, ...]
    answer: int
    scenario: str
    kind: str = ""

    @property
    def problem(self) -> str:
        """The text shown to the solver."""
        return f"{self.context} {self.question}".strip()

    @property
    def solution(self) -> str:
        """The worked steps, one a line, then the final answer line `#### n`."""
        return "\n".join((*self.steps, f"#### {self.answer}"))

    def record(self) -> dict[str, str]:
        """The problem as a row of a JSON Lines data set."""
        return {"problem": self.problem, "solution": self.solution, "answer": str(self.answer), "kind": self.kind}


@dataclass(frozen=True)
class Person:
    """Somebody, with pronouns."""

    name: str
    he: str
    his: str


PEOPLE = tuple(
    [Person(name, "he", "his") for name in (
        "Tom", "Ben", "Sam", "Leo", "Max", "Adam", "Omar", "Ravi", "Hugo", "Ivan",
        "Jack", "Luis", "Noah", "Paul", "Finn", "Karl", "Amir", "Dan", "Eric", "Ken",
    )]
    + [Person(name, "she", "her") for name in (
        "Anna", "Mia", "Lily", "Sara", "Nora", "Emma", "Ruth", "Zoe", "Ella", "Maria",
        "Lucy", "Kate", "Amy", "Jane", "Rosa", "Tina", "Aisha", "Mei", "Olga", "Eva",
    )]
)  # fmt: skip

THINGS = (
    "apples", "pears", "plums", "oranges", "marbles", "stickers", "pens", "pencils", "books", "cards", "coins",
    "shells", "stamps", "beads", "buttons", "balls", "toys", "stones", "cookies", "nuts", "eggs", "flowers",
    "ribbons", "badges", "magnets", "dolls", "crayons", "photos", "tickets", "comics",
)  # fmt: skip
GOODS = (
    "book", "hat", "game", "ball", "shirt", "bag", "lamp", "cake", "kite", "belt", "toy", "mug", "scarf", "clock",
    "puzzle", "poster",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "white", "black")

_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


def two_people(rng: random.Random) -> tuple[Person, Person]:
    """Two different ones."""
    first, second = rng.sample(PEOPLE, 2)
    return first, second


def factors(rng: random.Random, largest: int = LARGEST_NUMBER) -> tuple[int, int]:
    """Two factors from 2 to 12 whose product is at most `largest`."""
    while True:
        a, b = rng.randint(2, 12), rng.randint(2, 12)
        if a * b <= largest:
            return a, b


def to_add(rng: random.Random, value: int) -> int:
    """A number that can be added to `value` and stay in range."""
    return rng.randint(2, max(2, min(50, LARGEST_NUMBER - value)))


def to_take(rng: random.Random, value: int) -> int:
    """A number that can be taken from `value` and, where it is large enough, leave at least two."""
    return rng.randint(2, max(2, value - 2))


def calculate(a: int, operation: str, b: int) -> tuple[str, int]:
    """The equation, and its result."""
    result = _OPERATIONS[operation](a, b)
    return f"{a} {operation} {b} = {result}", result


def upper(text: str) -> str:
    """With a capital."""
    return text[:1].upper() + text[1:]


class Story:
    """Sentences and worked steps being collected, with the running amount."""

    def __init__(self, value: int = 0) -> None:
        self.sentences: list[str] = []
        self.steps: list[str] = []
        self.value = value

    def tell(self, sentence: str) -> None:
        """Add a sentence."""
        self.sentences.append(sentence)

    def work(self, before: str, a: int, operation: str, b: int, after: str) -> None:
        """Add the step `before a + b = c after` and make its result the running amount."""
        equation, self.value = calculate(a, operation, b)
        self.steps.append(f"{before} {equation} {after}.")

    def gain(self, before: str, b: int, after: str) -> None:
        """Add the step in which the running amount grows by `b`."""
        self.work(before, self.value, "+", b, after)

    def lose(self, before: str, b: int, after: str) -> None:
        """Add the step in which the running amount shrinks by `b`."""
        self.work(before, self.value, "-", b, after)

    def ask(self, question: str, scenario: str) -> WordProblem:
        """The whole problem."""
        return WordProblem(" ".join(self.sentences), question, tuple(self.steps), self.value, scenario)
