"""A seeded generator of small arithmetic word problems, each with a worked solution.

The bundled demo needs problems that nobody has to download and that a model of two million parameters can learn
to solve: one to three steps of +, -, * and exact /, every number between 2 and 99, everyday stories. The same seed
gives the same problems on every machine: all choices come from one `random.Random`, and no set is iterated.
"""

import random
import re
from collections.abc import Callable, Collection, Iterator
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
        return {"problem": self.problem, "solution": self.solution, "answer": str(self.answer)}


@dataclass(frozen=True)
class _Person:
    name: str
    he: str
    his: str


_PEOPLE = tuple(
    [_Person(name, "he", "his") for name in (
        "Tom", "Ben", "Sam", "Leo", "Max", "Adam", "Omar", "Ravi", "Hugo", "Ivan",
        "Jack", "Luis", "Noah", "Paul", "Finn", "Karl", "Amir", "Dan", "Eric", "Ken",
    )]
    + [_Person(name, "she", "her") for name in (
        "Anna", "Mia", "Lily", "Sara", "Nora", "Emma", "Ruth", "Zoe", "Ella", "Maria",
        "Lucy", "Kate", "Amy", "Jane", "Rosa", "Tina", "Aisha", "Mei", "Olga", "Eva",
    )]
)  # fmt: skip

_THINGS = (
    "apples", "pears", "plums", "oranges", "marbles", "stickers", "pens", "pencils", "books", "cards", "coins",
    "shells", "stamps", "beads", "buttons", "balls", "toys", "stones", "cookies", "nuts", "eggs", "flowers",
    "ribbons", "badges", "magnets", "dolls", "crayons", "photos", "tickets", "comics",
)  # fmt: skip
_GOODS = (
    "book", "hat", "game", "ball", "shirt", "bag", "lamp", "cake", "kite", "belt", "toy", "mug", "scarf", "clock",
    "puzzle", "poster",
)  # fmt: skip
_COLOURS = ("red", "blue", "green", "yellow", "white", "black")


def _two_people(rng: random.Random) -> tuple[_Person, _Person]:
    first, second = rng.sample(_PEOPLE, 2)
    return first, second


def _factors(rng: random.Random, largest: int = LARGEST_NUMBER) -> tuple[int, int]:
    """Two factors from 2 to 12 whose product is at most `largest`."""
    while True:
        a, b = rng.randint(2, 12), rng.randint(2, 12)
        if a * b <= largest:
            return a, b


def _more(rng: random.Random, value: int) -> int:
    """A number that can be added to `value` and stay in range."""
    return rng.randint(2, max(2, min(50, LARGEST_NUMBER - value)))


def _less(rng: random.Random, value: int) -> int:
    """A number that can be taken from `value` and, where it is large enough, leave at least two."""
    return rng.randint(2, max(2, value - 2))


def _add(a: int, b: int) -> tuple[str, int]:
    return f"{a} + {b} = {a + b}", a + b


def _subtract(a: int, b: int) -> tuple[str, int]:
    return f"{a} - {b} = {a - b}", a - b


def _times(a: int, b: int) -> tuple[str, int]:
    return f"{a} * {b} = {a * b}", a * b


def _divide(a: int, b: int) -> tuple[str, int]:
    return f"{a} / {b} = {a // b}", a // b


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


