r"""The gold answer of a problem: one rule for reinforcement learning, distillation, evaluation and templates.

A gold answer is *stated*: by the dataset's answer column, or by the solution after `####`, in its last `\boxed{}`, in a
line such as "A: …" or "The answer is …", or as a solution that is nothing but an answer. What merely stands last in a
solution is none: "all real numbers x > 3" is not 3, and a reward or a score against it would be noise.

The answer of a row's columns may stand inside an object, or be the place of one of the options that a question lets
choose from; the options belong to the question.
"""

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from mlxmath.data.columns import INSIDE_ANSWER, INSIDE_HOLDER
from mlxmath.data.problem import Problem, SkippedRowError, text_of
from mlxmath.grading.extract import Rule, after_thinking, extract
from mlxmath.runtime.files import parse_json

WITHOUT_GOLD = "without a gold answer"
"""Why a problem is left out where a gold answer is needed."""

STATED: tuple[Rule, ...] = ("####", "boxed", "answer is", "whole")
"""Rules of the grader that are sure enough of a gold answer."""
_MARKS = ("####", "\\boxed", "\\fbox")
_INLINE = re.compile(r"[^\n#>* \t][ \t]*####[ \t]*[^\s#][^\n#]{0,60}$")
_LONGEST_ANSWER = 250
"""An answer column's text above this many characters is a solution."""
_NUMBER = re.compile(r"[-+]?\\?[$€£¥₹]?\d")
_HEAD = re.compile(r"\banswers?\b|^[\s>*_#-]*(?:A|Ans)\b\W{0,4}[:=]", re.IGNORECASE | re.MULTILINE)
_STATES = re.compile(r"\b(?:is|are|was|be|equals?|to)\b|[:=]", re.IGNORECASE)
_FILLER = re.compile(
    r"(?:[\s$*_\\(]|\b(?:a|an|the|total|sum|number|value|of|therefore|thus|hence|then|so|now|indeed|simply|just|exactly"
    r"|approximately|about|around|roughly|only)\b,?)*",
    re.IGNORECASE,
)
_BOUND_BEFORE = re.compile(
    r"(?:[<>≤≥≠]=?|!=|\\(?:[lg](?:t|e|eq|eqslant)|neq?)"
    r"|\b(?:at (?:most|least)|(?:more|less|fewer|greater|larger|smaller|higher|lower|other) than|up to|above|below"
    r"|under|over|except))[\s$\\(*]*$",
    re.IGNORECASE,
)
_BOUND_AFTER = re.compile(
    r"[\s$)*]*(?:or|and) (?:more|less|fewer|greater|larger|smaller|higher|lower|above|below|up)\b", re.IGNORECASE
)


def gold(problem: Problem) -> str | None:
    """The answer that the dataset states for a problem; None if it states none, or in an undesirable completion."""
    if problem.answer and (answer := problem.answer.strip()):
        return answer_of(answer)
    return stated(problem.solution) if problem.solution and problem.is_desirable is not False else None


def answer_of(text: str) -> str | None:
    """The answer in an answer column's text: the text itself, or what it states if it is a worked solution."""
    return stated(text) if len(text) > _LONGEST_ANSWER or is_marked(text) else text


def stated(solution: str) -> str | None:
    """The answer that a solution states in so many words; None if it states none."""
    text = after_thinking(solution)
    if text and _INLINE.search(text):  # a solution whose line breaks were lost
        text = text.replace(_MARKS[0], f"\n{_MARKS[0]}")
    found = extract(text) if text else None
    if text is None or found is None or found.rule not in STATED or not found.text.strip():
        return None
    if found.rule == "answer is" and _NUMBER.match(found.text) and not _stands_alone(found.text, text):
        return None
    return found.text.strip()


def is_marked(text: str) -> bool:
    r"""Whether a text has a mark of an answer in it, `####` or `\boxed`: cheap to tell."""
    return any(mark in text for mark in _MARKS)


def _stands_alone(number: str, text: str) -> bool:
    """Whether a number is what a text states, not a part of it: not of "all x > 3", "at least 3", "multiples of 3"."""
    head = max((match.end() for match in _HEAD.finditer(text)), default=len(text))
    start = text.find(number, head)
    if start >= 0:
        before = text[max(head, text.rfind("\n", 0, start)) : start]
        stated_from = max((match.end() for match in _STATES.finditer(before)), default=0)
        fits = _FILLER.fullmatch(before, stated_from) is not None
    else:  # "… is the answer", or in another language
        start = text.rfind(number)
        fits = not _BOUND_BEFORE.search(text[text.rfind("\n", 0, start) + 1 : max(start, 0)])
    return fits and not _BOUND_AFTER.match(text, start + len(number))


def answer_among(row: Mapping[str, Any], answer: str | None, holder: str | None, options: str | None) -> str | None:
    """The answer of a row; None where there is none, or no single text (several answers, true or false).

    Args:
        row: of a dataset.
        answer: the column that is the answer.
        holder: a column of objects of which an entry may be the answer.
        options: the column of the options to choose from.
    """
    value = inside(row.get(answer)) if answer else None
    if holder:
        value = inside(found := row.get(holder), INSIDE_HOLDER)
        value = None if value is found else value
    try:
        return text_of(chosen_of(value, row.get(options)) if options else value, "answer")
    except SkippedRowError:
        return None


def inside(value: Any, names: Sequence[str] = INSIDE_ANSWER) -> Any:
    """The answer in an object, also one written as JSON; anything else as it is."""
    entries = value
    if isinstance(value, str) and value.startswith("{") and any(f'"{name}"' in value for name in names):
        try:
            entries = parse_json(value)
        except ValueError:
            return value
    if isinstance(entries, Mapping):
        return next((entries[name] for name in names if entries.get(name) is not None), value)
    return value


def options_of(value: Any) -> list[tuple[str, str]]:
    """The options with their labels: of a list of texts ("21" or "A)21"), ARC's {"label": [...], "text": [...]}, or
    {"A": "21", ...}.

    Raises:
        SkippedRowError: one is no text, or there are more of a list than letters.
    """
    if isinstance(value, Mapping):
        texts, labels = value.get("text"), value.get("label")
        are_lists = isinstance(texts, list) and isinstance(labels, list)
        both = zip(labels, texts, strict=False) if are_lists else value.items()  # type: ignore[arg-type]
        return [(_text(label), _text(text)) for label, text in both if text is not None]
    listed = value if isinstance(value, list) else []
    if len(listed) > len(ascii_uppercase):
        raise SkippedRowError("more options than letters")
    lettered = zip(ascii_uppercase, listed, strict=False)
    return [(label, re.sub(rf"^\(?{label}[).:]\s*", "", _text(text))) for label, text in lettered]


def with_options(question: str, value: Any) -> str:
    """A question with its options, each in a line of its own; a text of options (MathQA's) as it is.

    Raises:
        SkippedRowError: see `options_of`.
    """
    if isinstance(value, str):
        return f"{question}\nOptions: {text}" if (text := _text(value)) else question
    return "\n".join([question, *(f"{label}) {text}" for label, text in options_of(value))])


def chosen_of(answer: Any, value: Any) -> Any:
    """An answer that is an option's place, counted from 0, as that option's label; any other as it is."""
    if not isinstance(answer, int) or isinstance(answer, bool) or not isinstance(value, list | Mapping):
        return answer
    options = options_of(value)
    is_place = 0 <= answer < len(options) and all(str(answer) not in option for option in options)
    return options[answer][0] if is_place else answer


def _text(value: Any) -> str:
    return (text_of(value, "option") or "").strip()
