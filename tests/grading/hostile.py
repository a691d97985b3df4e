"""Strings that are hard on a grader: nesting, towers of powers, great numbers, control characters, megabytes."""

import random
from collections.abc import Iterator

_PIECES = (
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    "^",
    "_",
    "9",
    "1,",
    "\\frac",
    "\\sqrt",
    "\\boxed{",
    "$",
    "\\(",
    "\\)",
    "\\[",
    "\\]",
    "####",
    "Therefore ",
    "answer is ",
    "=",
    "and ",
    "or ",
    " ",
    "\n",
    "\t",
    "\x00",
    "\x07",
    "\u202e",
    "٣",
    "²",
    "x",
    "e",
    "\\text{",
    "\\left",
    "|",
    "!",
    "%",
    "½",
    "-",
    "+",
    ".",
    "...",
    "<think>",
    "</think>",
    "\\\\",
    "\\cup",
    "\\infty",
    "a",
    "**",
    "is ",
    "1/",
    "1 ",
    "🙂",
    "<answer>",
    "not ",
    " but ",
    "wait, it is ",
    "1:",
    "\n ",
    "\\overline{",
    "…",
    "_000",
    ".000",
    "\\pm",
    "],",
    "km ",
    "May 1",
    "\\begin{cases}",
    "mod ",
    "x<",
)
_COSTLY = (
    "9^{9^{9^9}}",
    "x^{%d}",
    "(%d)!",
    "\\binom{%d}{5000000}",
    "\\sum_{k=1}^{%d} \\frac{1}{k}",
    "2^{%d} x",
    "\\int_0^1 x^{%d} dx",
    "\\sqrt[%d]{x}",
    "(x+1)^{%d}",
    "\\prod_{k=1}^{%d} k",
    "\\lim_{x \\to 0} \\frac{\\sin(x^{%d})}{x}",
    "10^{10^{%d}} + x",
    "\\gamma^{%d!}",
    "((x+y)^{99})^{%d}",
)


def hostile_strings(number: int, seed: int = 0) -> Iterator[str]:
    """So many strings; one in a hundred is about a megabyte, one in fifty is costly algebra."""
    rng = random.Random(seed)
    for i in range(number):
        piece, length = rng.choice(_PIECES), rng.choice((3, 30, 300, 3000))
        if i % 100 == 7:
            yield rng.choice(("", "#### ", "\\boxed{", "The answer is ")) + piece * (1_000_000 // len(piece))
        elif i % 50 == 9:
            costly = rng.choice(_COSTLY)
            yield "\\boxed{" + (costly % rng.choice((10**5, 10**7, 10**9)) if "%d" in costly else costly) + "}"
        else:
            yield _one(rng, i % 9, piece, length)


def _one(rng: random.Random, kind: int, piece: str, length: int) -> str:
    mixed = "".join(rng.choice(_PIECES) for _ in range(length))
    short = min(length, 300)
    return (
        piece * length,
        "\\boxed{" + "(" * length + "1" + ")" * length + "}",
        "\\boxed{" + "9^{" * short + "9" + "}" * short + "}",
        mixed,
        "#### " + piece * length,
        "The answer is " + (piece + rng.choice(_PIECES)) * length,
        "\\frac{1}{" * short + "2" + "}" * short,
        f"${mixed}$",
        "".join(chr(rng.randrange(0x3000)) for _ in range(length)),
    )[kind]