class _Story:
    """Sentences and worked steps being collected, with the running amount."""

    def __init__(self, value: int = 0) -> None:
        self.sentences: list[str] = []
        self.steps: list[str] = []
        self.value = value

    def tell(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def work(self, before: str, equation: tuple[str, int], after: str) -> None:
        """Add the step `before <equation> after` and make its result the running amount."""
        text, self.value = equation
        self.steps.append(f"{before} {text} {after}.")

    def ask(self, question: str, scenario: str) -> WordProblem:
        return WordProblem(" ".join(self.sentences), question, tuple(self.steps), self.value, scenario)


def _change_collection(rng: random.Random, story: _Story, who: _Person, other: _Person, things: str) -> None:
    """One more event that adds to or takes from somebody's things, with its step."""
    if rng.random() < 0.5 and story.value <= LARGEST_NUMBER - 5:
        b = _more(rng, story.value)
        story.tell(rng.choice((
            f"{_upper(who.he)} finds {b} more {things}.",
            f"{_upper(who.he)} buys {b} more {things}.",
            f"{other.name} gives {who.name} {b} more {things}.",
            f"Then {who.he} gets {b} more.",
        )))  # fmt: skip
        story.work(f"Then {who.he} has", _add(story.value, b), things)
    else:
        b = _less(rng, story.value)
        story.tell(rng.choice((
            f"{_upper(who.he)} gives {b} {things} to {other.name}.",
            f"{_upper(who.he)} loses {b} of them.",
            f"{_upper(who.he)} sells {b} {things}.",
            f"Then {who.he} gives away {b}.",
        )))  # fmt: skip
        story.work(f"Then {who.he} has", _subtract(story.value, b), things)


def _ask_collection(rng: random.Random, story: _Story, who: _Person, things: str, scenario: str) -> WordProblem:
    question = rng.choice((
        f"How many {things} does {who.name} have now?",
        f"How many {things} does {who.he} have in the end?",
        f"How many {things} does {who.name} have?",
    ))  # fmt: skip
    return story.ask(question, scenario)


def _collection(rng: random.Random, steps: int) -> WordProblem:
    who, other = _two_people(rng)
    things = rng.choice(_THINGS)
    story = _Story(rng.randint(5, 80))
    story.tell(rng.choice((
        f"{who.name} has {story.value} {things}.",
        f"{who.name} starts with {story.value} {things}.",
        f"There are {story.value} {things} in {who.name}'s box.",
    )))  # fmt: skip
    for _ in range(steps):
        _change_collection(rng, story, who, other, things)
    return _ask_collection(rng, story, who, things, "collection")


def _packs(rng: random.Random, steps: int) -> WordProblem:
    who, other = _two_people(rng)
    things, pack = rng.choice(_THINGS), rng.choice(("packs", "boxes", "bags", "sets"))
    p, q = _factors(rng)
    story = _Story()
    story.tell(rng.choice((
        f"{who.name} buys {p} {pack} of {q} {things}.",
        f"{who.name} has {p} {pack} with {q} {things} in each.",
        f"{who.name} gets {p} {pack} of {things}, and each holds {q}.",
    )))  # fmt: skip
    story.work(f"{who.name} has", _times(p, q), things)
    for _ in range(steps - 1):
        _change_collection(rng, story, who, other, things)
    return _ask_collection(rng, story, who, things, "packs")


def _colours(rng: random.Random, steps: int) -> WordProblem:
    who, other = _two_people(rng)
    things = rng.choice(_THINGS)
    first, second = rng.sample(_COLOURS, 2)
    a = rng.randint(3, 60)
    b = _more(rng, a)
    story = _Story()
    story.tell(f"{who.name} has {a} {first} {things} and {b} {second} {things}.")
    story.work(f"{who.name} has", _add(a, b), things)
    for _ in range(steps - 1):
        _change_collection(rng, story, who, other, things)
    return _ask_collection(rng, story, who, things, "colours")


def _bus(rng: random.Random, steps: int) -> WordProblem:
    vehicle = rng.choice(("bus", "train", "boat", "tram"))
    story = _Story(rng.randint(5, 60))
    count = f"{story.value} people"
    story.tell(rng.choice((f"A {vehicle} has {count} on it.", f"{count} are on a {vehicle}.")))
    for number in range(steps):
        stop = ("At the first stop", "At the second stop", "At the third stop")[number] if steps > 1 else "At a stop"
        if rng.random() < 0.5:
            b = _more(rng, story.value)
            story.tell(f"{stop}, {b} people get on.")
            story.work(f"The {vehicle} has", _add(story.value, b), "people")
        else:
            b = _less(rng, story.value)
            story.tell(f"{stop}, {b} people get off.")
            story.work(f"The {vehicle} has", _subtract(story.value, b), "people")
    return story.ask(f"How many people are on the {vehicle} now?", "bus")


def _savings(rng: random.Random, steps: int) -> WordProblem:
    who = rng.choice(_PEOPLE)
    p, q = _factors(rng)
    story = _Story()
    story.tell(f"{who.name} saves {p} dollars a week for {q} weeks.")
    story.work(f"{who.name} saves", _times(p, q), "dollars")
    for number in range(steps - 1):
        if number == 0 and rng.random() < 0.5 and story.value <= 90:
            b = _more(rng, story.value)
            story.tell(f"{_upper(who.his)} aunt gives {who.name} {b} dollars.")
            story.work(f"Then {who.he} has", _add(story.value, b), "dollars")
        else:
            b = _less(rng, story.value)
            story.tell(f"{_upper(who.he)} spends {b} dollars on a {rng.choice(_GOODS)}.")
            story.work(f"Then {who.he} has", _subtract(story.value, b), "dollars")
    return story.ask(rng.choice((f"How many dollars does {who.name} have?", f"How much money does {who.he} have now?")),
                     "savings")  # fmt: skip


def _shopping(rng: random.Random, steps: int) -> WordProblem:
    who = rng.choice(_PEOPLE)
    things, good = rng.choice(_THINGS), rng.choice(_GOODS)
    p, q = _factors(rng, 90)
    story = _Story()
    story.tell(f"{who.name} buys {p} {things} for {q} dollars each.")
    story.work(f"The {things} cost", _times(p, q), "dollars")
    if steps >= 2 and (steps == 3 or rng.random() < 0.6):
        b = _more(rng, story.value)
        story.tell(f"{_upper(who.he)} also buys a {good} for {b} dollars.")
        story.work("In all it costs", _add(story.value, b), "dollars")
    if len(story.steps) < steps:
        paid = rng.randint(story.value + 1, LARGEST_NUMBER) if story.value < LARGEST_NUMBER else LARGEST_NUMBER + 1
        story.tell(f"{_upper(who.he)} had {paid} dollars.")
        story.work(f"{who.name} has", _subtract(paid, story.value), "dollars left")
        return story.ask(f"How many dollars does {who.name} have left?", "shopping")
    return story.ask(rng.choice(("How many dollars is that in all?", f"How much does {who.name} pay?")), "shopping")


def _wallet(rng: random.Random, steps: int) -> WordProblem:
    who = rng.choice(_PEOPLE)
    story = _Story(rng.randint(20, 99))
    story.tell(f"{who.name} has {story.value} dollars.")
    for number, good in enumerate(rng.sample(_GOODS, steps)):
        b = _less(rng, story.value)
        story.tell(f"{_upper(who.he)} buys a {good} for {b} dollars." if number == 0
                   else f"Then {who.he} buys a {good} for {b} dollars.")  # fmt: skip
        story.work(f"{who.name} has", _subtract(story.value, b), "dollars left")
    return story.ask(f"How many dollars does {who.name} have left?", "wallet")


def _reading(rng: random.Random, steps: int) -> WordProblem:
    who = rng.choice(_PEOPLE)
    p, q = _factors(rng, 80)
    story = _Story()
    if steps == 1:
        story.tell(f"{who.name} reads {p} pages a day for {q} days.")
        story.work(f"{who.name} reads", _times(p, q), "pages")
        return story.ask(f"How many pages does {who.he} read?", "reading")
    pages = rng.randint(p * q + 4, LARGEST_NUMBER)
    story.tell(f"A book has {pages} pages. {who.name} reads {p} pages a day for {q} days.")
    story.work(f"{who.name} reads", _times(p, q), "pages")
    if steps == 3:
        b = rng.randint(2, max(2, pages - story.value - 2))
        story.tell(f"Then {who.he} reads {b} more pages.")
        story.work(f"In all {who.he} reads", _add(story.value, b), "pages")
    story.work("The book has", _subtract(pages, story.value), "pages left")
    return story.ask("How many pages are left?", "reading")


def _recipe(rng: random.Random, steps: int) -> WordProblem:
    who = rng.choice(_PEOPLE)
    what = rng.choice(("flour", "sugar", "milk", "rice", "oats"))
    bake = rng.choice(("cakes", "pies", "loaves", "pans"))
    p, q = _factors(rng, 80)
    story = _Story()
    if steps == 1:
        story.tell(f"{who.name} makes {p} {bake}. Each one needs {q} cups of {what}.")
        story.work(f"{who.name} needs", _times(p, q), f"cups of {what}")
        return story.ask(f"How many cups of {what} does {who.he} need?", "recipe")
    if steps == 2:
        cups = rng.randint(p * q + 1, LARGEST_NUMBER)
        story.tell(f"{who.name} has {cups} cups of {what}.")
    else:
        a = rng.randint(2, LARGEST_NUMBER - 4)
        b = _more(rng, a)
        story.tell(f"{who.name} has {a} cups of {what} and buys {b} more cups.")
        story.work(f"{who.name} has", _add(a, b), f"cups of {what}")
        cups = story.value
    story.tell(f"{_upper(who.he)} makes {p} {bake}. Each one needs {q} cups of {what}.")
    story.work(f"The {bake} need", _times(p, q), f"cups of {what}")
    if cups <= story.value:
        cups = LARGEST_NUMBER + 1  # out of range: the draft is thrown away
    story.work(f"{who.name} has", _subtract(cups, story.value), "cups left")
    return story.ask(f"How many cups of {what} are left?", "recipe")


def _points(rng: random.Random, steps: int) -> WordProblem:
    who, other = _two_people(rng)
    p, q = _factors(rng, 80)
    shots = rng.choice(("shots", "goals", "throws"))
    story = _Story()
    story.tell(f"{who.name} makes {p} {shots}. Each is worth {q} points.")
    story.work(f"{who.name} has", _times(p, q), "points")
    if steps == 1:
        return story.ask(f"How many points does {who.name} have?", "points")
    b = _more(rng, story.value)
    story.tell(f"{other.name} has {b} points.")
    if steps == 2:
        story.work("Together they have", _add(story.value, b), "points")
        return story.ask("How many points do they have together?", "points")
    mine = story.value
    c = _more(rng, b)
    story.tell(f"Then {other.name} gets {c} more points.")
    story.work(f"{other.name} has", _add(b, c), "points")
    story.work("Together they have", _add(mine, story.value), "points")
    return story.ask("How many points do they have together?", "points")


def _rows(rng: random.Random, steps: int) -> WordProblem:
    place, things, lost, gained = rng.choice((
        ("A hall", "chairs", "break", "are brought in"),
        ("A garden", "trees", "fall down", "are planted"),
        ("A field", "plants", "die", "are planted"),
        ("A shop", "jars", "are sold", "are brought in"),
        ("A library", "books", "are lent out", "are brought back"),
    ))  # fmt: skip
    p, q = _factors(rng)
    story = _Story()
    story.tell(f"{place} has {p} rows of {q} {things}.")
    story.work("There are", _times(p, q), things)
    for _ in range(steps - 1):
        if rng.random() < 0.5 and story.value <= 90:
            b = _more(rng, story.value)
            story.tell(f"{b} more {gained}.")
            story.work("Then there are", _add(story.value, b), things)
        else:
            b = _less(rng, story.value)
            story.tell(f"{b} {things} {lost}.")
            story.work("Then there are", _subtract(story.value, b), things)
    return story.ask(rng.choice((f"How many {things} are there now?", f"How many {things} are there in the end?"))
                     if steps > 1 else f"How many {things} are there?", "rows")  # fmt: skip


def _bakery(rng: random.Random, steps: int) -> WordProblem:
    who = rng.choice(_PEOPLE)
    what = rng.choice(("rolls", "buns", "cookies", "pies", "muffins"))
    p, q = _factors(rng)
    story = _Story()
    story.tell(f"{who.name} bakes {p} trays of {q} {what}.")
    story.work(f"{who.name} bakes", _times(p, q), what)
    if steps >= 2:
        b = _less(rng, story.value)
        story.tell(f"{_upper(who.he)} sells {b} of them.")
        story.work("There are", _subtract(story.value, b), f"{what} left")
    if steps == 3:
        divisors = [d for d in range(2, 11) if story.value % d == 0 and 1 < story.value // d <= 12]
        if divisors and rng.random() < 0.7:
            d = rng.choice(divisors)
            story.tell(f"The rest go into {d} bags, with the same number in each.")
            story.work("Each bag gets", _divide(story.value, d), what)
            return story.ask(f"How many {what} are in each bag?", "bakery")
        b = _less(rng, story.value)
        story.tell(f"{_upper(who.his)} friends eat {b}.")
        story.work("There are", _subtract(story.value, b), f"{what} left")
    return story.ask(f"How many {what} are left?" if steps > 1 else f"How many {what} does {who.name} bake?", "bakery")


def _compare(rng: random.Random, steps: int) -> WordProblem:
    who, other = _two_people(rng)
    things = rng.choice(_THINGS)
    a = rng.randint(4, 60)
    story = _Story()
    story.tell(f"{who.name} has {a} {things}.")
    if rng.random() < 0.5:
        b = rng.randint(2, 40)
        story.tell(f"{other.name} has {b} more {things} than {who.name}.")
        story.work(f"{other.name} has", _add(a, b), things)
    else:
        b = _less(rng, a)
        story.tell(f"{other.name} has {b} fewer {things} than {who.name}.")
        story.work(f"{other.name} has", _subtract(a, b), things)
    if steps == 1:
        return story.ask(f"How many {things} does {other.name} have?", "compare")
    story.work("Together they have", _add(a, story.value), things)
    if steps == 3:
        b = _less(rng, story.value)
        story.tell(f"They give away {b} of their {things}.")
        story.work("Then they have", _subtract(story.value, b), things)
    return story.ask(f"How many {things} do they have together?" if steps == 2
                     else f"How many {things} do they have now?", "compare")  # fmt: skip


def _times_as_many(rng: random.Random, steps: int) -> WordProblem:
    who, other = _two_people(rng)
    things = rng.choice(_THINGS)
    k, a = rng.randint(2, 6), rng.randint(2, 12)
    story = _Story()
    story.tell(f"{who.name} has {a} {things}. {other.name} has {k} times as many.")
    story.work(f"{other.name} has", _times(k, a), things)
    if steps == 1:
        return story.ask(f"How many {things} does {other.name} have?", "times as many")
    if rng.random() < 0.5:
        story.work("Together they have", _add(a, story.value), things)
        question = f"How many {things} do they have together?"
    else:
        story.work(f"{other.name} has", _subtract(story.value, a), f"more {things}")
        question = f"How many more {things} does {other.name} have than {who.name}?"
    return story.ask(question, "times as many")


def _sharing(rng: random.Random, steps: int) -> WordProblem:
    who, other = _two_people(rng)
    things = rng.choice(_THINGS)
    k, each = rng.randint(2, 10), rng.randint(2, 12)
    total = k * each
    story = _Story(total)
    if steps == 1:
        story.tell(f"{who.name} has {total} {things}.")
    elif steps == 2:
        if rng.random() < 0.5 and total > 5:
            a = rng.randint(2, total - 2)
            story.tell(f"{who.name} has {a} {things} and gets {total - a} more.")
            story.work(f"{who.name} has", _add(a, total - a), things)
        else:
            a = rng.randint(total + 1, LARGEST_NUMBER) if total < LARGEST_NUMBER else LARGEST_NUMBER + 1
            story.tell(f"{who.name} has {a} {things} and gives {a - total} to {other.name}.")
            story.work(f"{who.name} has", _subtract(a, a - total), things)
    else:
        p, q = _factors(rng)
        if abs(p * q - total) < 2:
            total = LARGEST_NUMBER + 1  # out of range: the draft is thrown away
        story.tell(f"{who.name} buys {p} bags of {q} {things}.")
        story.work(f"{who.name} has", _times(p, q), things)
        if p * q < total:
            story.tell(f"Then {who.he} gets {total - p * q} more.")
            story.work(f"Then {who.he} has", _add(p * q, total - p * q), things)
        else:
            story.tell(f"Then {who.he} gives {p * q - total} to {other.name}.")
            story.work(f"Then {who.he} has", _subtract(p * q, p * q - total), things)
    if rng.random() < 0.6:
        story.tell(f"{_upper(who.he)} shares them equally among {k} friends.")
        story.work("Each friend gets", _divide(story.value, k), things)
        return story.ask(f"How many {things} does each friend get?", "sharing")
    story.tell(f"{_upper(who.he)} puts {k} of them in each box.")
    story.work(f"{who.name} fills", _divide(story.value, k), "boxes")
    return story.ask(f"How many boxes does {who.name} fill?", "sharing")


def _journey(rng: random.Random, steps: int) -> WordProblem:
    who = rng.choice(_PEOPLE)
    move = rng.choice(("walks", "runs", "rides", "swims"))
    p, q = _factors(rng, 90)
    story = _Story()
    story.tell(f"{who.name} {move} {p} miles a day for {q} days.")
    story.work(f"{who.name} {move}", _times(p, q), "miles")
    for number in range(steps - 1):
        b = _more(rng, story.value)
        story.tell(f"The next day {who.he} {move} {b} miles." if number == 0
                   else f"On the last day {who.he} {move} {b} miles.")  # fmt: skip
        story.work(f"In all {who.he} {move}", _add(story.value, b), "miles")
    verb = {"walks": "walk", "runs": "run", "rides": "ride", "swims": "swim"}[move]
    return story.ask(f"How many miles does {who.name} {verb} in all?", "journey")


def _ages(rng: random.Random, steps: int) -> WordProblem:
    people = rng.sample(_PEOPLE, 4)
    story = _Story(rng.randint(6, 50))
    story.tell(f"{people[0].name} is {story.value} years old.")
    for number in range(steps):
        before, after = people[number].name, people[number + 1].name
        if rng.random() < 0.55:
            b = rng.randint(2, 30)
            story.tell(f"{after} is {b} years older than {before}.")
            story.work(f"{after} is", _add(story.value, b), "years old")
        else:
            b = _less(rng, story.value)
            story.tell(f"{after} is {b} years younger than {before}.")
            story.work(f"{after} is", _subtract(story.value, b), "years old")
    return story.ask(f"How old is {people[steps].name}?", "ages")


def _temperature(rng: random.Random, steps: int) -> WordProblem:
    when = ("In the morning", "At noon", "At night")
    story = _Story(rng.randint(5, 60))
    story.tell(f"It is {story.value} degrees.")
    for number in range(steps):
        if rng.random() < 0.5:
            b = rng.randint(2, 30)
            story.tell(f"{when[number]} it gets {b} degrees warmer.")
            story.work("Then it is", _add(story.value, b), "degrees")
        else:
            b = _less(rng, story.value)
            story.tell(f"{when[number]} it gets {b} degrees colder.")
            story.work("Then it is", _subtract(story.value, b), "degrees")
    return story.ask("How many degrees is it now?", "temperature")


def _class(rng: random.Random, steps: int) -> WordProblem:
    a = rng.randint(4, 50)
    b = _more(rng, a)
    story = _Story()
    story.tell(rng.choice((
        f"A class has {a} girls and {b} boys.", f"A club has {a} girls and {b} boys.",
        f"A camp has {a} girls and {b} boys.",
    )))  # fmt: skip
    story.work("There are", _add(a, b), "children")
    if steps == 1:
        return story.ask("How many children are there?", "class")
    if steps == 3:
        c = _less(rng, story.value)
        story.tell(f"{c} of the children are ill.")
        story.work("There are", _subtract(story.value, c), "children left")
    sizes = [k for k in range(2, 11) if story.value % k == 0 and 2 <= story.value // k <= 12]
    if sizes:
        k = rng.choice(sizes)
        story.tell(f"They make teams of {k}.")
        story.work("They make", _divide(story.value, k), "teams")
        return story.ask("How many teams are there?", "class")
    c = _more(rng, story.value)
    story.tell(f"Then {c} more children come.")
    story.work("Then there are", _add(story.value, c), "children")
    return story.ask("How many children are there now?", "class")


def _farm(rng: random.Random, steps: int) -> WordProblem:
    animals = rng.sample(("cows", "hens", "sheep", "goats", "ducks", "pigs", "horses"), 3)
    a, b, c = rng.randint(2, 40), rng.randint(2, 30), rng.randint(2, 25)
    story = _Story()
    if steps == 1:
        story.tell(f"A farm has {a} {animals[0]} and {b} {animals[1]}.")
    else:
        story.tell(f"A farm has {a} {animals[0]}, {b} {animals[1]} and {c} {animals[2]}.")
    story.work("There are", _add(a, b), f"{animals[0]} and {animals[1]}")
    if steps >= 2:
        story.work("In all there are", _add(story.value, c), "animals")
    if steps == 3:
        d = _less(rng, story.value)
        story.tell(f"The farmer sells {d} animals.")
        story.work("Then there are", _subtract(story.value, d), "animals")
    return story.ask("How many animals are on the farm now?" if steps == 3 else "How many animals are there in all?",
                     "farm")  # fmt: skip


def _two_products(rng: random.Random, steps: int) -> WordProblem:
    del steps  # always three
    who = rng.choice(_PEOPLE)
    first, second = rng.sample(_THINGS, 2)
    p, q = _factors(rng, 60)
    r, s = _factors(rng, 60)
    story = _Story()
    money = rng.random() < 0.5
    if money:
        story.tell(f"{who.name} buys {p} {first} for {q} dollars each and {r} {second} for {s} dollars each.")
        story.work(f"The {first} cost", _times(p, q), "dollars")
        left = story.value
        story.work(f"The {second} cost", _times(r, s), "dollars")
        story.work("In all it costs", _add(left, story.value), "dollars")
        return story.ask(f"How many dollars does {who.name} pay in all?", "two products")
    story.tell(f"{who.name} has {p} bags of {q} {first} and {r} bags of {s} {second}.")
    story.work("There are", _times(p, q), first)
    left = story.value
    story.work("There are", _times(r, s), second)
    story.work(f"In all {who.he} has", _add(left, story.value), "things")
    return story.ask(f"How many things does {who.name} have in all?", "two products")


def _wages(rng: random.Random, steps: int) -> WordProblem:
    who = rng.choice(_PEOPLE)
    days = rng.sample(("Monday", "Tuesday", "Friday", "Sunday"), 2)
    story = _Story()
    if steps == 1:
        p, q = _factors(rng)
        story.tell(f"{who.name} earns {p} dollars an hour and works {q} hours.")
        story.work(f"{who.name} earns", _times(p, q), "dollars")
        return story.ask(f"How many dollars does {who.name} earn?", "wages")
    a, b, pay = rng.randint(2, 6), rng.randint(2, 6), rng.randint(2, 12)
    story.tell(f"{who.name} works {a} hours on {days[0]} and {b} hours on {days[1]}. "
               f"{_upper(who.he)} earns {pay} dollars an hour.")  # fmt: skip
    story.work(f"{who.name} works", _add(a, b), "hours")
    story.work(f"{who.name} earns", _times(story.value, pay), "dollars")
    if steps == 3:
        c = _less(rng, story.value)
        story.tell(f"Then {who.he} spends {c} dollars on a {rng.choice(_GOODS)}.")
        story.work(f"{who.name} has", _subtract(story.value, c), "dollars left")
        return story.ask(f"How many dollars does {who.name} have left?", "wages")
    return story.ask(f"How many dollars does {who.name} earn in all?", "wages")


def _bare(rng: random.Random, steps: int) -> WordProblem:
    """A calculation without a story, worked from left to right (any product or quotient comes first)."""
    value = rng.randint(2, 80)
    equations: list[str] = []
    operation = rng.choice(("+", "-", "*", "/"))
    if operation == "*":
        value, b = _factors(rng)
    elif operation == "/":
        b, each = rng.randint(2, 10), rng.randint(2, 12)
        value = b * each
    else:
        b = _more(rng, value) if operation == "+" else _less(rng, value)
    expression = f"{value} {operation} {b}"
    make = {"+": _add, "-": _subtract, "*": _times, "/": _divide}
    text, value = make[operation](value, b)
    equations.append(text)
    for _ in range(steps - 1):
        operation = "+" if value < 4 or (rng.random() < 0.5 and value < 95) else "-"
        b = _more(rng, value) if operation == "+" else _less(rng, value)
        expression += f" {operation} {b}"
        text, value = make[operation](value, b)
        equations.append(text)
    question = rng.choice((f"What is {expression}?", f"Work out {expression}.", f"How much is {expression}?",
                           f"Find {expression}."))  # fmt: skip
    return WordProblem("", question, tuple(f"{equation}." for equation in equations), value, "bare")


_Scenario = Callable[[random.Random, int], WordProblem]

_SCENARIOS: tuple[tuple[_Scenario, tuple[int, ...], int], ...] = (
    (_collection, (1, 2, 3), 4),
    (_packs, (1, 2, 3), 4),
    (_colours, (1, 2, 3), 3),
    (_bus, (1, 2, 3), 3),
    (_savings, (1, 2, 3), 3),
    (_shopping, (1, 2, 3), 3),
    (_wallet, (1, 2, 3), 3),
    (_reading, (1, 2, 3), 3),
    (_recipe, (1, 2, 3), 2),
    (_points, (1, 2, 3), 3),
    (_rows, (1, 2, 3), 3),
    (_bakery, (1, 2, 3), 3),
    (_compare, (1, 2, 3), 4),
    (_times_as_many, (1, 2), 3),
    (_sharing, (1, 2, 3), 4),
    (_journey, (1, 2, 3), 2),
    (_ages, (1, 2, 3), 3),
    (_temperature, (1, 2, 3), 2),
    (_class, (1, 2, 3), 2),
    (_farm, (1, 2, 3), 3),
    (_two_products, (3,), 2),
    (_wages, (1, 2, 3), 2),
    (_bare, (1, 2, 3), 7),
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
