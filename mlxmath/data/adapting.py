"""Rows of known datasets as they are published, each turned into one with the columns of `mlxmath.data.datasets`.

They raise SkippedRowError for a row that lacks what is needed, RefusedRowError for one that is none of the dataset's.
"""

import ast
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from mlxmath.data.forms import number_text
from mlxmath.data.gold import options_of, with_options
from mlxmath.data.problem import RefusedRowError, SkippedRowError

Row = Mapping[str, Any]
GENERATIONS = "generations"


def _verified(row: Row) -> list[int]:
    """Which of OpenR1's generations are complete and right by either checker; any list may be null or short."""
    checks = [row.get("correctness_math_verify") or (), row.get("correctness_llama") or ()]
    complete = row.get("is_reasoning_complete") or ()
    return [
        i
        for i in range(max(map(len, checks)))
        if any(i < len(check) and check[i] is True for check in checks)
        and not (i < len(complete) and complete[i] is False)
    ]


def verified_generations(row: Row) -> list[str]:
    """The verified generations themselves."""
    generations = row.get(GENERATIONS) or ()
    return [generations[i] for i in _verified(row) if i < len(generations) and generations[i]]


def open_r1(row: Row) -> Row:
    """A row is right if one of its generations is."""
    return {**row, "correct": bool(_verified(row))}


def gsm_hard(row: Row) -> Row:
    """The program that solves it, as lines of arithmetic, is the solution; it is text here and never run."""
    body = (row.get("code") or "").partition("def solution():")[2]
    before, quotes, rest = body.partition('"""')
    lines = textwrap.dedent((before + rest.partition('"""')[2]) if quotes else body).strip().splitlines()
    lines = [line.rstrip() for line in lines if line.strip() and line.strip() != "return result"]
    target = row.get("target")
    if not isinstance(target, int | float) or target != target:
        raise SkippedRowError("empty answer")
    answer = number_text(target)
    return {**row, "solution": "\n".join([*lines, f"#### {answer}"]), "answer": answer}


def svamp(row: Row) -> Row:
    """Body and question are one problem; the equation and its value are the solution."""
    body, question, answer = (row.get("Body") or "").strip(), (row.get("Question") or "").strip(), row.get("Answer")
    if not question:
        raise SkippedRowError("empty problem")
    try:
        answer = number_text(float(answer))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise SkippedRowError("empty answer") from None
    equation = " ".join(
        number_text(float(part)) if part.replace(".", "", 1).isdigit() else part
        for part in (row.get("Equation") or "").split()
    )
    if equation.startswith("( ") and equation.endswith(" )") and equation.count("(") == 1:
        equation = equation[2:-2]
    joined = body if not body or body[-1] in ".!?," else f"{body}."
    solution = f"{equation} = {answer}\n#### {answer}" if equation else None
    return {**row, "question": f"{joined} {question}".strip(), "solution": solution, "answer": answer}


_MATH_QA_OPTION = re.compile(r"(?:^|\s*,\s*)([a-e])\s*\)\s*(.*?)(?=\s*,\s*[a-e]\s*\)|\s*$)", re.DOTALL)


def math_qa(row: Row) -> Row:
    """The options are part of the question, the right one, with its letter, is the answer."""
    options = (row.get("options") or "").strip()
    question = (row.get("Problem") or "").strip()
    rationale = (row.get("Rationale") or "").strip().removeprefix('"').removesuffix('"').strip()
    correct = (row.get("correct") or "").strip().lower()
    texts = dict(_MATH_QA_OPTION.findall(options))
    return {
        **row,
        "question": f"{question}\nOptions: {options}" if question and options else question,
        "solution": rationale,
        "answer": _choice(correct, texts[correct]) if texts.get(correct) else correct,
    }


def mmlu(row: Row) -> Row:
    """The answer is a place among the choices, counted from 0, whatever these say; in copies of it also a letter."""
    answer, choices = row.get("answer"), row.get("choices")
    question = (row.get("question") or "").strip()
    if not question:
        raise SkippedRowError("empty problem")
    options = options_of(choices)
    places = {label: place for place, (label, _) in enumerate(options)}
    place = places.get(answer.strip(), -1) if isinstance(answer, str) else answer
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(options):
        raise RefusedRowError("answer that is no place among the choices")
    return {**row, "question": with_options(question, choices), "answer": _choice(*options[place])}


def _choice(letter: str, text: str) -> str:
    """The right option with its letter: either of them is a right answer (`mlxmath.grading`)."""
    return f"({letter.upper()}) {text}".strip()


_CONTEST_YEAR = re.compile(r"\b(?:index\.php/|title=)?(\d{4})_(?:AMC|AIME)_")


def contest(year: str | None = None) -> Callable[[Row], Row]:
    """Problems of AIMO's validation sets, whose page on the AoPS wiki tells their year; of one year, or all of them."""

    def adapt(row: Row) -> Row:
        found = _CONTEST_YEAR.search(row.get("url") or "")
        own = found[1] if found else None
        if year is not None and own != year:
            raise RefusedRowError("of another year")
        answer = row.get("answer")
        if isinstance(answer, float):  # AMC's, adapted to be whole
            answer = number_text(answer)
        return {**row, "answer": answer, "year": own}

    return adapt


_STRING = r"""(?:'(?:[^'\\\n]|\\[\\'"nrtxuU])*'|"(?:[^"\\\n]|\\[\\'"nrtxuU])*")"""
_LIST = re.compile(rf"\[\s*(?:{_STRING}\s*(?:,\s*{_STRING}\s*)*)?\]")
"""A list of texts in Python or JSON. Texts without commas between them, as NumPy writes them, Python would join."""
_LONGEST_LIST = 1_000_000


def _texts(value: Any, what: str) -> list[str]:
    """The texts of a list, also of one that is written as text (in a cell of CSV); a single text is a list of one.

    Raises:
        SkippedRowError: it begins as a list and is none.
    """
    if isinstance(value, str) and (written := value.strip()).startswith("["):
        if len(written) > _LONGEST_LIST or not _LIST.fullmatch(written):
            raise SkippedRowError(f"{what} that begins as a list of texts and is none")
        try:
            value = ast.literal_eval(written)
        except (SyntaxError, ValueError):
            raise SkippedRowError(f"{what} that begins as a list of texts and is none") from None
    listed = value if isinstance(value, list) else [value]
    return [text for text in listed if isinstance(text, str) and text.strip()]


def olympiad_bench(row: Row) -> Row:
    """Context and question are one problem; of its lists, the first solution counts, and all of its answers."""
    context, question = (row.get("context") or "").strip(), (row.get("question") or "").strip()
    if not question:
        raise SkippedRowError("empty problem")
    if "<img_" in context + question:
        raise RefusedRowError("problem with a picture")
    if row.get("error"):
        raise RefusedRowError("answer that is right within a tolerance")
    answers = [text.strip() for text in _texts(row.get("final_answer"), "answer")]
    if not answers:
        raise SkippedRowError("empty answer")
    solutions = _texts(row.get("solution"), "solution")
    return {
        **row, "question": f"{context}\n\n{question}".strip(), "answer": ", ".join(answers),
        "solution": solutions[0] if solutions else None,
    }  # fmt: skip
