r"""The gold answer of a problem: one rule for reinforcement learning, distillation, evaluation and templates.

A gold answer is *stated*: by the dataset's answer column, or by the solution after `####`, in its last `\boxed{}`, in a
line such as "A: …" or "The answer is …", or as a solution that is nothing but an answer. What merely stands last in a
solution is none: "all real numbers x > 3" is not 3, and a reward or a score against it would be noise.
"""

import re

from mlxmath.data.problem import Problem
from mlxmath.grading.extract import Rule, after_thinking, extract

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
    """The answer that the dataset states for a problem; None if it states none."""
    if problem.answer and (answer := problem.answer.strip()):
        return answer_of(answer)
    return stated(problem.solution) if problem.solution else None


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
