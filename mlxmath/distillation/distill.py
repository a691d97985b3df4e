"""Distillation from top to bottom: load questions, ask for what is missing, judge all answers, write the dataset."""

from dataclasses import replace
from pathlib import Path

from mlxmath.config.methods import DistillationConfig
from mlxmath.config.schema import RunConfig
from mlxmath.distillation.dataset import DistillResult, write_card, write_dataset
from mlxmath.distillation.filter import FILTER
from mlxmath.distillation.questions import Task, load_questions, load_solutions
from mlxmath.distillation.responses import Response, Responses, open_responses
from mlxmath.distillation.teacher import Answer, Teacher, open_teacher
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import Progress, duration, say, warn


def distill(
    config: RunConfig, *, rank_only: Path | None = None, resume: bool = False, overwrite: bool = False
) -> DistillResult:
    """Have a teacher write solutions, and keep the right and faithful ones as a dataset.

    Args:
        config: its data, distillation and runtime sections count.
        rank_only: judge the solutions in this file instead; no teacher is asked.
        resume: use the answers that the folder holds.
        overwrite: remove them.

    Raises:
        InputError: the folder holds other answers, or a setting is wrong.
        MlxmathError: the data cannot be read, or the teacher does not answer.
    """
    settings, folder = config.distillation, Path(config.distillation.output_path)
    named = {"--rank-only": rank_only, "--teacher": settings.teacher, "--teacher-url": settings.teacher_url}
    if len(asked := [name for name, value in named.items() if value]) != 1:
        found = " and ".join(asked) or "none"
        raise InputError(f"expected one of --teacher-url, --teacher and --rank-only, found {found}.")
    if rank_only:
        return _rank(config, rank_only, overwrite=overwrite)

    teacher = open_teacher(settings, config.runtime, config.data.tools)
    questions = load_questions(config.data)
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in questions.left_out.items() if count)
    say(
        f"{questions.name}: {len(questions.items):,} problems with a gold answer"
        f"{f'; left out: {left_out}' if left_out else ''}"
    )
    tasks = questions.tasks(settings.samples)
    identity = {**teacher.identity, "seed": settings.seed}
    with open_responses(folder, identity, resume=resume, overwrite=overwrite) as responses:
        missing = [task for task in tasks if task.key not in responses]
        if len(responses) or responses.left_out:
            damaged = f"; {responses.left_out:,} lines left out" if responses.left_out else ""
            say(f"{folder}: {len(tasks) - len(missing):,} of {len(tasks):,} answers are there already{damaged}")
        unanswered = _ask(teacher, missing, len(tasks), responses, settings)
        problems = (
            [
                replace(one, id=question.id, problem=question.text, answer=question.gold)
                for sample in range(settings.samples)
                if (one := responses.get((question.key, sample)))
            ]
            for question in questions.items
        )
        result = write_dataset(folder, problems, unanswered, settings)
        result.prompt_tokens, result.completion_tokens = responses.prompt_tokens, responses.completion_tokens
        result.cost = _cost(settings, responses)
        facts = {
            "teacher": settings.teacher or f"{settings.teacher_model} at {settings.teacher_url}",
            "problems": questions.name,
            "rows left out": left_out or "none",
            "solutions asked for": f"{len(tasks):,}: {settings.samples} for each of {len(questions.items):,} problems",
            "not answered": f"{len(unanswered):,}",
            "tokens": f"{result.prompt_tokens:,} in, {result.completion_tokens:,} out",
            **({"cost": f"{result.cost:,.4f}"} if result.cost else {}),
        }
        write_card(result, "Distilled solutions", facts, settings.model_dump())
        if unanswered and not len(responses):
            raise MlxmathError(
                f"none of {len(unanswered):,} questions got an answer ({unanswered[-1][1]}); see "
                f"{folder}/rejected.jsonl, and ask again with --resume."
            )
    if unanswered:
        warn(f"{len(unanswered):,} questions got no answer (rejected.jsonl says why); --resume asks them again")
    return result


def _rank(config: RunConfig, path: Path, *, overwrite: bool) -> DistillResult:
    """Judge the solutions of a file; rows of one problem compete."""
    settings = config.distillation
    revision, problems = load_solutions(path, config.data)
    with open_responses(Path(settings.output_path), {"ranked": revision}, resume=True, overwrite=overwrite):
        result = write_dataset(Path(settings.output_path), problems, (), settings)
        facts = {"solutions from": path.name, "revision": revision}
        write_card(result, "Ranked solutions", facts, settings.model_dump(include=FILTER))
    return result


def _ask(
    teacher: Teacher,
    tasks: list[Task],
    num_tasks: int,
    responses: Responses,
    settings: DistillationConfig,
) -> list[tuple[Task, str]]:
    """Have the tasks answered and each answer written as it comes; those that failed, with the reason."""
    failed: list[tuple[Task, str]] = []
    if not tasks:
        return failed
    progress = Progress("distill", num_tasks, num_tasks - len(tasks))

    def state() -> str:
        lost = f"{len(failed):,} failed, " if failed else ""
        price = f", cost {_cost(settings, responses):,.4f}" if settings.price_in or settings.price_out else ""
        return f"{lost}{responses.prompt_tokens:,} tokens in, {responses.completion_tokens:,} out{price}"

    def on_outcome(task: Task, outcome: Answer | str) -> None:
        question = task.question
        if isinstance(outcome, str):
            warn(f"problem {question.id}: no answer: {outcome}")
            failed.append((task, outcome))
            return
        responses.append(
            Response(
                responses.fingerprint, question.key, task.sample, question.id, question.text, question.gold,
                outcome.text, outcome.finish_reason, outcome.prompt_tokens, outcome.completion_tokens,
                round(outcome.seconds, 3), outcome.attempts,
            )
        )  # fmt: skip
        progress.update(1, state())

    try:
        teacher.ask(tasks, on_outcome, lambda _: progress.update(0, state()))
    finally:
        progress.close()
        say(f"distill: {progress.done:,} of {num_tasks:,} answered, {state()}, {duration(progress.elapsed_s)}")
    return failed


def _cost(settings: DistillationConfig, responses: Responses) -> float:
    """In the currency of the prices, which are for a million tokens."""
    return (settings.price_in * responses.prompt_tokens + settings.price_out * responses.completion_tokens) / 1e6
