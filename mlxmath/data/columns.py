"""The names that columns of datasets usually have, and what each tells about them; which column is which part."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache

from mlxmath.errors import InputError

QUESTIONS = (
    "problem", "question", "prompt", "instruction", "query", "input", "problem_statement", "problem_text",
    "question_text", "input_text", "inputs",
)  # fmt: skip
"""Columns known to hold the problem; of several the first is taken."""
WORKED = (
    "solution", "generated_solution", "worked_solution", "completion", "response", "output", "generation", "rationale",
    "explanation", "chain_of_thought", "cot", "reasoning", "output_text", "target_text", "targets",
)  # fmt: skip
SOLUTIONS = (*WORKED, "answer", "target")
"""Columns known to hold what a model learns to write: an answer column does only where no worked solution is."""
TEXT = "text"
"""A column of whole texts, which are learned as they are."""
CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog")
"""Columns that hold a whole conversation."""
CONTEXTS = ("input", "context")
"""Columns that belong to an instruction or a question: Alpaca's and Dolly's."""
SYSTEMS = ("system", "system_prompt")
REASONINGS = ("reasoning_content", "thinking", "reasoning")
TOOLS = "tools"
ANSWERS = (
    "answer", "final_answer", "expected_answer", "ground_truth", "reference_answer", "gold_answer", "correct_answer",
    "gold", "target", "reward_model", "true_answer", "answer_number", "numerical_answer", "answer_key",
)  # fmt: skip
HOLDERS = ("verification_info", "extra_info", "metadata", "info")
"""Columns of objects (or JSON) among whose entries the answer may be."""
INSIDE_HOLDER = ("ground_truth", "answer", "final_answer", "expected_answer", "reference_answer")
"""The entries of such an object that are the answer."""
INSIDE_ANSWER = (*INSIDE_HOLDER, "value", "text")
"""The entries that are the answer in an answer column's object: verl's `reward_model`, TriviaQA's, SQuAD's."""
CHOSEN_OPTIONS = ("correct", "correct_option", "correct_choice", "answer_index", "answer_idx", "label")
"""Columns that hold the right one of the options, where there are any."""
OPTIONS = ("options", "choices")
"""Columns that hold the answers among which a question lets choose."""
CHOSEN = ("chosen", "chosen_response", "preferred", "accepted")
REJECTED = ("rejected", "rejected_response", "dispreferred", "non_preferred")
"""Columns that hold the completions of a pair."""
LABEL = "label"
"""The column that says of a completion whether it is desirable, as in TRL's unpaired preferences."""
IDS = ("id", "uuid", "unique_id", "problem_id")
DIFFICULTIES = ("difficulty", "level")
SUBJECTS = ("subject", "type", "problem_type", "task_category", "category", "kind")
SOURCES = ("source", "data_source")

_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[\s-]+")


