"""Stories of what people have: collections, packs, comparisons, fair shares."""

import random

from tools.make_demo.story import (
    COLOURS,
    LARGEST_NUMBER,
    THINGS,
    Person,
    Story,
    WordProblem,
    factors,
    to_add,
    to_take,
    two_people,
    upper,
)


def _change_collection(rng: random.Random, story: Story, who: Person, other: Person, things: str) -> None:
    """One more event that adds to or takes from somebody's things, with its step."""
    if rng.random() < 0.5 and story.value <= LARGEST_NUMBER - 5:
        b = to_add(rng, story.value)
        story.tell(rng.choice((
            f"{upper(who.he)} finds {b} more {things}.",
            f"{upper(who.he)} buys {b} more {things}.",
            f"{other.name} gives {who.name} {b} more {things}.",
            f"Then {who.he} gets {b} more.",
        )))  # fmt: skip
        story.gain(f"Then {who.he} has", b, things)
    else:
        b = to_take(rng, story.value)
        story.tell(rng.choice((
            f"{upper(who.he)} gives {b} {things} to {other.name}.",
            f"{upper(who.he)} loses {b} of them.",
            f"{upper(who.he)} sells {b} {things}.",
            f"Then {who.he} gives away {b}.",
        )))  # fmt: skip
        story.lose(f"Then {who.he} has", b, things)


def _ask_collection(rng: random.Random, story: Story, who: Person, things: str, scenario: str) -> WordProblem:
    question = rng.choice((
        f"How many {things} does {who.name} have now?",
        f"How many {things} does {who.he} have in the end?",
        f"How many {things} does {who.name} have?",
    ))  # fmt: skip
    return story.ask(question, scenario)


def collection(rng: random.Random, steps: int) -> WordProblem:
    who, other = two_people(rng)
    things = rng.choice(THINGS)
    story = Story(rng.randint(5, 80))
    story.tell(rng.choice((
        f"{who.name} has {story.value} {things}.",
        f"{who.name} starts with {story.value} {things}.",
        f"There are {story.value} {things} in {who.name}'s box.",
    )))  # fmt: skip
    for _ in range(steps):
        _change_collection(rng, story, who, other, things)
    return _ask_collection(rng, story, who, things, "collection")


def packs(rng: random.Random, steps: int) -> WordProblem:
    who, other = two_people(rng)
    things, pack = rng.choice(THINGS), rng.choice(("packs", "boxes", "bags", "sets"))
    p, q = factors(rng)
    story = Story()
    story.tell(rng.choice((
        f"{who.name} buys {p} {pack} of {q} {things}.",
        f"{who.name} has {p} {pack} with {q} {things} in each.",
        f"{who.name} gets {p} {pack} of {things}, and each holds {q}.",
    )))  # fmt: skip
    story.work(f"{who.name} has", p, "*", q, things)
    for _ in range(steps - 1):
        _change_collection(rng, story, who, other, things)
    return _ask_collection(rng, story, who, things, "packs")


def colours(rng: random.Random, steps: int) -> WordProblem:
    who, other = two_people(rng)
    things = rng.choice(THINGS)
    first, second = rng.sample(COLOURS, 2)
    a = rng.randint(3, 60)
    b = to_add(rng, a)
    story = Story()
    story.tell(f"{who.name} has {a} {first} {things} and {b} {second} {things}.")
    story.work(f"{who.name} has", a, "+", b, things)
    for _ in range(steps - 1):
        _change_collection(rng, story, who, other, things)
    return _ask_collection(rng, story, who, things, "colours")


def compare(rng: random.Random, steps: int) -> WordProblem:
    who, other = two_people(rng)
    things = rng.choice(THINGS)
    a = rng.randint(4, 60)
    story = Story()
    story.tell(f"{who.name} has {a} {things}.")
    if rng.random() < 0.5:
        b = rng.randint(2, 40)
        story.tell(f"{other.name} has {b} more {things} than {who.name}.")
        story.work(f"{other.name} has", a, "+", b, things)
    else:
        b = to_take(rng, a)
        story.tell(f"{other.name} has {b} fewer {things} than {who.name}.")
        story.work(f"{other.name} has", a, "-", b, things)
    if steps == 1:
        return story.ask(f"How many {things} does {other.name} have?", "compare")
    story.work("Together they have", a, "+", story.value, things)
    if steps == 3:
        b = to_take(rng, story.value)
        story.tell(f"They give away {b} of their {things}.")
        story.lose("Then they have", b, things)
    return story.ask(f"How many {things} do they have together?" if steps == 2
                     else f"How many {things} do they have now?", "compare")  # fmt: skip


def times_as_many(rng: random.Random, steps: int) -> WordProblem:
    who, other = two_people(rng)
    things = rng.choice(THINGS)
    k, a = rng.randint(2, 6), rng.randint(2, 12)
    story = Story()
    story.tell(f"{who.name} has {a} {things}. {other.name} has {k} times as many.")
    story.work(f"{other.name} has", k, "*", a, things)
    if steps == 1:
        return story.ask(f"How many {things} does {other.name} have?", "times as many")
    if rng.random() < 0.5:
        story.work("Together they have", a, "+", story.value, things)
        question = f"How many {things} do they have together?"
    else:
        story.lose(f"{other.name} has", a, f"more {things}")
        question = f"How many more {things} does {other.name} have than {who.name}?"
    return story.ask(question, "times as many")


def sharing(rng: random.Random, steps: int) -> WordProblem:
    who, other = two_people(rng)
    things = rng.choice(THINGS)
    k, each = rng.randint(2, 10), rng.randint(2, 12)
    total = k * each
    story = Story(total)
    if steps == 1:
        story.tell(f"{who.name} has {total} {things}.")
    elif steps == 2:
        if rng.random() < 0.5 and total > 5:
            a = rng.randint(2, total - 2)
            story.tell(f"{who.name} has {a} {things} and gets {total - a} more.")
            story.work(f"{who.name} has", a, "+", total - a, things)
        else:
            a = rng.randint(total + 1, LARGEST_NUMBER) if total < LARGEST_NUMBER else LARGEST_NUMBER + 1
            story.tell(f"{who.name} has {a} {things} and gives {a - total} to {other.name}.")
            story.work(f"{who.name} has", a, "-", a - total, things)
    else:
        p, q = factors(rng)
        if abs(p * q - total) < 2:
            total = LARGEST_NUMBER + 1  # out of range: the draft is thrown away
        story.tell(f"{who.name} buys {p} bags of {q} {things}.")
        story.work(f"{who.name} has", p, "*", q, things)
        if p * q < total:
            story.tell(f"Then {who.he} gets {total - p * q} more.")
            story.work(f"Then {who.he} has", p * q, "+", total - p * q, things)
        else:
            story.tell(f"Then {who.he} gives {p * q - total} to {other.name}.")
            story.work(f"Then {who.he} has", p * q, "-", p * q - total, things)
    if rng.random() < 0.6:
        story.tell(f"{upper(who.he)} shares them equally among {k} friends.")
        story.work("Each friend gets", story.value, "/", k, things)
        return story.ask(f"How many {things} does each friend get?", "sharing")
    story.tell(f"{upper(who.he)} puts {k} of them in each box.")
    story.work(f"{who.name} fills", story.value, "/", k, "boxes")
    return story.ask(f"How many boxes does {who.name} fill?", "sharing")
