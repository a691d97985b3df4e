"""Judges what there is, problem by problem, and writes solutions, rejected ones, pairs and the card's figures."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from mlxmath.config.answering import DistillationConfig
from mlxmath.config.schema import DataConfig
from mlxmath.data.columns import SkippedRowError, find_columns, make_problem
from mlxmath.data.gold import gold
from mlxmath.data.local import Rows
from mlxmath.distillation.card import Tally
from mlxmath.distillation.filter import NOT_ANSWERED, NOT_BEST, REPEATED, Candidate, choose, judge, pair, pair_row
from mlxmath.distillation.questions import Task, question_key
from mlxmath.distillation.responses import Responses
from mlxmath.errors import InputError
from mlxmath.runtime.files import atomic_file

SOLUTIONS, REJECTED, PAIRS = "solutions.jsonl", "rejected.jsonl", "pairs.jsonl"
_BATCH = 64
"""Problems judged together."""

Unanswered = tuple[Task, str]
"""A task without an answer, and why."""


def write_dataset(
    folder: Path, groups: Iterable[list[Candidate]], unanswered: Iterable[Unanswered], settings: DistillationConfig
) -> Tally:
    """Write what is kept, what is not with its reason, and pairs of a right and a wrong solution.

    Args:
        folder: for the files.
        groups: the candidates of each problem; none for a problem without an answer.
        unanswered: tasks that have none.
        settings: the filter's.
    """
    tally = Tally()
    with (
        atomic_file(folder / SOLUTIONS) as kept,
        atomic_file(folder / REJECTED) as rejected,
        atomic_file(folder / PAIRS) as pairs,
    ):
        waiting = iter(groups)
        while some := list(islice(waiting, _BATCH)):
            judged = judge([candidate for group in some for candidate in group], settings)
            chosen = choose(judged, settings.keep)
            start = 0
            for group in some:
                own = chosen[start : start + len(group)]
                start += len(group)
                tally.num_problems += 1
                tally.accepted_of_problem[sum(one.reason in (None, NOT_BEST, REPEATED) for one in own)] += 1
                if found := pair(own):
                    tally.num_pairs += 1
                    pairs.write(_line(pair_row(*found)))
            for one in chosen:
                tally.add(one)
                why = {} if one.reason is None else {"reason": one.reason, "detail": one.detail}
                (kept if one.reason is None else rejected).write(_line(one.row() | why))
        for task, why_not in unanswered:
            tally.reasons[NOT_ANSWERED] += 1
            question = task.question
            row = {"id": question.id, "sample": task.sample, "problem": question.text, "answer": question.gold}
            rejected.write(_line(row | {"reason": NOT_ANSWERED, "detail": why_not}))
    return tally


def answered(tasks: Iterable[Task], responses: Responses) -> Iterator[list[Candidate]]:
    """The answers to each problem's tasks."""
    by_problem: dict[str, list[Task]] = {}
    for task in tasks:
        by_problem.setdefault(task.question.key, []).append(task)
    for group in by_problem.values():
        found = ((task, responses.get(task.key)) for task in group)
        yield [
            Candidate(
                task.question.key, task.question.id, task.sample, task.question.text, task.question.gold, one.response,
                one.finish_reason, one.completion_tokens,
            )
            for task, one in found
            if one is not None
        ]  # fmt: skip


def ranked(rows: Rows, config: DataConfig) -> list[list[Candidate]]:
    """The candidates of each problem in a file that holds problems, solutions and gold answers.

    Args:
        rows: of the file.
        config: names its columns, if they have unusual names.

    Raises:
        InputError: there is no column for one of the three, or no usable row.
    """
    found = find_columns(
        rows.columns, config.question_column, config.solution_column, config.answer_column, where=rows.name
    )
    if found.answer is None:
        raise InputError(
            f"--rank-only: {rows.name} has no column with the gold answer, but {', '.join(rows.columns)}; name it "
            "with --answer-column."
        )
    groups: dict[str, list[Candidate]] = {}
    for index, row in enumerate(rows.read(rows.columns)):
        try:
            problem = make_problem(row, found, index, solution_required=False)
        except SkippedRowError as reason:
            raise InputError(f"--rank-only: row {index + 1} of {rows.name}: {reason}; mend or remove it.") from None
        answer = gold(problem) if row.get(found.answer) is not None else None
        if answer is None:
            raise InputError(f"--rank-only: row {index + 1} of {rows.name} has no gold answer; mend or remove it.")
        key = question_key(problem.question)
        group = groups.setdefault(key, [])
        tokens = row.get("completion_tokens")
        group.append(
            Candidate(
                key, problem.id, len(group), problem.question, answer, problem.solution or "",
                str(row.get("finish_reason") or "stop"), tokens if isinstance(tokens, int) else None,
            )
        )  # fmt: skip
    return list(groups.values())


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace")
