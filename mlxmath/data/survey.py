"""Reads a source and notes which of its problems could be taken: filters, repetitions, contamination."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxmath.data.dedup import Benchmark, NearDuplicates, Words, normalise, text_hash
from mlxmath.data.filters import Filter, number, value_of
from mlxmath.data.problem import Problem
from mlxmath.data.sources import MOST_NAMED, LeftOut, LoadedProblems
from mlxmath.runtime.console import warn

BATCH = 2000
DIFFICULTY_WORDS = {"very easy": 0.0, "easy": 1.0, "medium": 2.0, "hard": 3.0, "very hard": 4.0}


@dataclass
class SourceReport:
    """What became of one source's rows."""

    name: str
    split: str
    revision: str
    instead_of: str | None = None
    read: int = 0
    """Rows that became problems, or were skipped."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Rows that are no problems, by reason."""
    first_skipped: dict[str, str] = field(default_factory=dict)
    """Where the first such row stands, by reason."""
    filtered: dict[str, int] = field(default_factory=dict)
    """Problems left out, by the first condition that they do not meet."""
    repeated: int = 0
    contaminated: dict[str, int] = field(default_factory=dict)
    """Problems left out, by the first benchmark that they occur in."""
    contaminated_ids: dict[str, list[str]] = field(default_factory=dict)
    """Their identifiers in the dataset, or else the numbers of their rows (from 0); at most `MOST_NAMED` of each."""
    is_benchmark: str | None = None
    """The benchmark that most of its problems occur in; then they are kept."""
    left: int = 0
    """Problems that could be taken."""
    taken: int = 0
    asked: int | None = None
    """The count asked for."""
    buckets: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of a balanced source: problems left and taken, by the field's value."""
    order: str | None = None
    """What a curriculum goes by."""

    @property
    def left_out(self) -> dict[str, int]:
        """Rows that could not be taken, by reason."""
        return {
            **self.skipped,
            **{f"does not meet '{name}'": count for name, count in self.filtered.items()},
            **{f"occurs in {name}": count for name, count in self.contaminated.items()},
            **({"repeated": self.repeated} if self.repeated else {}),
        }


class Candidate(NamedTuple):
    """A problem that could be taken."""

    place: int
    """In the source's iteration."""
    row: int
    """In the source, from 0."""
    question: int
    """Hash of the normalised question, the longest one of a conversation: by it problems are held out."""
    benchmark: str | None
    """In which it occurs."""
    difficulty: float | None
    length: int
    """Characters of the solution."""
    bucket: str
    """Value of the field to balance over; empty without one."""
    held: Problem | None
    """The problem itself, of a stream that is taken as it comes."""


@dataclass
class Survey:
    """The problems of a source that could be taken."""

    report: SourceReport
    loaded: LoadedProblems
    plain: bool
    """Whether the first problems are to be taken, not some of them."""
    candidates: list[Candidate] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    """Rows that could not be taken, in their order; of many the first."""

    def leave_out(self, row: int, reason: str) -> None:
        """Note a row that is not taken."""
        if len(self.left_out) < MOST_NAMED:
            self.left_out.append(LeftOut(row, reason))

    @property
    def buckets(self) -> list[str]:
        """Of each candidate, the value of the field to balance over; empty without one."""
        return [] if self.loaded.source.balance is None else [candidate.bucket for candidate in self.candidates]

    def settle(self, limit: int | None, names_in: dict[str, list[str]]) -> None:
        """Leave out what occurs in a benchmark (`names_in`: so it is called), and what follows the first `limit`.

        Where most problems do, the source is the benchmark itself or was made from it (as gsm-hard was from GSM8K's
        test), and was named on purpose: they are kept, with a warning.
        """
        counts = Counter(found.benchmark for found in self.candidates if found.benchmark is not None)
        if 2 * counts.total() > len(self.candidates):
            self.report.is_benchmark = counts.most_common(1)[0][0]
            warn(
                f"{self.report.name}: {counts.total():,} of {len(self.candidates):,} problems occur in "
                f"{' or '.join(sorted(counts))}. It is that benchmark or made from it, so they are kept, and a score "
                "on that benchmark will say nothing about a model trained on them."
            )
        else:
            self.report.contaminated = dict(sorted(counts.items()))
            self.report.contaminated_ids = dict(sorted(names_in.items()))
            for found in self.candidates:
                if found.benchmark is not None:
                    self.leave_out(found.row, f"occurs in {found.benchmark}")
            self.candidates = [found for found in self.candidates if found.benchmark is None]
        self.candidates = self.candidates[:limit]
        self.report.left = len(self.candidates)

    def most(self) -> int:
        """Problems that it can give: without a count, a balanced source gives each bucket as many as the least has."""
        counts = Counter(self.buckets)
        if not counts or self.loaded.source.count is not None:
            return len(self.candidates)
        return len(counts) * min(counts.values())


