"""Grades a response against a gold answer."""

from dataclasses import dataclass

from mlxmath.grading.equal import equal
from mlxmath.grading.extract import extract


@dataclass(frozen=True)
class Grade:
    """The verdict, the answer that was found and the rule that found it (None: there was no answer)."""

    correct: bool
    extracted: str | None
    rule: str | None


def grade(response: str, gold: str) -> Grade:
    """Whether the final answer in `response` equals `gold`."""
    found = extract(response)
    if found is None:
        return Grade(False, None, None)
    return Grade(equal(found.text, gold), found.text, found.rule)
