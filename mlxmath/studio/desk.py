"""What lies before a rater: the next pair, in an order that only this process knows.

A page holds a ticket, a random number, and neither who wrote what nor anything that depends on it.
"""

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import urlencode

from mlxmath.errors import InputError
from mlxmath.studio.ratings import SIDES, UNDONE, VERDICTS, Rating, Side
from mlxmath.studio.sources import Answer, Pair, Source, answers_differ, grader_disagrees
from mlxmath.studio.steps import steps

_MOST_TICKETS = 2000
_MOST_NAME, _MOST_COMMENT = 60, 4000
"""Characters."""


@dataclass(frozen=True)
class Choice:
    """What somebody has chosen to rate."""

    rater: str
    source: str
    """The name of its folder."""
    one: int
    """Which of those who answered."""
    other: int
    """The other one, or the same."""
    differ: bool = False
    """Only pairs whose final answers differ."""
    disagree: bool = False
    """Only pairs of which the grader calls exactly one right."""
    again: bool = False
    """Those that this rater has rated come again, the oldest rating first."""
    job: str = ""
    """The id of what writes more answers meanwhile."""

    @property
    def fields(self) -> dict[str, str]:
        """As a form or an address has it."""
        texts = {"rater": self.rater, "source": self.source, "one": str(self.one), "other": str(self.other)}
        texts |= {name: "on" for name in ("differ", "disagree", "again") if getattr(self, name)}
        return texts | ({"job": self.job} if self.job else {})

    @property
    def query(self) -> str:
        """After the question mark of an address."""
        return urlencode(self.fields)


def name_of(form: Mapping[str, str]) -> str:
    """The rater's name.

    Raises:
        InputError: there is none, or none that a line of text can hold.
    """
    rater = " ".join(form.get("rater", "").split())
    if not rater or len(rater) > _MOST_NAME or not rater.isprintable():
        raise InputError(f"rater: expected your name or initials, at most {_MOST_NAME} characters, beside each rating.")
    return rater


def chosen(form: Mapping[str, str], found: Source) -> Choice:
    """What a form says.

    Raises:
        InputError: the rater has no name, or one of those chosen has not answered.
    """
    rater = name_of(form)
    last = len(found.labels) - 1
    places = [str(place) for place in range(last + 1)]
    one, other = form.get("one", "0"), form.get("other", str(last))
    if one not in places or other not in places:
        raise InputError(f"solutions: expected two of {', '.join(found.labels)}, by their places from 0 to {last}.")
    is_on = {name: form.get(name) == "on" for name in ("differ", "disagree", "again")}
    return Choice(rater, found.folder, int(one), int(other), **is_on, job=form.get("job", ""))


def asked_for(pairs: Sequence[Pair], choice: Choice) -> list[Pair]:
    """The pairs that pass the filters."""
    return [
        pair for pair in pairs
        if (answers_differ(pair) or not choice.differ) and (grader_disagrees(pair) or not choice.disagree)
    ]  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """A pair as it lies before a rater."""

    pair: Pair
    is_swapped: bool
    """Whether `pair.other` is on the left."""
    rater: str
    ticket: str
    since_s: float
    """When, by the monotonic clock."""
    gold_seen: bool = False

    def side(self, side: Side) -> Answer:
        """What stands there."""
        return self.pair.other if (side == "left") == self.is_swapped else self.pair.one

    def steps(self, side: Side) -> list[str]:
        """Of the solution there."""
        return steps(self.side(side).text)


