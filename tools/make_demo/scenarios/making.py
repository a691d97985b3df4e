"""Stories of reading, cooking, playing and travelling: so many a day, a tray or a shot."""

import random

from tools.make_demo.story import (
    LARGEST_NUMBER,
    PEOPLE,
    Story,
    WordProblem,
    factors,
    to_add,
    to_take,
    two_people,
    upper,
)


def reading(rng: random.Random, steps: int) -> WordProblem:
    who = rng.choice(PEOPLE)
    p, q = factors(rng, 80)
    story = Story()
    if steps == 1:
        story.tell(f"{who.name} reads {p} pages a day for {q} days.")
        story.work(f"{who.name} reads", p, "*", q, "pages")
        return story.ask(f"How many pages does {who.he} read?", "reading")
    pages = rng.randint(p * q + 4, LARGEST_NUMBER)
    story.tell(f"A book has {pages} pages. {who.name} reads {p} pages a day for {q} days.")
    story.work(f"{who.name} reads", p, "*", q, "pages")
    if steps == 3:
        b = rng.randint(2, max(2, pages - story.value - 2))
        story.tell(f"Then {who.he} reads {b} more pages.")
        story.gain(f"In all {who.he} reads", b, "pages")
    story.work("The book has", pages, "-", story.value, "pages left")
    return story.ask("How many pages are left?", "reading")


def recipe(rng: random.Random, steps: int) -> WordProblem:
    who = rng.choice(PEOPLE)
    what = rng.choice(("flour", "sugar", "milk", "rice", "oats"))
    bake = rng.choice(("cakes", "pies", "loaves", "pans"))
    p, q = factors(rng, 80)
    story = Story()
    if steps == 1:
        story.tell(f"{who.name} makes {p} {bake}. Each one needs {q} cups of {what}.")
        story.work(f"{who.name} needs", p, "*", q, f"cups of {what}")
        return story.ask(f"How many cups of {what} does {who.he} need?", "recipe")
    if steps == 2:
        cups = rng.randint(p * q + 1, LARGEST_NUMBER)
        story.tell(f"{who.name} has {cups} cups of {what}.")
    else:
        a = rng.randint(2, LARGEST_NUMBER - 4)
        b = to_add(rng, a)
        story.tell(f"{who.name} has {a} cups of {what} and buys {b} more cups.")
        story.work(f"{who.name} has", a, "+", b, f"cups of {what}")
        cups = story.value
    story.tell(f"{upper(who.he)} makes {p} {bake}. Each one needs {q} cups of {what}.")
    story.work(f"The {bake} need", p, "*", q, f"cups of {what}")
    if cups <= story.value:
        cups = LARGEST_NUMBER + 1  # out of range: the draft is thrown away
    story.work(f"{who.name} has", cups, "-", story.value, "cups left")
    return story.ask(f"How many cups of {what} are left?", "recipe")


def bakery(rng: random.Random, steps: int) -> WordProblem:
    who = rng.choice(PEOPLE)
    what = rng.choice(("rolls", "buns", "cookies", "pies", "muffins"))
    p, q = factors(rng)
    story = Story()
    story.tell(f"{who.name} bakes {p} trays of {q} {what}.")
    story.work(f"{who.name} bakes", p, "*", q, what)
    if steps >= 2:
        b = to_take(rng, story.value)
        story.tell(f"{upper(who.he)} sells {b} of them.")
        story.lose("There are", b, f"{what} left")
    if steps == 3:
        divisors = [d for d in range(2, 11) if story.value % d == 0 and 1 < story.value // d <= 12]
        if divisors and rng.random() < 0.7:
            d = rng.choice(divisors)
            story.tell(f"The rest go into {d} bags, with the same number in each.")
            story.work("Each bag gets", story.value, "/", d, what)
            return story.ask(f"How many {what} are in each bag?", "bakery")
        b = to_take(rng, story.value)
        story.tell(f"{upper(who.his)} friends eat {b}.")
        story.lose("There are", b, f"{what} left")
    return story.ask(f"How many {what} are left?" if steps > 1 else f"How many {what} does {who.name} bake?", "bakery")


def points(rng: random.Random, steps: int) -> WordProblem:
    who, other = two_people(rng)
    p, q = factors(rng, 80)
    shots = rng.choice(("shots", "goals", "throws"))
    story = Story()
    story.tell(f"{who.name} makes {p} {shots}. Each is worth {q} points.")
    story.work(f"{who.name} has", p, "*", q, "points")
    if steps == 1:
        return story.ask(f"How many points does {who.name} have?", "points")
    b = to_add(rng, story.value)
    story.tell(f"{other.name} has {b} points.")
    if steps == 2:
        story.gain("Together they have", b, "points")
        return story.ask("How many points do they have together?", "points")
    mine = story.value
    c = to_add(rng, b)
    story.tell(f"Then {other.name} gets {c} more points.")
    story.work(f"{other.name} has", b, "+", c, "points")
    story.work("Together they have", mine, "+", story.value, "points")
    return story.ask("How many points do they have together?", "points")


def journey(rng: random.Random, steps: int) -> WordProblem:
    who = rng.choice(PEOPLE)
    move = rng.choice(("walks", "runs", "rides", "swims"))
    p, q = factors(rng, 90)
    story = Story()
    story.tell(f"{who.name} {move} {p} miles a day for {q} days.")
    story.work(f"{who.name} {move}", p, "*", q, "miles")
    for number in range(steps - 1):
        b = to_add(rng, story.value)
        story.tell(f"The next day {who.he} {move} {b} miles." if number == 0
                   else f"On the last day {who.he} {move} {b} miles.")  # fmt: skip
        story.gain(f"In all {who.he} {move}", b, "miles")
    verb = {"walks": "walk", "runs": "run", "rides": "ride", "swims": "swim"}[move]
    return story.ask(f"How many miles does {who.name} {verb} in all?", "journey")
