"""Where pairs of solutions to rate come from: the answers of an evaluation, and the responses of a distillation.

Nothing is graded here: what the commands have noted of an answer is taken.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxmath.distillation.responses import RESPONSES, answered_by, read_responses
from mlxmath.errors import InputError, MlxmathError
from mlxmath.evaluation.samples import (
    SAMPLES,
    SETTINGS,
    answer_files,
    fingerprint,
    fingerprints_of,
    read_samples,
    read_settings,
)
from mlxmath.parsing import HALF_A_CHARACTER
from mlxmath.runtime.files import real
from mlxmath.runtime.sealed import lines_of, unsealed_line
from mlxmath.studio.place import Studio
from mlxmath.studio.remembered import Remembered

EVALUATION, DISTILLATION = "evaluation", "distillation"
_JUDGED = ("solutions.jsonl", "rejected.jsonl")
"""What `mlxmath distill` writes of the responses that it has judged; see `mlxmath.distillation.dataset`."""


class NoSourceError(InputError):
    """There are no answers in the folder."""


@dataclass(frozen=True)
class Answer:
    """A solution, and who wrote it."""

    label: str
    fingerprint: str
    """Of what answered, as its file has it."""
    sample: int
    text: str
    correct: bool | None = None
    """As the grader has it; None where it was not asked."""
    final: str | None = None
    """The answer that the grader found in it."""

    @property
    def identity(self) -> list[Any]:
        """What tells it from others to the same problem."""
        return [self.label, self.fingerprint, self.sample, self.text]


@dataclass(frozen=True)
class Pair:
    """Two different solutions to a problem, in an order that says nothing."""

    source: "Source"
    benchmark: str
    """Of an evaluation; of a distillation empty."""
    problem: str
    """Its id."""
    question: str
    gold: str
    one: Answer
    other: Answer
    key: str
    """The same wherever this pair is found, and for both orders."""


@dataclass
class Asked:
    """A problem with all answers to it, by label."""

    benchmark: str
    problem: str
    question: str
    gold: str
    answers: dict[str, list[Answer]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True)
class Source:
    """A folder with answers."""

    folder: str
    """As the studio names it."""
    kind: str
    labels: tuple[str, ...]
    """Who answered."""
    samples: int
    """Answers of each to a problem, as they were asked for; 0 where that is not noted."""
    about: str
    """Of what, in words."""
    written: float
    """When its answers were written to last, in seconds since 1970."""


def sources(studio: Studio) -> list[Source]:
    """All in the folder, those first that were written to last; what is damaged is left out."""
    found = []
    for folder in studio.holding(SAMPLES, RESPONSES):
        if HALF_A_CHARACTER.search(str(folder)):
            continue  # no page can name it
        try:
            found.append(source(studio, studio.name(folder)))
        except MlxmathError:
            continue
    return sorted(found, key=lambda one: -one.written)


def source(studio: Studio, name: str) -> Source:
    """One by its folder.

    Raises:
        NoSourceError: it holds no answers.
        InputError: they lie outside the studio's folder.
        MlxmathError: its settings are damaged.
    """
    folder = studio.inside(name, "source")
    if not folder.is_dir() or not (folder / SETTINGS).exists():
        raise NoSourceError(f"source: {name} holds no answers; choose the folder of an evaluation or a distillation.")
    for path in _files(folder):
        studio.check_readable(path, "source")
    if (path := folder / RESPONSES).is_file():
        label, _ = answered_by(folder)
        return Source(studio.name(folder), DISTILLATION, (label,), 0, "solutions", path.stat().st_mtime)
    settings, path = read_settings(folder), folder / SAMPLES
    labels, benchmarks = tuple(fingerprints_of(settings)), ", ".join(one["name"] for one in settings["benchmarks"])
    written = (path if path.exists() else folder).stat().st_mtime
    return Source(studio.name(folder), EVALUATION, labels, settings["samples"], benchmarks, written)


def answered_in(studio: Studio, name: str) -> list[tuple[str, str]]:
    """The model and the adapters that answered in an evaluation, as far as they lie in the folder."""
    try:
        settings = read_settings(studio.inside(name, "source"))
    except MlxmathError:  # it is not there any more
        return []
    return of_folder(studio, settings["contestants"])


def of_folder(studio: Studio, contestants: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """("model" or "adapter", folder) of those who answered in an evaluation, as far as these lie in the studio's."""
    found = []
    for one in contestants:
        for name, kind in (("folder", "model"), ("adapter_folder", "adapter")):
            path = real(studio.folder / one[name]) if isinstance(one.get(name), str) else None
            if path and path.is_relative_to(studio.folder) and (kind, studio.name(path)) not in found:
                found.append((kind, studio.name(path)))
    return found


