"""Mixes sources: filters, leaves out repeated and contaminated problems, balances, draws.

The sources are read twice: once to decide which rows are taken, of which only hashes and numbers are kept, and once to
give these rows out in the order of the sources. So the memory does not grow with the text, and which rows come out
depends on nothing but the data, the settings and the seed.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxmath.config.schema import DEMO, DataConfig
from mlxmath.console import warn
from mlxmath.problems.decontaminate import Benchmark, open_benchmarks
from mlxmath.problems.filters import Filter, check_fields, number, parse_filter, value_of
from mlxmath.problems.problem import Problem
from mlxmath.problems.similarity import NearDuplicates, Words, mix, normalise, text_hash
from mlxmath.problems.sources import LoadedProblems, load_problems

BATCH = 2000
RANKS = 1000
"""Steps of a curriculum's scale: a row's rank is the share of its source's rows that are easier, in thousandths."""
DIFFICULTY_WORDS = {"very easy": 0.0, "easy": 1.0, "medium": 2.0, "hard": 3.0, "very hard": 4.0}

Ids = NDArray[np.int64]


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
    filtered: dict[str, int] = field(default_factory=dict)
    """Problems left out, by the first condition that they do not meet."""
    repeated: int = 0
    contaminated: dict[str, int] = field(default_factory=dict)
    """Problems left out, by the first benchmark that they occur in."""
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


@dataclass
class _Survey:
    """The problems of a source that could be taken: P of them."""

    report: SourceReport
    loaded: LoadedProblems
    plain: bool
    """Whether the first problems are to be taken, not some of them."""
    held: list[Problem] | None
    """(P) the problems themselves, of a stream."""
    ids: list[int] = field(default_factory=list)
    """(P) places in the source's iteration."""
    difficulty: list[float | None] = field(default_factory=list)
    """(P)"""
    lengths: list[int] = field(default_factory=list)
    """(P) characters of the solutions."""
    buckets: list[str] = field(default_factory=list)
    """(P) values of the field to balance over; empty without one."""
    occurs_in: list[str | None] = field(default_factory=list)
    """(P) a benchmark; `settle` leaves these out."""

    def add(self, place: int, problem: Problem, benchmark: str | None) -> None:
        """Note a problem that could be taken, and the benchmark that it occurs in."""
        self.ids.append(place)
        self.occurs_in.append(benchmark)
        self.difficulty.append(difficulty(problem))
        self.lengths.append(len(problem.solution or ""))
        if self.loaded.source.balance is not None:
            self.buckets.append(str(value_of(problem, self.loaded.source.balance)).strip().casefold())
        if self.held is not None:
            self.held.append(problem)

    def settle(self, limit: int | None) -> None:
        """Leave out what occurs in a benchmark, and what follows the first `limit`.

        Where most problems do, the source is the benchmark itself or was made from it (as gsm-hard was from GSM8K's
        test), and was named on purpose: they are kept, with a warning.
        """
        counts = Counter(name for name in self.occurs_in if name is not None)
        if 2 * counts.total() > len(self.ids):
            self.report.is_benchmark = counts.most_common(1)[0][0]
            warn(
                f"{self.report.name}: {counts.total():,} of {len(self.ids):,} problems occur in "
                f"{' or '.join(sorted(counts))}. It is that benchmark or made from it, so they are kept, and a score "
                "on that benchmark will say nothing about a model trained on them."
            )
            kept = list(range(len(self.ids)))
        else:
            self.report.contaminated = dict(sorted(counts.items()))
            kept = [i for i, name in enumerate(self.occurs_in) if name is None]
        columns: tuple[list[Any] | None, ...] = (self.ids, self.difficulty, self.lengths, self.buckets, self.held)
        for values in columns:
            if values:
                values[:] = [values[i] for i in kept[:limit]]
        self.report.left = len(self.ids)

    def most(self) -> int:
        """Problems that it can give: without a count, a balanced source gives each bucket as many as the least has."""
        if not self.buckets or self.loaded.source.count is not None:
            return len(self.ids)
        counts = Counter(self.buckets)
        return len(counts) * min(counts.values())


