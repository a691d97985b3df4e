"""A problem of an evaluation, the filters of its page, and what they let through."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

Key = tuple[str, str, int]
"""Of an answer: who gave it, the problem's id, which of several."""
GROUPINGS = ("benchmark", "level", "subject")


@dataclass(frozen=True)
class Problem:
    """A problem that all have answered."""

    id: str
    line: str
    """The beginning of its question, without line breaks."""
    benchmark: str
    level: str | None
    subject: str | None
    right: Mapping[str, bool]
    """By the label of who answered: the majority's answer, where there are several."""
    shown: Mapping[str, Key]
    """The answer of each that the report shows."""
    keys: tuple[Key, ...]
    """All answers."""


@dataclass(frozen=True)
class Wanted:
    """What a page's filters say; empty ones let everything through."""

    pair: int = 0
    """Which comparison the outcomes are of."""
    outcome: str = ""
    category: str = ""
    benchmark: str = ""
    level: str = ""
    subject: str = ""
    search: str = ""
    page: int = 1
    problem: str = ""
    """The page that this one is on, whatever `page` says."""

    @classmethod
    def of(cls, values: Mapping[str, str]) -> "Wanted":
        """Of an address; what is no number counts as the first."""
        found: dict[str, Any] = {one.name: values.get(one.name, one.default) for one in fields(cls)}
        for name, most in (("pair", 1000), ("page", 1_000_000)):
            text = str(found[name])
            found[name] = min(int(text), most) if text.isascii() and text.isdigit() and len(text) < 10 else 0
        return cls(**found)

    @property
    def fields(self) -> dict[str, str]:
        """What of it an address has to say, without the page."""
        names = ("pair", "outcome", "category", *GROUPINGS, "search")
        return {name: str(value) for name in names if (value := getattr(self, name))}

    @property
    def place(self) -> dict[str, str]:
        """What of it an address has to say of the page and the problem."""
        page = {"page": str(self.page)} if self.page > 1 else {}
        return page | ({"problem": self.problem} if self.problem else {})


@dataclass(frozen=True)
class Found:
    """A page of problems."""

    problems: list[Problem]
    counts: dict[str, int]
    """Problems by outcome, of those that pass the other filters; "all" is the sum."""
    num_fitting: int
    page: int
    num_pages: int
    num_left: int
    """Answers of which is not known yet how they ended, where that was asked."""
