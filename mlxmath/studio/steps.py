"""A solution in steps, of which one can be marked as the first wrong one."""

import re

from mlxmath.evaluation.latex import MATH

MOST = 300
"""Steps of a solution; what follows belongs to the last."""
_SHORTEST = 4
"""Characters: what is shorter, as the number of a step, belongs to what follows."""
_END = re.compile(r"\n\s*|(?<=[.!?])[\"')\]*]*[ \t]+(?=[A-Z\\$(\[*])")


def steps(text: str) -> list[str]:
    """Lines, and the sentences in them, without cutting a formula; put together they are the text again."""
    formulas = [match.span() for match in MATH.finditer(text)]
    found: list[str] = []
    start = 0
    for match in _END.finditer(text):
        if len(found) == MOST - 1:
            break
        end = match.end()
        is_inside = any(first < end < last or first < match.start() < last for first, last in formulas)
        if not is_inside and len(text[start:end].strip()) >= _SHORTEST:
            found.append(text[start:end])
            start = end
    if rest := text[start:]:
        if found and not rest.strip():
            found[-1] += rest
        else:
            found.append(rest)
    return found