@cache
def canonical(name: str) -> str:
    """A column's name in lower case with underscores: final_answer for "Final Answer" and "finalAnswer"."""
    return _WORDS.sub("_", name.strip()).lower()


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?` with the known name nearest to `name`, or nothing."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.4)
    return f"; did you mean {by_lower[found[0]]!r}?" if found else ""


def first_of(names: Iterable[str], available: Sequence[str], *taken: str | None) -> str | None:
    """The first of `names` that is available, in whatever spelling (`canonical`), and not taken."""
    spelled = {canonical(name): name for name in reversed(available)} | {name: name for name in available}
    found = (spelled[name] for name in names if name in spelled)
    return next((name for name in found if name not in taken), None)


@dataclass(frozen=True)
class Columns:
    """Which column plays which part."""

    question: str
    solution: str | None
    answer: str | None = None
    id: str | None = None
    difficulty: str | None = None
    subject: str | None = None
    source: str | None = None
    rejected: str | None = None
    """Of pairs, of which the solution is the preferred completion."""
    label: str | None = None
    """Whether the solution is desirable, where completions come one by one."""
    context: str | None = None
    """What the question is about, or the instruction's input: it belongs to the problem."""
    system: str | None = None
    """The system message."""
    reasoning: str | None = None
    """What was thought before the solution was written."""
    tools: str | None = None
    """What the tool calls of a conversation may use."""
    holder: str | None = None
    """An object that may hold the answer, where no column is the answer."""
    options: str | None = None
    """The answers among which the question lets choose."""

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read."""
        names = (getattr(self, part.name) for part in fields(self))
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @property
    def main(self) -> tuple[str, ...]:
        """The columns without which there is no problem."""
        return self.question, *([self.solution] if self.solution else ())

    @property
    def core(self) -> tuple[str | None, ...]:
        """The columns whose values are the problem itself."""
        return self.question, self.solution, self.answer, self.holder, self.id, self.rejected, self.label, *self.beside

    @property
    def beside(self) -> tuple[str, ...]:
        """The columns that are read with the problem and the solution."""
        return tuple(name for name in (self.context, self.options, self.system, self.reasoning, self.tools) if name)

    @property
    def is_conversation(self) -> bool:
        """Whether one column holds the whole conversation."""
        return self.question == self.solution and not self.is_text

    @property
    def is_text(self) -> bool:
        """Whether one column holds a whole text without question and answer."""
        return self.question == self.solution and canonical(self.question) == TEXT

    def __str__(self) -> str:
        beside = "".join(f" + {name}" for name in self.beside)
        if self.is_text:
            return f"{self.question}, learned whole: there is no question and answer"
        if self.is_conversation or self.solution is None:
            return self.question + beside
        other = f", not {self.rejected}" if self.rejected else f", by {self.label}" if self.label else ""
        return f"{self.question}{beside} -> {self.solution}{other}"


def find_columns(
    available: Sequence[str],
    question: str | None = None,
    solution: str | None = None,
    answer: str | None = None,
    *,
    where: str,
    solution_required: bool = True,
) -> Columns:
    """Decide which columns are the problem and the solution.

    Args:
        available: the dataset's columns.
        question: the column asked for with `--question-column`.
        solution: the column asked for with `--solution-column`.
        answer: the column asked for with `--answer-column`.
        where: the dataset's name, for errors.
        solution_required: whether a dataset without solutions is an error (it is not for evaluation).

    Raises:
        InputError: a column asked for is absent, or none has a usual name.
    """
    asked = {"question": question, "solution": solution, "answer": answer}
    _check_asked(asked, available, where)
    if question is None and solution is None:
        question = first_of(QUESTIONS, available)
        solution = first_of(SOLUTIONS, available, question) if question else None
        if solution is None:
            texts = (TEXT,) if question is None and solution_required else ()
            if whole := first_of((*CONVERSATIONS, *texts), available):
                question = solution = whole
    if question is None:
        question = first_of(QUESTIONS, available, solution)
    elif solution is None:
        is_whole = canonical(question) in CONVERSATIONS or (canonical(question) == TEXT and solution_required)
        solution = question if is_whole else first_of(SOLUTIONS, available, question)
    if question is None or (solution is None and solution_required):
        part, missing = ("question", "problem") if question is None else ("solution", "solution")
        if first_of(CHOSEN, available) and first_of(REJECTED, available):
            raise InputError(f"{where}: pairs of completions ({', '.join(available)}) are for `mlxmath dpo`.")
        raise InputError(
            f"{where}: no column for the {missing} among {', '.join(available) or 'none'}; "
            f"name it with --{part}-column."
        )
    if not solution_required and solution not in (None, *asked.values()) and not _may_be_worked(question, solution):
        solution = None
    context = None if question == solution else first_of(CONTEXTS, available, question, solution)
    options = None if question == solution else first_of(OPTIONS, available, question, solution)
    taken = (question, solution, context)
    answer = answer or first_of((*ANSWERS, *(CHOSEN_OPTIONS if options else ())), available, *taken)
    return Columns(
        question,
        solution,
        answer=answer,
        holder=None if answer else first_of(HOLDERS, available, *taken),
        id=first_of(IDS, available, question),
        difficulty=first_of(DIFFICULTIES, available, *taken),
        subject=first_of(SUBJECTS, available, *taken),
        source=first_of(SOURCES, available, *taken),
        context=context,
        system=first_of(SYSTEMS, available, *taken),
        reasoning=first_of(REASONINGS, available, *taken) if solution and canonical(solution) in WORKED else None,
        tools=first_of((TOOLS,), available, *taken),
        options=options,
    )


def _may_be_worked(question: str, solution: str | None) -> bool:
    """Whether a solution column may hold more than a bare answer: GSM8K calls its worked solutions so."""
    return solution is not None and (
        canonical(solution) not in ANSWERS or canonical(question) in ("question", "problem")
    )


def find_pair_columns(available: Sequence[str], question: str | None = None, *, where: str) -> Columns:
    """Decide which column is the prompt of the pairs, or of completions with a label each.

    Args:
        available: the dataset's columns.
        question: the column asked for with `--question-column`.
        where: the dataset's name, for errors.

    Raises:
        InputError: `chosen`, `rejected` (or completion and label) or the column asked for is absent.
    """
    chosen, rejected = first_of(CHOSEN, available), first_of(REJECTED, available)
    label = None if chosen or rejected else first_of((LABEL,), available)
    if label and (completion := first_of(WORKED, available, question)):
        _check_asked({"question": question}, available, where)
        prompt = question or first_of(("prompt", *QUESTIONS), available, completion) or completion
        return Columns(
            prompt, completion, id=first_of((*IDS, "prompt_id"), available), system=first_of(SYSTEMS, available),
            label=label,
        )  # fmt: skip
    absent = [names[0] for names, found in ((CHOSEN, chosen), (REJECTED, rejected)) if found is None]
    if absent or chosen is None:
        raise InputError(
            f"{where}: no column {' and no column '.join(map(repr, absent))} among {', '.join(available) or 'none'}; "
            "expected rows with prompt, chosen and rejected, or for --loss-type kto with prompt, completion and label."
        )
    _check_asked({"question": question}, available, where)
    return Columns(
        question or first_of(("prompt", *QUESTIONS), available) or chosen,
        chosen,
        id=first_of((*IDS, "prompt_id"), available),
        system=first_of(SYSTEMS, available),
        rejected=rejected,
    )


def _check_asked(asked: Mapping[str, str | None], available: Sequence[str], where: str) -> None:
    """Refuse columns asked for that are not there."""
    for part, name in asked.items():
        if name is not None and name not in available:
            raise InputError(
                f"--{part}-column: {where} has no column {name!r}, but {', '.join(available)}{near(name, available)}"
            )
