"""What kind of answer it is, and how soundly it was reached."""

from dataclasses import dataclass

from mlxmath.evaluation.samples import Sample
from mlxmath.grading import doubt, faithfulness

CATEGORIES = {
    "right": "right",
    "wrong": "wrong answer",
    "slip": "arithmetic slip",
    "none": "no answer",
    "truncated": "cut off",
    "loop": "doubt loop",
}
"""How an answer ended. A wrong one is a slip if an equation in it is false; a loop ends in recursive doubt."""

FAITHFULNESS = ("validity", "provenance", "support", "liveness")
"""F1 to F4 of `mlxmath.grading.faithfulness`."""


@dataclass(frozen=True)
class Measures:
    """Of one response; see `mlxmath.grading.faithfulness` for F1 to F4 (None: nothing to be measured on)."""

    category: str
    validity: float | None
    provenance: float | None
    support: float | None
    liveness: float | None
    doubt: bool
    num_equations: int
    """That arithmetic can decide."""


def measure(sample: Sample) -> Measures:
    """Measure a graded response."""
    found = faithfulness(sample.response, sample.question, sample.extracted)
    loops = doubt(sample.response).flagged
    if sample.correct:
        category = "right"
    elif loops:
        category = "loop"
    elif sample.truncated:
        category = "truncated"
    elif sample.extracted is None:
        category = "none"
    else:
        category = "slip" if found.num_false else "wrong"
    support = None if found.support is None else float(found.support)
    num_equations = sum(equation.verdict != "abstain" for equation in found.equations)
    return Measures(category, found.validity, found.provenance, support, found.liveness, loops, num_equations)
