"""Mixes sources: filters, leaves out repeated and contaminated problems, balances, draws.

The sources are read twice: once to decide which rows are taken, of which only hashes and numbers are kept, and once to
give these rows out in the order of the sources. So the memory does not grow with the text, and which rows come out
depends on nothing but the data, the settings and the seed.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxmath.config.schema import DataConfig
from mlxmath.config.section import DEMO
from mlxmath.data.dedup import mix, open_benchmark, text_hash
from mlxmath.data.filters import check_fields, parse_filter
from mlxmath.data.problem import Problem
from mlxmath.data.sources import LeftOut, LoadedProblems, load_problems
from mlxmath.data.survey import Candidate, Seen, SourceReport, Survey, survey_source
from mlxmath.errors import InputError
from mlxmath.runtime.console import warn

Ids = NDArray[np.int64]
RULES = 2
"""To be raised where other problems come out of the same data and settings: rows in a cache are chosen anew."""
BALANCED_FROM = 10
"""Of a stream, so many times the rows asked for are looked at where they are to be balanced."""
RANKS = 1000
"""Steps of a curriculum's scale: a row's rank is the share of its source's rows that are easier, in thousandths."""


class Mixture:
    """The problems to train on. Iterating gives them out; each iteration reads the sources anew."""

    def __init__(
        self, config: DataConfig, *, solutions_required: bool = True, pairs: bool = False, labels: bool = False
    ) -> None:
        """Open the sources; nothing is read yet.

        Args:
            config: which sources, and what is taken from them.
            solutions_required: leave out rows without a solution.
            pairs: read pairs of a chosen and a rejected completion.
            labels: with `pairs`, completions with a label of their own will do as well.

        Raises:
            InputError: no such dataset, column, filter or benchmark; completions have labels that are of no use.
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
        for loaded in self.sources:
            if loaded.columns.label and not labels:
                raise InputError(
                    f"{loaded.rows.name}: completions with a label ({loaded.columns}) are for `mlxmath dpo --loss-type "
                    "kto`; pairs with chosen and rejected are needed here."
                )
            loaded.keeps_calls = config.tools == "calculator"
        self._filters = [
            [parse_filter(text).named_after(loaded.columns) for text in loaded.source.filters]
            for loaded in self.sources
        ]
        for loaded, filters in zip(self.sources, self._filters, strict=True):
            check_fields([f.field for f in filters], loaded.fields, loaded.rows.name)
            if loaded.source.balance:
                check_fields([loaded.source.balance], loaded.fields, loaded.rows.name, "--balance")
        only_demo = all(loaded.source.dataset == DEMO for loaded in self.sources)
        self.benchmarks = [] if only_demo else [open_benchmark(name) for name in config.decontaminate]
        """Whose problems are left out."""
        self.reports: list[SourceReport] = []
        self.ranks: NDArray[np.int32] | None = None
        """Of each problem, in the order of iteration: the lower the earlier in training; None: any order."""
        self.questions: NDArray[np.uint64] = np.zeros(0, np.uint64)
        """Hash of each problem's normalised question, in the order of iteration."""
        self.left_out: list[tuple[LoadedProblems, list[LeftOut]]] = []
        """Of each source the rows that could not be taken; of many the first."""
        self._chosen: list[tuple[LoadedProblems, list[Candidate]]] = []

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
                    **({} if loaded.forms else {"other_forms": False}),
                    **loaded.source.model_dump(include={"filters", "balance", "count", "weight", "solutions"}),
                }
                for loaded in self.sources
            ],
            "rules": RULES,
            "benchmarks": [[benchmark.name, benchmark.revision] for benchmark in self.benchmarks],
            **config.model_dump(include={"num_examples", "mixture_seed", "deduplicate", "curriculum"}),
        }

    def __len__(self) -> int:
        return sum(len(chosen) for _, chosen in self._chosen)

    def __iter__(self) -> Iterator[Problem]:
        for loaded, chosen in self._chosen:
            problems, number = iter(loaded), 0
            for candidate in chosen:
                if candidate.held is not None:
                    yield candidate.held
                    continue
                yield next(itertools.islice(problems, candidate.place - number, None))
                number = candidate.place + 1

    def choose(self) -> None:
        """Read the sources and decide which problems are taken; `reports` and `ranks` say what came of it."""
        config = self._config
        seen = Seen(config.deduplicate)
        surveys = []
        for index, (loaded, filters) in enumerate(zip(self.sources, self._filters, strict=True)):
            limit = config.num_examples if self._plain else None
            if loaded.rows.streamed and loaded.source.count is not None:
                limit = loaded.source.count * (BALANCED_FROM if loaded.source.balance else 1)
            surveys.append(survey_source(index, loaded, filters, self.benchmarks, seen, limit, plain=self._plain))
        self._chosen, self.reports = [], []
        self.left_out = [(survey.loaded, survey.left_out) for survey in surveys]
        ranks, questions = list[NDArray[np.int32]](), list[int]()
        for index, (survey, size) in enumerate(zip(surveys, sizes(surveys, config), strict=True)):
            chosen = draw(survey, size, text_hash(f"{config.mixture_seed} {index}"))
            report = survey.report
            report.taken = len(chosen)
            if report.asked and report.taken < min(report.asked, config.num_examples or report.asked):
                warn(f"{report.name}: {report.asked:,} rows were asked for, {report.taken:,} could be had")
            self.reports.append(report)
            self._chosen.append((survey.loaded, chosen))
            questions += [candidate.question for candidate in chosen]
            if config.curriculum != "none":
                ranks.append(ranks_of(report, chosen))
        self.ranks = np.concatenate(ranks) if ranks else None
        self.questions = np.array(questions, np.uint64)

    def report(self) -> str:
        """The reports as JSON."""
        return json.dumps([asdict(report) for report in self.reports], ensure_ascii=False)


