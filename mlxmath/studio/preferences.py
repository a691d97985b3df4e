"""What ratings show: who is preferred, how sure that is, how many more it takes, and whether raters agree."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mlxmath.evaluation.sequential import ALPHA, confidence_sequence, more_to_decide, sequential_p
from mlxmath.evaluation.stats import Interval, wilson_interval
from mlxmath.studio.agreement import Agreement, agreement
from mlxmath.studio.ratings import BOTH_BAD, SAME, SIDES, Rating, Side

Writer = tuple[str, str]
"""A label and a fingerprint."""
ENOUGH = 10
"""Decided problems before which nothing is said of how many more are needed."""


@dataclass(frozen=True)
class Comparison:
    """Two who answered the same problems, as raters have it.

    A problem counts once, however many pairs of it and raters there are: for whom more of its ratings are, else as a
    tie. So the problems are independent of one another.
    """

    source: str
    one: str
    other: str
    fingerprints: tuple[str, str]
    """Of both, which a folder that was made anew may have others of under the same names."""
    wins: int
    """Problems for `one`."""
    ties: int
    losses: int

    @property
    def num_decided(self) -> int:
        """Problems that are no ties."""
        return self.wins + self.losses

    @property
    def total(self) -> int:
        """All problems that were rated."""
        return self.num_decided + self.ties

    @property
    def share(self) -> Interval | None:
        """Of the decided ones, those for `one`; Wilson's interval, for a number of problems fixed beforehand."""
        return wilson_interval(self.wins, self.num_decided) if self.num_decided else None

    @property
    def p_value(self) -> float:
        """Of no preference, at whatever time one looks; see `mlxmath.evaluation.sequential`."""
        return sequential_p(self.wins, self.losses, self.total)

    @property
    def difference(self) -> Interval:
        """(wins − losses) / all, with a confidence sequence: it holds at whatever time one looks."""
        return confidence_sequence(self.wins, self.losses, self.total)

    @property
    def preferred(self) -> str | None:
        """Who is shown to be preferred."""
        return None if self.p_value > ALPHA else self.one if self.wins > self.losses else self.other

    @property
    def num_more(self) -> int | None:
        """Problems still to be rated until it is shown who is preferred, with a probability of 80 %.

        If problems go on to be decided as often, and as often for the same one, as until now. None if there is no
        difference or a very small one, so that no number can be told.
        """
        more = more_to_decide(self.wins, self.losses)
        return None if more is None else math.ceil(more * self.total / max(1, self.num_decided))


def comparisons(ratings: Iterable[Rating]) -> list[Comparison]:
    """Of all two that were compared in a source, those with the most problems first."""
    net: dict[tuple[str, Writer, Writer], Counter[str]] = defaultdict(Counter)
    for rating in ratings:
        one, other = sorted(_writer(rating, side) for side in SIDES)
        if one == other:
            continue
        better = _writer(rating, rating.winner) if rating.winner else None
        net[rating.source, one, other][rating.question] += (better == one) - (better == other)
    found = []
    for (source, one, other), problems in net.items():
        signs = Counter((value > 0) - (value < 0) for value in problems.values())
        marks = one[1], other[1]
        found.append(Comparison(source, one[0], other[0], marks, signs[1], signs[0], signs[-1]))
    return sorted(found, key=lambda one: (-one.total, one.source))


def _writer(rating: Rating, side: Side) -> Writer:
    found = rating.side(side)
    return found.label, found.fingerprint


def between_raters(ratings: Iterable[Rating]) -> dict[tuple[str, str], Agreement]:
    """How far each two raters agree on the pairs that both have rated: who is better, same, both bad."""
    verdicts: dict[str, dict[str, Hashable]] = defaultdict(dict)
    for rating in ratings:
        verdicts[rating.rater][rating.pair] = _verdict(rating)
    found = {}
    for one, other in itertools.combinations(sorted(verdicts), 2):
        if both := [key for key in verdicts[one] if key in verdicts[other]]:
            found[one, other] = _agreement(verdicts[one], verdicts[other], both)
    return found


def _verdict(rating: Rating) -> Hashable:
    """A kind of verdict that other pairs have as well: chance agrees the less often the more kinds there are.

    Who is better; of two samples of one writer whether the earlier one is.
    """
    if rating.winner is None:
        return rating.verdict
    better, worse = (rating.side(side) for side in (rating.winner, *(s for s in SIDES if s != rating.winner)))
    same_writer = (better.label, better.fingerprint) == (worse.label, worse.fingerprint)
    return better.sample < worse.sample if same_writer else (better.label, better.fingerprint)


def _agreement(one: Mapping[str, Hashable], other: Mapping[str, Hashable], both: Sequence[str]) -> Agreement:
    return agreement([one[key] for key in both], [other[key] for key in both])


@dataclass(frozen=True)
class WithGrader:
    """How far a rater agrees with the grader where it calls exactly one of the two right."""

    rater: str
    num_pairs: int
    """Pairs of which exactly one solution is right."""
    decided: Agreement | None
    """On those of which the rater prefers one; None if there are none."""


def with_grader(ratings: Iterable[Rating]) -> list[WithGrader]:
    """Each rater against the grader."""
    by_rater: dict[str, list[Rating]] = defaultdict(list)
    for rating in ratings:
        if rating.right_by_grader:
            by_rater[rating.rater].append(rating)
    found = []
    for rater, own in sorted(by_rater.items()):
        # sides were drawn at random, so neither the rater's nor the grader's margins say anything else
        decided = [rating for rating in own if rating.winner]
        theirs, graders = ([rating.winner for rating in decided], [rating.right_by_grader for rating in decided])
        found.append(WithGrader(rater, len(own), agreement(theirs, graders) if decided else None))
    return found


@dataclass(frozen=True)
class Count:
    """Ratings of one rater in one source."""

    rater: str
    source: str
    total: int
    better: int
    same: int
    both_bad: int
    marked: int
    """In which a wrong step is marked."""


def counts(ratings: Iterable[Rating]) -> list[Count]:
    """By rater and source."""
    groups: dict[tuple[str, str], list[Rating]] = defaultdict(list)
    for rating in ratings:
        groups[rating.rater, rating.source].append(rating)
    return [
        Count(
            *key, len(own), sum(bool(one.winner) for one in own), sum(one.verdict == SAME for one in own),
            sum(one.verdict == BOTH_BAD for one in own),
            sum(bool(one.left_wrong_step or one.right_wrong_step) for one in own),
        )
        for key, own in sorted(groups.items())
    ]  # fmt: skip
