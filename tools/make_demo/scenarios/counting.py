"""Stories of people on a bus, rows of chairs, animals, years and degrees; and calculations without a story."""

import random

from tools.make_demo.story import PEOPLE, Story, WordProblem, calculate, factors, to_add, to_take


def bus(rng: random.Random, steps: int) -> WordProblem:
    vehicle = rng.choice(("bus", "train", "boat", "tram"))
    story = Story(rng.randint(5, 60))
    count = f"{story.value} people"
    story.tell(rng.choice((f"A {vehicle} has {count} on it.", f"{count} are on a {vehicle}.")))
    for number in range(steps):
        stop = ("At the first stop", "At the second stop", "At the third stop")[number] if steps > 1 else "At a stop"
        if rng.random() < 0.5:
            b = to_add(rng, story.value)
            story.tell(f"{stop}, {b} people get on.")
            story.gain(f"The {vehicle} has", b, "people")
        else:
            b = to_take(rng, story.value)
            story.tell(f"{stop}, {b} people get off.")
            story.lose(f"The {vehicle} has", b, "people")
    return story.ask(f"How many people are on the {vehicle} now?", "bus")


def rows(rng: random.Random, steps: int) -> WordProblem:
    place, things, lost, gained = rng.choice((
        ("A hall", "chairs", "break", "are brought in"),
        ("A garden", "trees", "fall down", "are planted"),
        ("A field", "plants", "die", "are planted"),
        ("A shop", "jars", "are sold", "are brought in"),
        ("A library", "books", "are lent out", "are brought back"),
    ))  # fmt: skip
    p, q = factors(rng)
    story = Story()
    story.tell(f"{place} has {p} rows of {q} {things}.")
    story.work("There are", p, "*", q, things)
    for _ in range(steps - 1):
        if rng.random() < 0.5 and story.value <= 90:
            b = to_add(rng, story.value)
            story.tell(f"{b} more {gained}.")
            story.gain("Then there are", b, things)
        else:
            b = to_take(rng, story.value)
            story.tell(f"{b} {things} {lost}.")
            story.lose("Then there are", b, things)
    return story.ask(rng.choice((f"How many {things} are there now?", f"How many {things} are there in the end?"))
                     if steps > 1 else f"How many {things} are there?", "rows")  # fmt: skip


def school_class(rng: random.Random, steps: int) -> WordProblem:
    a = rng.randint(4, 50)
    b = to_add(rng, a)
    story = Story()
    story.tell(rng.choice((
        f"A class has {a} girls and {b} boys.", f"A club has {a} girls and {b} boys.",
        f"A camp has {a} girls and {b} boys.",
    )))  # fmt: skip
    story.work("There are", a, "+", b, "children")
    if steps == 1:
        return story.ask("How many children are there?", "class")
    if steps == 3:
        c = to_take(rng, story.value)
        story.tell(f"{c} of the children are ill.")
        story.lose("There are", c, "children left")
    sizes = [k for k in range(2, 11) if story.value % k == 0 and 2 <= story.value // k <= 12]
    if sizes:
        k = rng.choice(sizes)
        story.tell(f"They make teams of {k}.")
        story.work("They make", story.value, "/", k, "teams")
        return story.ask("How many teams are there?", "class")
    c = to_add(rng, story.value)
    story.tell(f"Then {c} more children come.")
    story.gain("Then there are", c, "children")
    return story.ask("How many children are there now?", "class")


def farm(rng: random.Random, steps: int) -> WordProblem:
    animals = rng.sample(("cows", "hens", "sheep", "goats", "ducks", "pigs", "horses"), 3)
    a, b, c = rng.randint(2, 40), rng.randint(2, 30), rng.randint(2, 25)
    story = Story()
    if steps == 1:
        story.tell(f"A farm has {a} {animals[0]} and {b} {animals[1]}.")
    else:
        story.tell(f"A farm has {a} {animals[0]}, {b} {animals[1]} and {c} {animals[2]}.")
    story.work("There are", a, "+", b, f"{animals[0]} and {animals[1]}")
    if steps >= 2:
        story.gain("In all there are", c, "animals")
    if steps == 3:
        d = to_take(rng, story.value)
        story.tell(f"The farmer sells {d} animals.")
        story.lose("Then there are", d, "animals")
    return story.ask("How many animals are on the farm now?" if steps == 3 else "How many animals are there in all?",
                     "farm")  # fmt: skip


def ages(rng: random.Random, steps: int) -> WordProblem:
    people = rng.sample(PEOPLE, 4)
    story = Story(rng.randint(6, 50))
    story.tell(f"{people[0].name} is {story.value} years old.")
    for number in range(steps):
        before, after = people[number].name, people[number + 1].name
        if rng.random() < 0.55:
            b = rng.randint(2, 30)
            story.tell(f"{after} is {b} years older than {before}.")
            story.gain(f"{after} is", b, "years old")
        else:
            b = to_take(rng, story.value)
            story.tell(f"{after} is {b} years younger than {before}.")
            story.lose(f"{after} is", b, "years old")
    return story.ask(f"How old is {people[steps].name}?", "ages")


def temperature(rng: random.Random, steps: int) -> WordProblem:
    when = ("In the morning", "At noon", "At night")
    story = Story(rng.randint(5, 60))
    story.tell(f"It is {story.value} degrees.")
    for number in range(steps):
        if rng.random() < 0.5:
            b = rng.randint(2, 30)
            story.tell(f"{when[number]} it gets {b} degrees warmer.")
            story.gain("Then it is", b, "degrees")
        else:
            b = to_take(rng, story.value)
            story.tell(f"{when[number]} it gets {b} degrees colder.")
            story.lose("Then it is", b, "degrees")
    return story.ask("How many degrees is it now?", "temperature")


def bare(rng: random.Random, steps: int) -> WordProblem:
    """A calculation without a story, worked from left to right (any product or quotient comes first)."""
    value = rng.randint(2, 80)
    equations: list[str] = []
    operation = rng.choice(("+", "-", "*", "/"))
    if operation == "*":
        value, b = factors(rng)
    elif operation == "/":
        b, each = rng.randint(2, 10), rng.randint(2, 12)
        value = b * each
    else:
        b = to_add(rng, value) if operation == "+" else to_take(rng, value)
    expression = f"{value} {operation} {b}"
    text, value = calculate(value, operation, b)
    equations.append(text)
    for _ in range(steps - 1):
        operation = "+" if value < 4 or (rng.random() < 0.5 and value < 95) else "-"
        b = to_add(rng, value) if operation == "+" else to_take(rng, value)
        expression += f" {operation} {b}"
        text, value = calculate(value, operation, b)
        equations.append(text)
    question = rng.choice((f"What is {expression}?", f"Work out {expression}.", f"How much is {expression}?",
                           f"Find {expression}."))  # fmt: skip
    return WordProblem("", question, tuple(f"{equation}." for equation in equations), value, "bare")