class Desk:
    """Lays pairs before raters, and keeps to itself which side is whose.

    Args:
        secret: that the order follows from; nobody is told it.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secret or secrets.token_bytes(32)
        self._shown: OrderedDict[str, Shown] = OrderedDict()
        self._skipped: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def show(self, pair: Pair, rater: str) -> Shown:
        """Lay a pair before a rater; its order is the same whenever the rater gets it."""
        named = f"{rater}\0{pair.key}".encode()
        is_swapped = bool(hmac.digest(self._secret, named, hashlib.sha256)[0] & 1)
        shown = Shown(pair, is_swapped, rater, secrets.token_urlsafe(16), time.monotonic())
        with self._lock:
            self._shown[shown.ticket] = shown
            while len(self._shown) > _MOST_TICKETS:
                self._shown.popitem(last=False)
        return shown

    def get(self, ticket: str) -> Shown | None:
        """What a ticket is for; None if it is of another studio, or of one that has ended."""
        with self._lock:
            return self._shown.get(ticket)

    def show_gold(self, shown: Shown) -> None:
        """Note that the rater has seen the gold answer."""
        with self._lock:
            if shown.ticket in self._shown:
                self._shown[shown.ticket] = replace(shown, gold_seen=True)

    def skip(self, shown: Shown) -> None:
        """Put a pair aside until this studio ends, or nothing else is left."""
        with self._lock:
            self._skipped.setdefault(shown.rater, set()).add(shown.pair.key)

    def take_back(self, rater: str) -> None:
        """Lay aside no longer what a rater has skipped."""
        with self._lock:
            self._skipped.pop(rater, None)

    def next(self, pairs: Sequence[Pair], rated: Mapping[str, Rating], choice: Choice) -> tuple[Pair | None, int]:
        """The pair that comes next, and how many are put aside.

        Args:
            pairs: that were asked for.
            rated: this rater's ratings, by the pair's key, the oldest first.
            choice: what was asked for.
        """
        with self._lock:
            aside = self._skipped.get(choice.rater, set()).copy()
        waiting = [pair for pair in pairs if pair.key not in rated and pair.key not in aside]
        if choice.again and not waiting:
            places = {key: place for place, key in enumerate(rated)}
            waiting = [pair for pair in pairs if pair.key in rated]
            waiting.sort(key=lambda pair: (pair.key in aside, places[pair.key]))
        num_aside = sum(pair.key in aside and pair.key not in rated for pair in pairs)
        return waiting[0] if waiting else None, num_aside


def rating_of(shown: Shown, form: Mapping[str, str]) -> Rating:
    """What a rater says of a pair, for the file.

    Raises:
        InputError: it is no verdict, no step of the solution, or a very long comment.
    """
    verdict, comment = form.get("verdict", ""), form.get("comment", "").strip()
    if verdict not in VERDICTS:
        raise InputError(f"verdict: expected one of {', '.join(VERDICTS)}.")
    if len(comment) > _MOST_COMMENT:
        raise InputError(f"comment: expected at most {_MOST_COMMENT:,} characters; found {len(comment):,}.")
    marked = {side: _marked(shown, side, form.get(f"{side}_step", "")) for side in SIDES}
    return _rating(shown, verdict, comment, marked)


def taken_back(rating: Rating) -> Rating:
    """The line that undoes a rating."""
    return replace(rating, verdict=UNDONE, time=_now())


def _marked(shown: Shown, side: Side, number: str) -> tuple[int | None, str]:
    """The step that was marked as the first wrong one, and its text."""
    if not number:
        return None, ""
    found = shown.steps(side)
    if not number.isascii() or not number.isdecimal() or len(number) > 6 or not 1 <= int(number) <= len(found):
        raise InputError(f"the first wrong step ({side}): expected a number from 1 to {len(found)}.")
    return int(number), found[int(number) - 1].strip()


def _rating(shown: Shown, verdict: str, comment: str, marked: Mapping[Side, tuple[int | None, str]]) -> Rating:
    pair, (left, right) = shown.pair, (shown.side(side) for side in SIDES)
    return Rating(
        shown.rater, _now(), pair.key, pair.source.kind, pair.source.folder, pair.benchmark, pair.problem,
        pair.question, pair.gold,
        left.label, left.fingerprint, left.sample, left.text, left.correct, *marked["left"],
        right.label, right.fingerprint, right.sample, right.text, right.correct, *marked["right"],
        verdict, comment, shown.gold_seen, round(time.monotonic() - shown.since_s, 1),
    )  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
