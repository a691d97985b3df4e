"""Mixes sources: filters, leaves out repeated and contaminated problems, balances, draws.

The sources are read twice: once to decide which rows are taken, of which only hashes and numbers are kept, and once to
give these rows out in the order of the sources. So the memory does not grow with the text, and which rows come out
depends on nothing but the data, the settings and the seed.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxmath.config.schema import DataConfig
from mlxmath.config.section import DEMO
from mlxmath.data.decontaminate import open_benchmarks
from mlxmath.data.dedup import text_hash
from mlxmath.data.draw import Ids, draw, ranks_of, sizes
from mlxmath.data.filters import check_fields, parse_filter
from mlxmath.data.problem import Problem
from mlxmath.data.sources import LoadedProblems, load_problems
from mlxmath.data.survey import Seen, SourceReport, survey_source
from mlxmath.runtime.console import warn


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
        self.questions: NDArray[np.uint64] = np.zeros(0, np.uint64)
        """Hash of each problem's normalised question, in the order of iteration."""
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
        seen = Seen(config.deduplicate)
        surveys = []
        for index, (loaded, filters) in enumerate(zip(self.sources, self._filters, strict=True)):
            limit = config.num_examples if self._plain else (loaded.source.count if loaded.rows.streamed else None)
            surveys.append(survey_source(index, loaded, filters, self._benchmarks, seen, limit, plain=self._plain))
        self._chosen, self.reports = [], []
        ranks, questions = [], []
        for index, (survey, size) in enumerate(zip(surveys, sizes(surveys, config), strict=True)):
            chosen = draw(survey, size, text_hash(f"{config.mixture_seed} {index}"))
            report = survey.report
            report.taken = len(chosen)
            if report.asked and report.taken < min(report.asked, config.num_examples or report.asked):
                warn(f"{report.name}: {report.asked:,} rows were asked for, {report.taken:,} could be had")
            self.reports.append(report)
            ids = chosen if survey.held is not None else np.array(survey.ids, np.int64)[chosen]
            self._chosen.append((survey.loaded, ids, survey.held))
            questions.append(np.array(survey.questions, np.uint64)[chosen])
            if config.curriculum != "none":
                ranks.append(ranks_of(survey, chosen))
        self.ranks = np.concatenate(ranks) if ranks else None
        self.questions = np.concatenate(questions)

    def report(self) -> str:
        """The reports as JSON."""
        return json.dumps([asdict(report) for report in self.reports], ensure_ascii=False)