def sizes(surveys: Sequence[Survey], config: DataConfig) -> list[int]:
    """How many problems each source gives.

    A count is taken as it is; the weights share out what `num_examples` leaves, or as much as lets no source run out.
    Where all is more than `num_examples`, every source is cut in proportion.
    """
    most = [survey.most() for survey in surveys]
    result = [min(most_i, survey.loaded.source.count or most_i) for most_i, survey in zip(most, surveys, strict=True)]
    weights = [survey.loaded.source.weight or 0.0 for survey in surveys]
    if any(weights):
        fixed = sum(size for size, weight in zip(result, weights, strict=True) if not weight)
        total = min(m * sum(weights) / w for m, w in zip(most, weights, strict=True) if w)
        if config.num_examples is not None:
            total = min(total, max(0, config.num_examples - fixed))
        shares = _apportion(weights, int(total))
        result = [share if weight else size for share, size, weight in zip(shares, result, weights, strict=True)]
    if config.num_examples is not None and sum(result) > config.num_examples:
        result = _apportion(result, config.num_examples)
    return result


def _apportion(shares: Sequence[float], total: int) -> list[int]:
    """`total` in whole parts, as near to proportional as can be: largest remainders, the first of equal ones."""
    exact = [share * total / sum(shares) for share in shares]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def draw(survey: Survey, size: int, seed: int) -> list[Candidate]:
    """Which problems are taken, in their order: those with the least seeded hash (in each bucket)."""
    count, buckets = len(survey.candidates), survey.buckets
    if size >= count or survey.plain:
        chosen = np.arange(min(size, count))
    else:
        order = np.argsort(mix(np.arange(count, dtype=np.uint64) ^ np.uint64(seed)), kind="stable")
        chosen = np.sort(_balanced(buckets, order, size) if buckets else order[:size])
    if buckets:
        left, taken = Counter(buckets), Counter(buckets[i] for i in chosen)
        survey.report.buckets = {name: (left[name], taken[name]) for name in sorted(left)}
    return [survey.candidates[i] for i in chosen]


def _balanced(buckets: Sequence[str], order: Ids, size: int) -> Ids:
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
    return np.array(chosen, np.int64)


def ranks_of(report: SourceReport, chosen: Sequence[Candidate]) -> NDArray[np.int32]:
    """(P,) where each problem stands between the easiest (0) and the hardest of its source."""
    by_difficulty = all(candidate.difficulty is not None for candidate in chosen)
    report.order = "difficulty" if by_difficulty else "solution length"
    values = np.array([found.difficulty if by_difficulty else found.length for found in chosen], np.float64)
    return (RANKS * np.searchsorted(np.sort(values), values) // max(1, len(values))).astype(np.int32)
