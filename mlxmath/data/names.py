"""The names that columns of datasets usually have, and what each tells about them."""

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import cache

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
