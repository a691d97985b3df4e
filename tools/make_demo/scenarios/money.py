"""Stories of saving, buying and earning."""

import random

from tools.make_demo.story import (
    GOODS,
    LARGEST_NUMBER,
    PEOPLE,
    THINGS,
    Story,
    WordProblem,
    factors,
    to_add,
    to_take,
    upper,
)


def savings(rng: random.Random, steps: int) -> WordProblem:
    who = rng.choice(PEOPLE)
    p, q = factors(rng)
    story = Story()
    story.tell(f"{who.name} saves {p} dollars a week for {q} weeks.")
    story.work(f"{who.name} saves", p, "*", q, "dollars")
    for number in range(steps - 1):
        if number == 0 and rng.random() < 0.5 and story.value <= 90:
            b = to_add(rng, story.value)
            story.tell(f"{upper(who.his)} aunt gives {who.name} {b} dollars.")
            story.gain(f"Then {who.he} has", b, "dollars")
        else:
            b = to_take(rng, story.value)
            story.tell(f"{upper(who.he)} spends {b} dollars on a {rng.choice(GOODS)}.")
            story.lose(f"Then {who.he} has", b, "dollars")
    return story.ask(rng.choice((f"How many dollars does {who.name} have?", f"How much money does {who.he} have now?")),
                     "savings")  # fmt: skip


def shopping(rng: random.Random, steps: int) -> WordProblem:
    who = rng.choice(PEOPLE)
    things, good = rng.choice(THINGS), rng.choice(GOODS)
    p, q = factors(rng, 90)
    story = Story()
    story.tell(f"{who.name} buys {p} {things} for {q} dollars each.")
    story.work(f"The {things} cost", p, "*", q, "dollars")
    if steps >= 2 and (steps == 3 or rng.random() < 0.6):
        b = to_add(rng, story.value)
        story.tell(f"{upper(who.he)} also buys a {good} for {b} dollars.")
        story.gain("In all it costs", b, "dollars")
    if len(story.steps) < steps:
        paid = rng.randint(story.value + 1, LARGEST_NUMBER) if story.value < LARGEST_NUMBER else LARGEST_NUMBER + 1
        story.tell(f"{upper(who.he)} had {paid} dollars.")
        story.work(f"{who.name} has", paid, "-", story.value, "dollars left")
        return story.ask(f"How many dollars does {who.name} have left?", "shopping")
    return story.ask(rng.choice(("How many dollars is that in all?", f"How much does {who.name} pay?")), "shopping")


def wallet(rng: random.Random, steps: int) -> WordProblem:
    who = rng.choice(PEOPLE)
    story = Story(rng.randint(20, 99))
    story.tell(f"{who.name} has {story.value} dollars.")
    for number, good in enumerate(rng.sample(GOODS, steps)):
        b = to_take(rng, story.value)
        story.tell(f"{upper(who.he)} buys a {good} for {b} dollars." if number == 0
                   else f"Then {who.he} buys a {good} for {b} dollars.")  # fmt: skip
        story.lose(f"{who.name} has", b, "dollars left")
    return story.ask(f"How many dollars does {who.name} have left?", "wallet")


def two_products(rng: random.Random, steps: int) -> WordProblem:
    del steps  # always three
    who = rng.choice(PEOPLE)
    first, second = rng.sample(THINGS, 2)
    p, q = factors(rng, 60)
    r, s = factors(rng, 60)
    story = Story()
    money = rng.random() < 0.5
    if money:
        story.tell(f"{who.name} buys {p} {first} for {q} dollars each and {r} {second} for {s} dollars each.")
        story.work(f"The {first} cost", p, "*", q, "dollars")
        left = story.value
        story.work(f"The {second} cost", r, "*", s, "dollars")
        story.work("In all it costs", left, "+", story.value, "dollars")
        return story.ask(f"How many dollars does {who.name} pay in all?", "two products")
    story.tell(f"{who.name} has {p} bags of {q} {first} and {r} bags of {s} {second}.")
    story.work("There are", p, "*", q, first)
    left = story.value
    story.work("There are", r, "*", s, second)
    story.work(f"In all {who.he} has", left, "+", story.value, "things")
    return story.ask(f"How many things does {who.name} have in all?", "two products")


def wages(rng: random.Random, steps: int) -> WordProblem:
    who = rng.choice(PEOPLE)
    days = rng.sample(("Monday", "Tuesday", "Friday", "Sunday"), 2)
    story = Story()
    if steps == 1:
        p, q = factors(rng)
        story.tell(f"{who.name} earns {p} dollars an hour and works {q} hours.")
        story.work(f"{who.name} earns", p, "*", q, "dollars")
        return story.ask(f"How many dollars does {who.name} earn?", "wages")
    a, b, pay = rng.randint(2, 6), rng.randint(2, 6), rng.randint(2, 12)
    story.tell(f"{who.name} works {a} hours on {days[0]} and {b} hours on {days[1]}. "
               f"{upper(who.he)} earns {pay} dollars an hour.")  # fmt: skip
    story.work(f"{who.name} works", a, "+", b, "hours")
    story.work(f"{who.name} earns", story.value, "*", pay, "dollars")
    if steps == 3:
        c = to_take(rng, story.value)
        story.tell(f"Then {who.he} spends {c} dollars on a {rng.choice(GOODS)}.")
        story.lose(f"{who.name} has", c, "dollars left")
        return story.ask(f"How many dollars does {who.name} have left?", "wages")
    return story.ask(f"How many dollars does {who.name} earn in all?", "wages")
