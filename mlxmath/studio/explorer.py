"""The problems of one evaluation: read as its answers come, filtered, a page at a time.

Of an answer its verdict stays in memory, its place in the file, and its text for the search; what a page shows of it is
read again from its place.
"""

import contextlib
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlxmath.errors import MlxmathError
from mlxmath.evaluation.paired import OUTCOMES, outcome
from mlxmath.evaluation.samples import (
    SETTINGS,
    Place,
    Sample,
    answer_files,
    fingerprints_of,
    placed,
    read_settings,
)
from mlxmath.evaluation.score import elect, measure
from mlxmath.studio.filters import GROUPINGS, Found, Key, Problem, Wanted
from mlxmath.studio.place import Studio
from mlxmath.studio.remembered import state_of

RESULTS, REPORT = "results.json", "report.html"
PAGE = 50
"""Problems."""
_LINE = 140
_SEARCHED = 20_000
"""Characters of an answer."""
_MOST_KEPT = 3
_WAITS_S = 0.4
"""For answers to be measured, before a page is shown without."""


class Explorer:
    """An evaluation, as far as its answers are there.

    Args:
        folder: of the evaluation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._measuring = threading.Thread()
        self._lock = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        self.settings: dict[str, Any] = {}
        self.labels: list[str] = []
        self.pairs: list[tuple[str, str]] = []
        self.problems: list[Problem] = []
        self.num_answers: Counter[str] = Counter()
        self.num_right: Counter[str] = Counter()
        self._settings_state: object = None
        self._read: dict[Path, tuple[int, int]] = {}  # the file's number, and how far it was read
        self._samples: dict[Key, Sample] = {}
        self._places: dict[Key, Place] = {}
        self._texts: dict[str, str] = {}
        self._kinds: dict[Key, str] = {}

    def refresh(self) -> None:
        """Read what has been written since, or everything if something was replaced.

        Raises:
            InputError: the folder holds no evaluation (any more).
            MlxmathError: its settings are damaged.
        """
        with self._lock:
            state = state_of(self.folder / SETTINGS)
            files = {path: state_of(path) for path in answer_files(self.folder)}
            if state != self._settings_state or any(
                path not in files or files[path][0] != number or files[path][1] < end
                for path, (number, end) in self._read.items()
            ):
                self._forget()
                self.settings, self._settings_state = read_settings(self.folder), state
                self.labels = [one["label"] for one in self.settings["contestants"]]
                self.pairs = [(one["against"], one["label"]) for one in self.settings["contestants"] if one["against"]]
            is_new = False
            fingerprints = fingerprints_of(self.settings)
            for path, (number, size, _) in files.items():
                start = self._read.get(path, (number, 0))[1]
                if size > start:
                    end = self._add(path, fingerprints, start)
                    is_new, self._read[path] = True, (number, end)
            if is_new:
                self._arrange()

    def _add(self, path: Path, fingerprints: Mapping[str, str], start: int) -> int:
        """Take in the whole lines of a file from a place on; gives where they end."""
        for place, sample in placed(path, fingerprints, start):
            if sample is None and not _is_whole(place):
                return place.start  # it is being written
            start = place.end
            if sample is None or sample.key in self._samples:
                continue
            own = [sample.question, sample.gold, sample.solution or ""] if sample.id not in self._texts else []
            text = "\n".join([self._texts.get(sample.id, sample.id), *own, sample.response[:_SEARCHED]])
            self._texts[sample.id] = text.lower()
            line = " ".join(sample.question[: 4 * _LINE].split())
            line = line if len(line) <= _LINE else f"{line[: _LINE - 1]}…"
            thin = replace(
                sample, contestant=sys.intern(sample.contestant), fingerprint="", response="", solution=None,
                question=line, benchmark=sys.intern(sample.benchmark),
            )  # fmt: skip
            self._samples[thin.key], self._places[thin.key] = thin, place
            self.num_answers[thin.contestant] += 1
            self.num_right[thin.contestant] += thin.correct
        return start

    def _arrange(self) -> None:
        answers, _, problems = elect(self._samples.values(), self.labels, self.settings["samples"])
        self.problems = []
        for i in problems:
            own = {label: answers[label][i] for label in self.labels}
            first = own[self.labels[0]].shown
            self.problems.append(
                Problem(
                    i, first.question, first.benchmark, first.level, first.subject,
                    {label: one.right for label, one in own.items()},
                    {label: one.shown.key for label, one in own.items()},
                    tuple(sample.key for one in own.values() for sample in one.samples),
                )
            )  # fmt: skip

    @property
    def outcomes(self) -> tuple[str, ...]:
        """What a problem's outcome may be: of two models, or of the only one."""
        return OUTCOMES if self.pairs else ("right", "wrong")

    def outcome(self, problem: Problem, pair: int) -> str:
        """One of `outcomes`."""
        if not self.pairs:
            return "right" if problem.right[self.labels[0]] else "wrong"
        base, other = self.pairs[min(pair, len(self.pairs) - 1)]
        return outcome(problem.right[base], problem.right[other])

    def groups(self) -> dict[str, list[str]]:
        """The values of each grouping that divides the problems, the commonest first."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for problem in self.problems:
            for name in GROUPINGS:
                if (value := getattr(problem, name)) is not None:
                    found[name][value] += 1
        return {name: [value for value, _ in found[name].most_common(100)] for name in found if len(found[name]) > 1}

    def find(self, wanted: Wanted) -> Found:
        """The problems that pass the filters, those of one page."""
        with self._lock:
            words = wanted.search.lower().split()
            chosen = {name: value for name in GROUPINGS if (value := getattr(wanted, name))}
            num_left = self._measure() if wanted.category else 0
            others = [
                problem for problem in self.problems
                if all(getattr(problem, name) == value for name, value in chosen.items())
                and (not words or all(word in self._texts[problem.id] for word in words))
                and (not wanted.category or any(self._kind(key) == wanted.category for key in problem.keys))
            ]  # fmt: skip
            outcomes = [self.outcome(problem, wanted.pair) for problem in others]
            fitting = [
                problem for problem, found in zip(others, outcomes, strict=True) if wanted.outcome in ("", found)
            ]
            num_pages = max(1, -(-len(fitting) // PAGE))
            page = min(max(1, wanted.page), num_pages)
            if wanted.problem:
                place = next((i for i, problem in enumerate(fitting) if problem.id == wanted.problem), 0)
                page = place // PAGE + 1
            counts = Counter(outcomes)
            return Found(
                fitting[(page - 1) * PAGE : page * PAGE],
                {"all": len(others)} | {name: counts[name] for name in self.outcomes}, len(fitting), page, num_pages,
                num_left,
            )  # fmt: skip

    def _kind(self, key: Key) -> str | None:
        """How an answer ended, as the report has it; None as long as it is not measured."""
        return "right" if self._samples[key].correct else self._kinds.get(key)

    def _measure(self) -> int:
        """Have it found out how the wrong answers ended, which takes a while for many; gives how many are left."""
        left = [key for problem in self.problems for key in problem.keys if self._kind(key) is None]
        if left and not self._measuring.is_alive():
            self._measuring = threading.Thread(target=_measure, args=(left, self._places, self._kinds), daemon=True)
            self._measuring.start()
        if left:
            self._measuring.join(_WAITS_S)
        return sum(key not in self._kinds for key in left)

    @staticmethod
    def category(sample: Sample) -> str:
        """How an answer ended: one of `CATEGORIES`."""
        return measure(sample).category

    def get(self, name: str) -> Problem | None:
        """A problem by its id."""
        return next((problem for problem in self.problems if problem.id == name), None)

    def samples(self, keys: Iterable[Key]) -> list[Sample]:
        """Answers, whole.

        Raises:
            MlxmathError: the file has been replaced meanwhile.
        """
        with self._lock:
            return [self._whole(key) for key in keys]

    def _whole(self, key: Key) -> Sample:
        try:
            found = self._places[key].sample()
        except OSError:
            found = None
        if found is None or found.key != key:
            raise MlxmathError(f"{self.folder} has been written anew meanwhile; reload the page.")
        return found


def _measure(keys: Iterable[Key], places: Mapping[Key, Place], kinds: dict[Key, str]) -> None:
    """Note how answers ended, as long as their file is what it was."""
    for key in keys:
        with contextlib.suppress(OSError):
            if (sample := places[key].sample()) and sample.key == key:
                kinds[key] = Explorer.category(sample)


def _is_whole(place: Place) -> bool:
    with place.path.open("rb") as file:
        file.seek(place.end - 1)
        return file.read(1) == b"\n"


_lock = threading.Lock()


def explorer(studio: Studio, name: str) -> Explorer:
    """That of an evaluation's folder, up to date; the last ones stay in memory.

    Raises:
        InputError: it lies outside the studio's folder, or is none; see `check`, too.
        MlxmathError: see `Explorer.refresh`.
    """
    folder = studio.inside(name, "evaluation")
    check(studio, folder)
    with _lock:
        found = _kept(folder)
    found.refresh()
    return found


def check(studio: Studio, folder: Path) -> None:
    """Refuse an evaluation of which a file is none that can be shown; see `Studio.check_readable`."""
    for path in (folder / SETTINGS, folder / RESULTS, folder / REPORT, *answer_files(folder)):
        studio.check_readable(path, "evaluation")


@lru_cache(maxsize=_MOST_KEPT)
def _kept(folder: Path) -> Explorer:
    return Explorer(folder)