class Mixture:
    """The problems to train on. Iterating gives them out; each iteration reads the sources anew."""

    def __init__(self, config: DataConfig, *, solutions_required: bool = True, pairs: bool = False) -> None:
        """Open the sources; nothing is read yet.

        Args:
            config: which sources, and what is taken from them.
            solutions_required: leave out rows without a solution.
            pairs: read pairs of a chosen and a rejected completion.

        Raises:
            InputError: no such dataset, column, filter or benchmark.
            MlxmathError: the data cannot be fetched.
        """
        self._config = config
        sources = config.mixture
        first = config.num_examples if self._plain else None
        self.sources = [
            load_problems(
                source, solutions_required=solutions_required, pairs=pairs, first=first,
                mixture_seed=config.mixture_seed,
            )
            for source in sources
        ]  # fmt: skip
        self._filters = [
            [parse_filter(text).named_after(loaded.columns) for text in loaded.source.filters]
            for loaded in self.sources
        ]
        for loaded, filters in zip(self.sources, self._filters, strict=True):
            check_fields([f.field for f in filters], loaded.fields, loaded.rows.name)
            if loaded.source.balance:
                check_fields([loaded.source.balance], loaded.fields, loaded.rows.name, "--balance")
        only_demo = all(loaded.source.dataset == DEMO for loaded in self.sources)
        self._benchmarks = [] if only_demo else open_benchmarks(config.decontaminate)
        self.reports: list[SourceReport] = []
        self.ranks: NDArray[np.int32] | None = None
        """Of each problem, in the order of iteration: the lower the earlier in training; None: any order."""
        self._chosen: list[tuple[LoadedProblems, Ids, list[Problem] | None]] = []

    @property
    def _plain(self) -> bool:
        """Whether the first rows of one source are meant, not a choice among them."""
        (source, *others) = self._config.mixture
        return not others and source.count is None and source.balance is None

    @property
    def key(self) -> dict[str, Any]:
        """Everything that decides which problems come out, as values that JSON can hold."""
        config = self._config
        return {
            "sources": [
                {
                    "rows": [loaded.rows.name, loaded.rows.revision, loaded.rows.split],
                    "columns": asdict(loaded.columns),
                    "known_as": loaded.dataset.name if loaded.dataset else None,
                    **loaded.source.model_dump(include={"filters", "balance", "count", "weight", "solutions"}),
                }
                for loaded in self.sources
            ],
            "benchmarks": [[benchmark.name, benchmark.revision] for benchmark in self._benchmarks],
            **config.model_dump(include={"num_examples", "mixture_seed", "deduplicate", "curriculum"}),
        }

    def __len__(self) -> int:
        return sum(len(ids) for _, ids, _ in self._chosen)

    def __iter__(self) -> Iterator[Problem]:
        for loaded, ids, held in self._chosen:
            if held is not None:
                yield from (held[i] for i in ids)
                continue
            wanted = iter(ids.tolist())
            next_id = next(wanted, None)
            for place, problem in enumerate(loaded):
                if place == next_id:
                    yield problem
                    next_id = next(wanted, None)
                if next_id is None:
                    break

    def choose(self) -> None:
        """Read the sources and decide which problems are taken; `reports` and `ranks` say what came of it."""
        config = self._config
        seen = _Seen(config.deduplicate)
        surveys = []
        for index, (loaded, filters) in enumerate(zip(self.sources, self._filters, strict=True)):
            limit = config.num_examples if self._plain else (loaded.source.count if loaded.rows.streamed else None)
            surveys.append(_survey(index, loaded, filters, self._benchmarks, seen, limit, plain=self._plain))
        self._chosen, self.reports, ranks = [], [], []
        for index, (survey, size) in enumerate(zip(surveys, _sizes(surveys, config), strict=True)):
            chosen = _draw(survey, size, text_hash(f"{config.mixture_seed} {index}"))
            report = survey.report
            report.taken = len(chosen)
            if report.asked and report.taken < min(report.asked, config.num_examples or report.asked):
                warn(f"{report.name}: {report.asked:,} rows were asked for, {report.taken:,} could be had")
            self.reports.append(report)
            ids = chosen if survey.held is not None else np.array(survey.ids, np.int64)[chosen]
            self._chosen.append((survey.loaded, ids, survey.held))
            if config.curriculum != "none":
                ranks.append(_ranks(survey, chosen))
        self.ranks = np.concatenate(ranks) if ranks else None

    def report(self) -> str:
        """The reports as JSON."""
        return json.dumps([asdict(report) for report in self.reports], ensure_ascii=False)


