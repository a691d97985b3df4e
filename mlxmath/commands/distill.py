"""`mlxmath distill`: a teacher's solutions, judged, as a dataset to train on."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxmath.commands import options
from mlxmath.config.answering import DistillationConfig
from mlxmath.config.schema import RunConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import say, warn

if TYPE_CHECKING:
    from mlxmath.distillation.card import Tally
    from mlxmath.distillation.endpoint import Endpoint
    from mlxmath.distillation.local import LocalTeacher
    from mlxmath.distillation.questions import Task
    from mlxmath.distillation.responses import Responses


@options.command("distill")
@options.configured
@options.setting_options(*options.DISTILLATION, *options.PROBLEMS)
@click.option("--rank-only", metavar="FILE", help="Judge the solutions in this file; no teacher is asked.")
@click.option("--resume", is_flag=True, help="Use the answers in the folder, and ask for what is missing.")
@click.option("--overwrite", is_flag=True, help="Start anew, whatever the folder holds.")
@options.setting_options(*options.RUNTIME)
def main(rank_only: str | None, resume: bool, overwrite: bool, **values: Any) -> None:
    """Have a teacher write solutions, and keep the right and faithful ones as a dataset.

    Writes responses.jsonl (every answer, as it comes), solutions.jsonl (for train --dataset), pairs.jsonl (a kept and a
    wrong solution to the same problem, for dpo and reward-model --dataset), rejected.jsonl (with reasons) and card.md.
    """
    config = options.settings(values).config
    settings = config.distillation
    asked = [
        name
        for name, value in (
            ("--rank-only", rank_only),
            ("--teacher", settings.teacher),
            ("--teacher-url", settings.teacher_url),
        )
        if value
    ]
    if len(asked) != 1:
        found = " and ".join(asked) or "none"
        raise InputError(f"expected one of --teacher-url, --teacher and --rank-only, found {found}.")
    if rank_only:
        tally = rank(config, Path(rank_only).expanduser(), overwrite=overwrite)
    else:
        tally = distill(config, resume=resume, overwrite=overwrite)

    folder = Path(settings.output_path)
    summarize(tally, folder)
    written = ("solutions.jsonl", "pairs.jsonl", "rejected.jsonl", "card.md")
    click.echo(json.dumps({name: f"{folder}/{name}" for name in written}))


def summarize(tally: "Tally", folder: Path) -> None:
    """Say how many solutions were kept, and why the others were not."""
    for reason, count in tally.reasons.most_common():
        say(f"rejected: {count:,} {reason}")
    say(
        f"{folder}/solutions.jsonl: {tally.num_kept:,} solutions to {tally.num_solved:,} of {tally.num_problems:,} "
        f"problems; {tally.num_correct:,} of {tally.num_judged:,} right; {tally.num_pairs:,} pairs"
    )
    if not tally.num_kept:
        warn("no solution is kept; rejected.jsonl holds each with its reason")


def distill(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> "Tally":
    """Ask the teacher for what is missing, then judge everything and write the dataset.

    Args:
        config: its data, distillation and runtime sections count.
        resume: use the answers that are there.
        overwrite: remove them.

    Raises:
        InputError: the folder holds other answers, or a setting is wrong.
        MlxmathError: the data cannot be read, or the teacher does not answer.
    """
    from mlxmath.distillation.card import write_card
    from mlxmath.distillation.dataset import answered, write_dataset
    from mlxmath.distillation.progress import cost
    from mlxmath.distillation.questions import load_questions
    from mlxmath.distillation.responses import claim, identify, open_responses

    settings, folder = config.distillation, Path(config.distillation.output_path)
    teacher = endpoint(settings) if settings.teacher_url is not None else _local(settings)
    questions = load_questions(config.data)
    left_out = _counts(questions.left_out)
    say(
        f"{questions.name}: {len(questions.items):,} problems with a gold answer"
        f"{f'; left out: {left_out}' if left_out else ''}"
    )
    identity = _identity(settings, teacher)
    claim(folder, identity, resume=resume, overwrite=overwrite)
    tasks = questions.tasks(settings.samples)
    with open_responses(folder, identify(identity)) as responses:
        missing = [task for task in tasks if task.key not in responses]
        if len(responses) or responses.left_out:
            damaged = f"; {responses.left_out:,} lines left out" if responses.left_out else ""
            say(f"{folder}: {len(tasks) - len(missing):,} of {len(tasks):,} answers are there already{damaged}")
        failures = _ask(config, teacher, missing, len(tasks), responses)
        tally = write_dataset(folder, answered(tasks, responses), failures, settings)
        facts: dict[str, Any] = {
            "teacher": settings.teacher or f"{settings.teacher_model} at {settings.teacher_url}",
            "problems": questions.name,
            "rows left out": left_out or "none",
            "solutions asked for": f"{len(tasks):,}: {settings.samples} for each of {len(questions.items):,} problems",
            "not answered": f"{len(failures):,}",
            "tokens": f"{responses.prompt_tokens:,} in, {responses.completion_tokens:,} out",
        }
        if settings.price_in or settings.price_out:
            facts["cost"] = f"{cost(settings, responses.prompt_tokens, responses.completion_tokens):,.4f}"
    write_card(folder, "Distilled solutions", facts, settings.model_dump(), tally)
    if failures and not len(responses):
        raise MlxmathError(
            f"none of {len(failures):,} questions got an answer ({failures[-1][1]}); see {folder}/rejected.jsonl, "
            "and ask again with --resume."
        )
    if failures:
        warn(f"{len(failures):,} questions got no answer (rejected.jsonl says why); --resume asks them again")
    return tally


def rank(config: RunConfig, path: Path, *, overwrite: bool = False) -> "Tally":
    """Judge the solutions of a file and write the dataset.

    Args:
        config: its distillation section counts, and the data section's columns.
        path: a file of rows with problems, solutions and gold answers; rows of one problem compete.
        overwrite: replace what the folder holds.

    Raises:
        InputError: no such file or column, or the folder holds something else.
    """
    from mlxmath.data.local import open_file
    from mlxmath.distillation.card import write_card
    from mlxmath.distillation.dataset import ranked, write_dataset
    from mlxmath.distillation.filter import FILTER
    from mlxmath.distillation.responses import claim

    settings = config.distillation
    rows = open_file(path, option="--rank-only")
    groups = ranked(rows, config.data)
    folder = Path(settings.output_path)
    claim(folder, {"ranked": rows.revision}, resume=True, overwrite=overwrite)
    tally = write_dataset(folder, groups, (), settings)
    facts = {"solutions from": path.name, "revision": rows.revision}
    write_card(folder, "Ranked solutions", facts, settings.model_dump(include=FILTER), tally)
    return tally


def endpoint(settings: DistillationConfig) -> "Endpoint":
    """The endpoint of `--teacher-url`, with its key out of the environment.

    Raises:
        InputError: the model has no name, or the variable is not set.
    """
    from mlxmath.distillation.endpoint import Endpoint

    if settings.teacher_model is None:
        raise InputError("--teacher-url needs --teacher-model, the endpoint's name of the model.")
    key = None
    if settings.teacher_key_env is not None:
        key = os.environ.get(settings.teacher_key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise InputError(
                f"--teacher-key-env: the environment variable {settings.teacher_key_env} holds no key; export it first."
            )
    body = {"temperature": settings.temperature, "top_p": settings.top_p, "max_tokens": settings.max_tokens}
    body |= json.loads(settings.teacher_extra or "{}")
    found = Endpoint(settings.teacher_url or "", settings.teacher_model, body, settings.timeout_s, key)
    if found.is_plain_text_abroad:
        warn(f"--teacher-url {found.url}: the key crosses the network unencrypted; use https.")
    return found


def _local(settings: DistillationConfig) -> "LocalTeacher":
    from mlxmath.distillation.local import LocalTeacher

    return LocalTeacher(settings)


def _identity(settings: DistillationConfig, teacher: "Endpoint | LocalTeacher") -> dict[str, Any]:
    """Everything that an answer depends on; never the key."""
    from mlxmath.distillation.endpoint import Endpoint

    if isinstance(teacher, Endpoint):
        who: dict[str, Any] = {"url": teacher.url, "model": teacher.model, **teacher.settings}
    else:
        who = {
            **teacher.identity,
            **settings.model_dump(include={"temperature", "top_p", "max_tokens"}),
        }
    return {**who, "instruction": settings.instruction, "seed": settings.seed}


def _ask(
    config: RunConfig, teacher: "Endpoint | LocalTeacher", tasks: "list[Task]", total: int, responses: "Responses"
) -> "list[tuple[Task, str]]":
    """Have the tasks answered and each answer written; those that failed, with the reason."""
    from mlxmath.distillation.endpoint import Endpoint
    from mlxmath.distillation.progress import Progress
    from mlxmath.distillation.responses import Response
    from mlxmath.distillation.teacher import Outcome, ask_endpoint

    settings = config.distillation
    failures: list[tuple[Task, str]] = []
    if not tasks:
        return failures
    progress = Progress(settings, total, total - len(tasks), (responses.prompt_tokens, responses.completion_tokens))

    def on_outcome(outcome: Outcome) -> None:
        task, answer = outcome.task, outcome.answer
        if answer is None:
            warn(f"problem {task.question.id}: no answer: {outcome.failure}")
            failures.append((task, str(outcome.failure)))
            progress.failed += 1
            return
        responses.append(
            Response(
                responses.fingerprint, task.question.key, task.sample, task.question.id, task.question.text,
                task.question.gold, answer.text, answer.finish_reason, answer.prompt_tokens, answer.completion_tokens,
                round(outcome.seconds, 3), outcome.attempts,
            )
        )  # fmt: skip
        progress.answered(answer.prompt_tokens, answer.completion_tokens)

    try:
        if isinstance(teacher, Endpoint):
            from mlxmath.distillation.questions import sample_seed

            def seed_of(task: "Task") -> int | None:
                return None if settings.seed is None else sample_seed(settings.seed, task)

            ask_endpoint(teacher, tasks, settings, seed_of, on_outcome)
        else:
            teacher.ask(tasks, config.runtime, on_outcome, progress.show)
    finally:
        progress.close()
    return failures


def _counts(counter: "Counter[str] | Mapping[str, int]") -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counter.items() if count)