class Problems:
    """The problems of a folder, with their answers."""

    def __init__(self, asked: Iterable[Asked]) -> None:
        self.asked = list(asked)
        self._pairs: dict[tuple[str, str], list[Pair]] = {}

    def pairs(self, found: Source, first: int, second: int) -> list[Pair]:
        """All pairs of different answers of two, by their places among the labels, or of one, to the same problem.

        Problems come in the order of hashes, which nothing about them decides, and each with its first pair before any
        has its second, so that what was rated when one stops is a fair part of all.
        """
        one, other = found.labels[first], found.labels[second]
        if (one, other) not in self._pairs:
            ranked = []
            for problem in self.asked:
                own, others = problem.answers.get(one, []), problem.answers.get(other, [])
                both = itertools.combinations(own, 2) if one == other else itertools.product(own, others)
                made = [_pair(found, problem, *each) for each in both if each[0].text.strip() != each[1].text.strip()]
                ranked += [(rank, pair.key, pair) for rank, pair in enumerate(sorted(made, key=lambda pair: pair.key))]
            self._pairs[one, other] = [pair for *_, pair in sorted(ranked, key=lambda each: each[:2])]
        return self._pairs[one, other]


def _pair(found: Source, asked: Asked, one: Answer, other: Answer) -> Pair:
    key = fingerprint([asked.question, *sorted((one.identity, other.identity), key=str)])
    return Pair(found, asked.benchmark, asked.problem, asked.question, asked.gold, one, other, key)


def answers_differ(pair: Pair) -> bool:
    """Whether the final answers do; unknown is taken for different."""
    one, other = pair.one, pair.other
    if one.correct is None or other.correct is None:
        return True
    return one.correct != other.correct or not (one.correct or one.final == other.final)


def grader_disagrees(pair: Pair) -> bool:
    """Whether the grader calls exactly one of the two right."""
    return None not in (pair.one.correct, pair.other.correct) and pair.one.correct != pair.other.correct


def _files(folder: Path) -> list[Path]:
    """What is read of a source."""
    others = (folder / name for name in (SETTINGS, RESPONSES, *_JUDGED))
    return [*answer_files(folder), *(path for path in others if path.exists())]


def _read(folder: Path) -> Problems:
    return Problems((_distilled if (folder / RESPONSES).is_file() else _evaluated)(folder).values())


problems_in = Remembered(_read, _files)
"""The problems in a folder of answers, with their answers."""


def _evaluated(folder: Path) -> dict[tuple[str, str], Asked]:
    found: dict[tuple[str, str], Asked] = {}
    for each in read_samples(folder, fingerprints_of(read_settings(folder)))[0]:
        # a variation is another problem
        asked = found.setdefault(
            (each.id, each.question), Asked(each.benchmark, each.id, each.question, each.gold)
        )  # fmt: skip
        asked.answers[each.contestant].append(
            Answer(each.contestant, each.fingerprint, each.sample, each.response, each.correct, each.extracted)
        )
    return found


def _distilled(folder: Path) -> dict[tuple[str, str], Asked]:
    found: dict[tuple[str, str], Asked] = {}
    (label, _), judged = answered_by(folder), _judged(folder)
    for each in read_responses(folder):
        asked = found.setdefault((each.key, ""), Asked("", each.id, each.problem, each.answer))
        row = judged.get((each.problem, each.sample), {})
        is_of_it = isinstance(row.get("solution"), str) and row["solution"] in each.response
        correct, final = (row.get("correct"), row.get("extracted")) if is_of_it else (None, None)
        asked.answers[label].append(
            Answer(
                label, each.fingerprint, each.sample, each.response, correct if isinstance(correct, bool) else None,
                final if isinstance(final, str) else None,
            )
        )  # fmt: skip
    return found


def _judged(folder: Path) -> dict[tuple[str, int], Mapping[str, Any]]:
    """The rows of the files of judged responses, by problem and sample."""
    return {
        (row["problem"], row["sample"]): row
        for path in (folder / name for name in _JUDGED) if path.is_file()
        for row in _rows(path)
        if isinstance(row.get("problem"), str) and isinstance(row.get("sample"), int)
    }  # fmt: skip


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as file:
        yield from filter(None, map(unsealed_line, lines_of(file)))
