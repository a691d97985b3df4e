"""Ratings as rows that `mlxmath dpo` and `mlxmath reward-model` train on."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlxmath.data.datasets import known
from mlxmath.errors import InputError
from mlxmath.runtime.files import atomic_write
from mlxmath.studio.place import OWN, Studio
from mlxmath.studio.ratings import BOTH_BAD, SAME, SIDES, Rating, Side
from mlxmath.studio.sources import Answer

Form = Literal["pairs", "labels"]
FORMS: dict[Form, str] = {"pairs": "pairs, for dpo and reward-model", "labels": "labels, for dpo --loss-type kto"}


def form_of(form: Mapping[str, str]) -> Form:
    """As what the ratings are asked for.

    Raises:
        InputError: there is no such form of rows.
    """
    asked = form.get("form", "pairs")
    if found := next((name for name in FORMS if name == asked), None):
        return found
    raise InputError(f"form: expected one of {', '.join(FORMS)}.")


@dataclass
class Export:
    """Rows, and what is not among them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Pairs, by reason."""
    tests: Counter[str] = field(default_factory=Counter)
    """Rows that are test problems of a benchmark, by its name."""

    @property
    def data(self) -> bytes:
        """As a file of JSON lines."""
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        return "".join(lines).encode("utf-8", "replace")

    def write(self, path: Path) -> None:
        """Write them in one step."""
        atomic_write(path, self.data)


def exported(ratings: Iterable[Rating], form: Form = "pairs") -> Export:
    """The rows of all pairs on which more than half of the raters prefer the same solution.

    As labels (TRL's unpaired preferences), the preferred one is desirable and the other one is not, and both solutions
    are undesirable that more than half of the raters call bad.
    """
    pairs: dict[str, list[Rating]] = defaultdict(list)
    for rating in ratings:
        pairs[rating.pair].append(rating)
    found = Export()
    for own in pairs.values():
        (judged, votes), *_ = Counter(rating.judged for rating in own).most_common(1)
        if 2 * votes <= len(own):
            found.left_out["without a majority"] += 1
            continue
        first = next(rating for rating in own if rating.judged == judged)
        if judged == SAME or (judged == BOTH_BAD and form == "pairs"):
            found.left_out[judged] += 1
            continue
        rows = _as_labels(first, own) if form == "labels" else [_as_pair(first, own)]
        found.rows += rows
        if test := _test_set(first.benchmark):
            found.tests[test] += len(rows)
    return found


def target(studio: Studio, name: str, *, overwrite: bool) -> Path:
    """Where a file of pairs is to be written.

    Raises:
        InputError: it is no name of a file of JSON lines in the folder, or is there already.
    """
    path = studio.inside(name, "name")
    if path.suffix != ".jsonl" or path.is_relative_to(studio.folder / OWN):
        raise InputError(f"name: expected a file that ends in .jsonl, outside {OWN}/; found {name!r}.")
    if path.exists() and not overwrite:
        raise InputError(f"name: {studio.name(path)} is there already; choose another name, or replace it.")
    return path


def _as_pair(first: Rating, own: Iterable[Rating]) -> dict[str, Any]:
    assert first.winner
    chosen, rejected = first.side(first.winner), first.side(_opposite(first.winner))
    return {
        **_about(first), "chosen": chosen.text, "rejected": rejected.text,
        "chosen_by": chosen.label, "rejected_by": rejected.label,
        **_marks("chosen", chosen, own), **_marks("rejected", rejected, own), **_beside(first, own),
    }  # fmt: skip


def _as_labels(first: Rating, own: list[Rating]) -> list[dict[str, Any]]:
    return [
        {**_about(first, f"-{side}"), "completion": first.side(side).text, "label": side == first.winner,
         **_marks("completion", first.side(side), own), **_beside(first, own)}
        for side in SIDES
    ]  # fmt: skip


def _about(rating: Rating, ending: str = "") -> dict[str, Any]:
    return {"id": f"{rating.pair}{ending}", "prompt": rating.question}


def _beside(rating: Rating, own: Iterable[Rating]) -> dict[str, Any]:
    """What training does not read: where a row is from, and whether it may be trained on."""
    test = _test_set(rating.benchmark)
    return {
        "raters": ", ".join(sorted({each.rater for each in own})), "from": f"{rating.source}: {rating.problem}",
        "warning": f"a test problem of {test}: a model trained on it cannot be measured by it" if test else None,
    }  # fmt: skip


def _marks(name: str, answer: Answer, own: Iterable[Rating]) -> dict[str, Any]:
    """The first wrong step of a solution as most raters have it who marked one, of equals the earlier."""
    marks = Counter(
        (number, getattr(rating, f"{side}_wrong_text"))
        for rating in own for side in SIDES
        if rating.side(side).identity == answer.identity and (number := getattr(rating, f"{side}_wrong_step"))
    )  # fmt: skip
    number, text = min(marks, key=lambda mark: (-marks[mark], mark), default=(None, None))
    return {f"{name}_wrong_step": number, f"{name}_wrong_text": text}


def _opposite(side: Side) -> Side:
    return "right" if side == "left" else "left"


def _test_set(benchmark: str) -> str | None:
    """The benchmark whose test problems these are."""
    dataset = known(benchmark) if benchmark else None
    return dataset.name if dataset and dataset.test_split else None


def told(left_out: Mapping[str, int]) -> str:
    """What is left out, in words."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))
