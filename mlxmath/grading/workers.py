"""Worker processes for algebra on what a model wrote, each item within bounds; see `mlxmath.runtime.bounded`."""

import os
import re
from itertools import accumulate

from mlxmath.runtime import bounded

TIME_LIMIT_S = 5.0
"""Processor time for one item; the verdict does not depend on how busy the machine is."""
_MEMORY_BYTES = 4 << 30
_MAX_WORKERS = 8
_MAX_CHARACTERS = 1000
_MAX_DEPTH = 24
_NOT_TRIED = re.compile(r"\d{200}|\x00")
_TOKEN = re.compile(r"[\d.]+!*|\\[A-Za-z]+|[A-Za-z]!*|\S")
_TOWER = 3
"""So many powers on top of each other are a tower."""


def refuses(text: str) -> bool:
    """Whether an answer is beyond what algebra is tried on: too long, too deeply nested, a tower of powers."""
    depths = accumulate((sign in "({[") - (sign in ")}]") for sign in text)
    return (
        len(text) > _MAX_CHARACTERS
        or bool(_NOT_TRIED.search(text))
        or _num_powers(text) >= _TOWER
        or max(depths, default=0) > _MAX_DEPTH
    )


def _num_powers(text: str) -> int:
    """How many powers stand on top of each other: 3 in `9^{9^{9^9}}` and in `9^9^9^9`, 1 in `x^3 + x^2 + 5^4`."""
    enclosing: list[tuple[int, int]] = []
    level = chain = highest = 0
    before = ""
    for token in _TOKEN.findall(text):
        if token in "({[":
            enclosing.append((level, chain if before == "^" else 0))
            level, chain = level + enclosing[-1][1], 0
        elif token in ")}]":
            level, chain = enclosing.pop() if enclosing else (0, 0)
        elif token == "^":
            chain += 1
            highest = max(highest, level + chain)
        elif before != "^":
            chain = 0
        before = token
    return highest


class Pool(bounded.Pool):
    """Workers that compare two answers."""

    def __init__(self, size: int, limit_s: float = TIME_LIMIT_S) -> None:
        super().__init__("mlxmath.grading.symbolic", size, limit_s, _MEMORY_BYTES)
        self._known: dict[tuple[str, str], bool] = {}

    def ask(self, answer: str, gold: str) -> bool | None:
        """Whether math_verify takes the answers for the same; None after a time-out or a crash."""
        if refuses(answer) or refuses(gold):
            return False
        if (known := self._known.get((answer, gold))) is not None:
            return known
        try:
            verdict: bool | None = self.reply([answer, gold])
        except bounded.OverrunError:
            return None
        if verdict is not None:
            if len(self._known) > 50_000:
                self._known.clear()
            self._known[answer, gold] = verdict
        return verdict


def pool() -> Pool:
    """This process's pool."""
    return bounded.own(_make)


def _make() -> Pool:
    return Pool(max(1, min(_MAX_WORKERS, os.cpu_count() or 1)))
