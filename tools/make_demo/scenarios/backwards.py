"""Stories told from an unknown start to a known end, worked from the end: each event is undone, the last one first."""

import random

from tools.make_demo.story import (
    GOODS,
    LARGEST_NUMBER,
    PEOPLE,
    THINGS,
    Story,
    WordProblem,
    calculate,
    to_add,
    to_take,
    two_people,
    upper,
)


def _two_events(rng: random.Random) -> tuple[list[tuple[str, int]], int]:
    """Two events (+ or -, how many) that take a start of 5 to 60 to an end within the bounds, and that end."""
    value = rng.randint(5, 60)
    events = []
    for _ in range(2):
        sign = "+" if rng.random() < 0.5 and value <= LARGEST_NUMBER - 5 else "-"
        b = to_add(rng, value) if sign == "+" else to_take(rng, value)
        events.append((sign, b))
        _, value = calculate(value, sign, b)
    return events, value


def _undo(story: Story, events: list[tuple[str, int]], end: int, who: str, things: str) -> None:
    """Add the steps from the end to the start."""
    story.value = end
    for before, (sign, b) in zip(("Before that", "At first"), reversed(events), strict=True):
        story.work(f"{before} {who}", story.value, "-" if sign == "+" else "+", b, things)


def collection(rng: random.Random, steps: int) -> WordProblem:
    """Things that somebody had."""
    del steps  # always two
    who, other = two_people(rng)
    things = rng.choice(THINGS)
    events, end = _two_events(rng)
    story = Story()
    story.tell(f"{who.name} had some {things}.")
    for sign, b in events:
        story.tell(rng.choice(
            (f"{upper(who.he)} found {b} more {things}.", f"{upper(who.he)} bought {b} more {things}.",
             f"{other.name} gave {who.name} {b} {things}.") if sign == "+" else
            (f"{upper(who.he)} gave {b} {things} to {other.name}.", f"{upper(who.he)} lost {b} of them.",
             f"{upper(who.he)} sold {b} {things}.")
        ))  # fmt: skip
    story.tell(f"Now {who.he} has {end} {things}.")
    _undo(story, events, end, f"{who.he} had", things)
    return story.ask(f"How many {things} did {who.name} have at first?", "backwards collection")


def vehicle(rng: random.Random, steps: int) -> WordProblem:
    """People on a bus at the start of its way."""
    del steps  # always two
    what = rng.choice(("bus", "train", "boat", "tram"))
    events, end = _two_events(rng)
    story = Story()
    story.tell(f"A {what} had some people on it.")
    for stop, (sign, b) in zip(("At the first stop", "At the second stop"), events, strict=True):
        story.tell(f"{stop}, {b} people got {'on' if sign == '+' else 'off'}.")
    story.tell(f"Now the {what} has {end} people on it.")
    _undo(story, events, end, f"the {what} had", "people")
    return story.ask(f"How many people were on the {what} at first?", "backwards bus")


def wallet(rng: random.Random, steps: int) -> WordProblem:
    """Money that somebody had before spending and getting some."""
    del steps  # always two
    who = rng.choice(PEOPLE)
    events, end = _two_events(rng)
    story = Story()
    story.tell(f"{who.name} had some money.")
    for (sign, b), good in zip(events, rng.sample(GOODS, 2), strict=True):
        story.tell(f"{upper(who.his)} aunt gave {who.name} {b} dollars." if sign == "+"
                   else f"{upper(who.he)} bought a {good} for {b} dollars.")  # fmt: skip
    story.tell(f"Now {who.he} has {end} dollars.")
    _undo(story, events, end, f"{who.he} had", "dollars")
    return story.ask(f"How many dollars did {who.name} have at first?", "backwards wallet")