class _Seen:
    """The questions that have come so far.

    One source may have several solutions to a question; the same question in another source, or with the same solution,
    is a repetition.
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
            similar = self._near.find(normalise([problems[i].question for i in order]))
            self._source_of.update((questions[i], -1) for i, found in zip(order, similar, strict=True) if found)
        for i, (problem, question) in enumerate(zip(problems, questions, strict=True)):
            completions = f"{problem.solution or ''} {problem.rejected or ''}"
            whole = text_hash(f"{question} {' '.join(completions.split())}")
            result[i] = self._source_of.setdefault(question, source) != source or whole in self._solutions
            self._solutions.add(whole)
        return result


def _survey(
    index: int,
    loaded: LoadedProblems,
    filters: Sequence[Filter],
    benchmarks: Sequence[Benchmark],
    seen: _Seen,
    limit: int | None,
    *,
    plain: bool,
) -> _Survey:
    """Read a source and find the problems that could be taken, the first `limit` of them if there is one."""
    source = loaded.source
    report = SourceReport(loaded.rows.name, loaded.split, loaded.revision, loaded.instead_of, asked=source.count)
    survey = _Survey(report, loaded, plain, [] if loaded.rows.streamed and limit is not None else None)
    filtered: Counter[str] = Counter()
    problems = iter(enumerate(loaded))
    num_clean = 0
    while (limit is None or num_clean < limit) and (batch := list(itertools.islice(problems, BATCH))):
        report.read += len(batch)
        kept = []
        for place, problem in batch:
            unmet = next((f.text for f in filters if not f(problem)), None)
            if unmet is None and source.balance is not None and value_of(problem, source.balance) is None:
                unmet = f"{source.balance} is given"
            if unmet is None:
                kept.append((place, problem))
            else:
                filtered[unmet] += 1
        words = normalise([problem.question for _, problem in kept])
        occurs_in: list[str | None] = [None] * len(kept)
        for benchmark in reversed(benchmarks):
            for i in np.flatnonzero(benchmark.holds(words)).tolist():
                occurs_in[i] = benchmark.name
        repeated = seen.repeated(index, [problem for _, problem in kept], words).tolist()
        report.repeated += sum(repeated)
        for (place, problem), again, name in zip(kept, repeated, occurs_in, strict=True):
            if not again:
                survey.add(place, problem, name)
                num_clean += name is None
    survey.settle(limit)
    report.filtered, report.skipped = dict(filtered), dict(loaded.skipped)
    report.read += sum(report.skipped.values())
    return survey


def _sizes(surveys: Sequence[_Survey], config: DataConfig) -> list[int]:
    """How many problems each source gives.

    A count is taken as it is; the weights share out what `num_examples` leaves, or as much as lets no source run out.
    Where all is more than `num_examples`, every source is cut in proportion.
    """
    most = [survey.most() for survey in surveys]
    sizes = [min(most_i, survey.loaded.source.count or most_i) for most_i, survey in zip(most, surveys, strict=True)]
    weights = [survey.loaded.source.weight or 0.0 for survey in surveys]
    if any(weights):
        fixed = sum(size for size, weight in zip(sizes, weights, strict=True) if not weight)
        total = min(m * sum(weights) / w for m, w in zip(most, weights, strict=True) if w)
        if config.num_examples is not None:
            total = min(total, max(0, config.num_examples - fixed))
        shares = _apportion(weights, int(total))
        sizes = [share if weight else size for share, size, weight in zip(shares, sizes, weights, strict=True)]
    if config.num_examples is not None and sum(sizes) > config.num_examples:
        sizes = _apportion(sizes, config.num_examples)
    return sizes


def _apportion(shares: Sequence[float], total: int) -> list[int]:
    """`total` in whole parts, as near to proportional as can be: largest remainders, the first of equal ones."""
    exact = [share * total / sum(shares) for share in shares]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def _draw(survey: _Survey, size: int, seed: int) -> Ids:
    """Which of a survey's problems are taken, ascending: those with the least seeded hash (in each bucket)."""
    if size >= len(survey.ids):
        chosen = np.arange(len(survey.ids))
    else:
        hashed = mix(np.arange(len(survey.ids), dtype=np.uint64) ^ np.uint64(seed))
        order = np.argsort(hashed, kind="stable")
        if survey.plain:
            chosen = np.arange(size)
        elif not survey.buckets:
            chosen = np.sort(order[:size])
        else:
            chosen = _draw_balanced(survey.buckets, order, size)
    if survey.buckets:
        left, taken = Counter(survey.buckets), Counter(survey.buckets[i] for i in chosen)
        survey.report.buckets = {name: (left[name], taken[name]) for name in sorted(left)}
    return chosen


def _draw_balanced(buckets: Sequence[str], order: Ids, size: int) -> Ids:
    """Equally many of each bucket; what a short one lacks comes from the others."""
    counts = Counter(buckets)
    quotas: dict[str, int] = {}
    rest, names = size, sorted(counts, key=lambda name: (counts[name], name))
    for i, name in enumerate(names):
        quotas[name] = min(counts[name], rest // (len(names) - i))
        rest -= quotas[name]
    chosen = []
    for i in order.tolist():
        if quotas[buckets[i]]:
            quotas[buckets[i]] -= 1
            chosen.append(i)
    return np.sort(np.array(chosen, np.int64))


def _ranks(survey: _Survey, chosen: Ids) -> NDArray[np.int32]:
    """(P,) where each problem stands between the easiest (0) and the hardest of its source."""
    by_difficulty = all(survey.difficulty[i] is not None for i in chosen)
    survey.report.order = "difficulty" if by_difficulty else "solution length"
    measure = survey.difficulty if by_difficulty else survey.lengths
    values = np.array([measure[i] for i in chosen], np.float64)
    return (RANKS * np.searchsorted(np.sort(values), values) // max(1, len(values))).astype(np.int32)


def difficulty(problem: Problem) -> float | None:
    """A problem's difficulty as a number: of its word, or the number in its level."""
    word = (problem.difficulty or "").strip().casefold()
    return DIFFICULTY_WORDS.get(word, number(word or None))