class Seen:
    """The questions that have come so far.

    One source may have several solutions to a question; the same question in another source, or with the same solution,
    is a repetition. Of a conversation of several answers all that users say is the question, and all turns are the
    solution.
    """

    def __init__(self, how: str) -> None:
        self._how = how
        self._source_of: dict[int, int] = {}
        self._solutions: set[int] = set()
        self._near = NearDuplicates() if how == "near" else None

    def repeated(self, source: int, problems: Sequence[Problem], words: Words) -> NDArray[np.bool_]:
        """(P,) whether each repeats an earlier one; the others are remembered."""
        result = np.zeros(len(problems), bool)
        if self._how == "off":
            return result
        questions = words.texts.tolist()
        if self._near is not None:
            fresh = {q: i for i, q in reversed(list(enumerate(questions))) if q not in self._source_of}
            order = sorted(fresh.values())
            similar = self._near.find(normalise([problems[i].whole_question for i in order]))
            self._source_of.update((questions[i], -1) for i, found in zip(order, similar, strict=True) if found)
        for i, (problem, question) in enumerate(zip(problems, questions, strict=True)):
            several = problem.messages if len(problem.asked) > 1 else ()
            turns = " ".join(f"{turn.reasoning} {turn.content} {turn.calls}" for turn in several)
            completions = f"{turns or problem.solution or ''} {problem.rejected or ''}"
            whole = text_hash(f"{question} {' '.join(completions.split())}")
            result[i] = self._source_of.setdefault(question, source) != source or whole in self._solutions
            self._solutions.add(whole)
        return result


def survey_source(
    index: int,
    loaded: LoadedProblems,
    filters: Sequence[Filter],
    benchmarks: Sequence[Benchmark],
    seen: Seen,
    limit: int | None,
    *,
    plain: bool,
) -> Survey:
    """Read a source and find the problems that could be taken, the first `limit` of them if there is one."""
    source = loaded.source
    report = SourceReport(loaded.rows.name, loaded.split, loaded.revision, loaded.instead_of, asked=source.count)
    survey = Survey(report, loaded, plain)
    is_held = loaded.rows.streamed and limit is not None and source.balance is None
    filtered, names_in = Counter[str](), dict[str, list[str]]()
    problems = enumerate(loaded.numbered())
    num_clean = 0
    while (limit is None or num_clean < limit) and (batch := list(itertools.islice(problems, BATCH))):
        report.read += len(batch)
        kept = []
        for place, (row, problem) in batch:
            unmet = next((f.text for f in filters if not f(problem)), None)
            if unmet is None and source.balance is not None and value_of(problem, source.balance) is None:
                unmet = f"{source.balance} is given"
            if unmet is None:
                kept.append((place, row, problem))
            else:
                filtered[unmet] += 1
                survey.leave_out(row, f"does not meet '{unmet}'")
        words = normalise([problem.whole_question for _, _, problem in kept])
        asked = [problem.asked for _, _, problem in kept]
        apart = words if len(asked) == sum(map(len, asked)) else normalise(list(itertools.chain.from_iterable(asked)))
        lengths = np.fromiter(map(len, asked), np.int64)
        owner = np.repeat(np.arange(len(asked)), lengths)
        places = (texts.index(max(texts, key=len)) for texts in asked)
        longest = np.cumsum(lengths) - lengths + np.fromiter(places, np.int64, len(asked))
        occurs_in: list[str | None] = [None] * len(kept)
        for benchmark in reversed(benchmarks):
            for i in owner[benchmark.holds(apart)].tolist():
                occurs_in[i] = benchmark.name
        repeated = seen.repeated(index, [problem for _, _, problem in kept], words)
        report.repeated += int(repeated.sum())
        for i in np.flatnonzero(repeated).tolist():
            survey.leave_out(kept[i][1], "repeated")
        fresh = itertools.compress(zip(kept, apart.texts[longest].tolist(), occurs_in, strict=True), ~repeated)
        for (place, row, problem), question, name in fresh:
            if name is None:
                num_clean += 1
            elif len(names := names_in.setdefault(name, [])) < MOST_NAMED:
                names.append(problem.id)
            bucket = "" if source.balance is None else str(value_of(problem, source.balance)).strip().casefold()
            survey.candidates.append(
                Candidate(
                    place, row, question, name, difficulty(problem), len(problem.solution or ""), bucket,
                    problem if is_held else None,
                )
            )  # fmt: skip
    survey.settle(limit, names_in)
    survey.left_out = sorted((*survey.left_out, *loaded.skipped_rows))[:MOST_NAMED]
    report.filtered, report.skipped = dict(filtered), dict(loaded.skipped)
    report.first_skipped = {reason: loaded.rows.place(index) for reason, index in loaded.first_skipped.items()}
    report.read += sum(report.skipped.values())
    return survey


def difficulty(problem: Problem) -> float | None:
    """A problem's difficulty as a number: of its word, or the number in its level."""
    word = (problem.difficulty or "").strip().casefold()
    return DIFFICULTY_WORDS.get(word, number(word or None))
