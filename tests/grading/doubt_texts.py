"""Texts that go round in circles, and texts whose doubt leads somewhere."""

from collections.abc import Iterator

OPENING = (
    "Anna has 12 boxes with 7 pens in each, so 12 * 7 = 84 pens.",
    "The train runs 60 km in an hour. In 3 hours it runs 60 * 3 = 180 km.",
    "Let the width be w. The length is w + 4 and the perimeter is 32.",
    "A shirt costs $25 and a cap costs $9, together $34.",
    "There are 24 pupils, a third of them play chess: 24 / 3 = 8.",
)


def loops() -> Iterator[str]:
    """Fifty: ten of each of five kinds."""
    sentences = (
        "I need to find the total.",
        "So we add the numbers again.",
        "The answer is 84.",
        "Let us think step by step.",
        "Therefore the sum is what we want and we go on",
        "x = 5, so",
        "and then and then",
        "We have 3 apples left over.",
        "Hence the result follows from the equation.",
        "84 pens in total",
    )
    for i, sentence in enumerate(sentences):
        tail = (" " + sentence) * (3 + i)
        yield OPENING[i % 5] + tail + (sentence[: len(sentence) // 2] if i % 2 else "")
    computations = (
        ("12 * 7", "84"),
        ("60 * 3", "180"),
        ("24 / 3", "8"),
        ("25 + 9", "34"),
        ("100 - 37", "63"),
        ("15 x 4", "60"),
        ("2 * (3 + 4)", "14"),
        ("1,200 / 4", "300"),
        ("0.5 * 18", "9"),
        ("7 * 7 * 2", "98"),
    )
    links = (
        "First I compute {}.",
        "Checking it once more: {}.",
        "That gives {} as I said.",
        "Again {}, which is fine.",
    )
    for i, (left, right) in enumerate(computations):
        yield OPENING[(i + 1) % 5] + " " + " ".join(link.format(f"{left} = {right}") for link in links[: 3 + i % 2])
    for i in range(10):
        first, second = 40 + i, 50 - i
        flips = (
            f"The answer is {first}. ",
            f"Wait, the answer is {second}. ",
            f"No, it is {first} after all. ",
            f"Actually, the answer should be {second}. ",
            f"Hmm, I was right before, the answer is {first}. ",
            f"Hold on, it must be {second}. ",
        )
        yield OPENING[i % 5] + " " + "".join(flips[: 5 + i % 2])
    storms = (
        "Wait, is that right?",
        "Hmm, let me see.",
        "Hold on, I am not sure.",
        "Actually, maybe that is fine.",
        "No, something is off.",
        "But wait, what was asked?",
        "Let me double-check this.",
        "Hmm.",
        "Oops, I lost track.",
    )
    for i in range(10):
        yield OPENING[(i + 2) % 5] + "\n" + "\n".join(storms[(i + j) % len(storms)] for j in range(4 + i % 4))
    phrase = (
        "we look at the number of items that are given in the problem and compare it with what is asked",
        "since every box holds the same number of pens the total must be a multiple of that number",
        "the distance is the speed times the time and so we have to know how long the train runs",
        "by the given condition the sum of both parts equals the whole so that one part determines the other",
        "going back to the question we see that it asks for the remaining amount after the purchase is made",
    )
    fillers = ("Now", "Once more", "In other words", "As noted", "Then", "Also", "To repeat")
    for i in range(10):
        repeated = phrase[i % 5]
        yield OPENING[i % 5] + " " + " ".join(f"{filler}, {repeated}." for filler in fillers[: 4 + i % 3])


JUSTIFIED = (
    "She pays 3 * 4 = 12 dollars. Wait, the cap is extra, so 12 + 9 = 21 dollars. #### 21",
    "12 * 7 = 84. Wait, two boxes were empty: 10 * 7 = 70. #### 70",
    "The speed is 60 km/h for 3 hours, 180 km. Hold on, the last hour was at 40 km/h: 60 * 2 + 40 = 160. #### 160",
    "Hmm, the question asks for weeks, not days: 28 / 7 = 4. #### 4",
    "20% of 50 is 10. Actually, the discount applies to both, so 20% of 80 = 16. #### 16",
    "No, that counts Tom twice. There are 24 - 1 = 23 others. #### 23",
    "Half of 36 is 18. Let me double-check: 18 + 18 = 36. Good. #### 18",
    "Wait, x cannot be negative, so x = 5 is the only root.",
    "We get x^2 = 49. Wait, both signs are possible: x = 7 or x = -7.",
    "The area is 6 * 8 = 48. Hmm, a triangle needs half of that: 48 / 2 = 24.",
    "I made a mistake: 7 * 8 is not 54. 7 * 8 = 56, so the total is 56 + 4 = 60.",
    "Tom is 12. Wait, that is his age in 3 years, so now he is 12 - 3 = 9.",
    "The sum is 15 + 27 = 42. Let me check this: 42 - 27 = 15. Right. The answer is 42.",
    "Actually, the bus makes 3 trips, so 3 * 40 = 120 children.",
    "Hold on, there are 60 minutes in an hour: 150 / 60 = 2.5 hours.",
    "5! = 120 orders. Wait, the table is round, so only 4! = 24 are different.",
    "The median of 3, 5, 9 is 5. Hmm, a new value 6 comes in, so it is (5 + 6) / 2 = 5.5.",
    "On second thought the interest is compound: 100 * 1.1 * 1.1 = 121.",
    "She has 40 - 15 = 25 left. Wait, she also found 5, so 25 + 5 = 30.",
    "No, wait: the rope is cut into 4 parts with 3 cuts, so 3 * 2 = 6 minutes.",
    "That is not right, since 13 is prime. The next one is 14 = 2 * 7.",
    "Oops, I used the radius for the diameter. With r = 5 the area is 25\\pi.",
    "<think>Add 17 and 25: 42. Wait, the problem subtracts: 25 - 17 = 8.</think> #### 8",
    "There are 52 weeks. Actually, he rests 2 of them, so 50 * 5 = 250 days.",
    "x + 3 = 10 gives x = 7. Wait, the equation says 2x + 3 = 10, so x = 3.5.",
    "Let me recheck the units. 2 m = 200 cm, so 200 / 25 = 8 pieces.",
    "Each of 6 friends shakes 5 hands: 30. Hmm, each shake is counted twice: 30 / 2 = 15.",
    "Wait, 0 is even too, so there are 6 even numbers from 0 to 10. The chance is 6/11.",
    "Start: 80. Wait, minus 12 makes 68. Hmm, and a tenth of 68 is 6.8. Actually, rounded up 7. So 68 - 7 = 61.",
    "First try: 9 * 9 = 81. Wait, too large. Hmm, 8 * 8 = 64 is below 70. No, 70 - 64 = 6 is left. The answer is 6.",
    "Hmm, divide by 4: 96 / 4 = 24. Wait, by 3: 96 / 3 = 32. Actually, by 6, since half break: 96 / 6 = 16. #### 16",
    "The ratio is 2:3. Wait, the total is 35, so one part is 35 / 5 = 7 and the smaller share 14.",
    "Hold on, tax comes on top: 50 * 1.08 = 54. Actually, the tip too: 54 + 5 = 59. The answer is 59.",
    "A leap year has 366 days. Wait, 1900 was none: 365. So 365 - 31 = 334 days are left.",
)
