"""The options of multiple-choice questions: they belong to the question, and the answer may be one's place."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlxmath.data.values import text_of


class Option(NamedTuple):
    """One of the answers to choose from."""

    label: str
    text: str


def options_of(value: Any) -> tuple[Option, ...]:
    """The options: of a list of texts ("21" or "A)21"), ARC's {"label": [...], "text": [...]}, or {"A": "21", ...}.

    Raises:
        SkippedRowError: one is no text.
    """
    if isinstance(value, Mapping):
        texts, labels = value.get("text"), value.get("label")
        both = (
            zip(labels, texts, strict=False) if isinstance(texts, list) and isinstance(labels, list) else value.items()
        )
        return tuple(Option(_text(label), _text(text)) for label, text in both if text is not None)
    options = []
    for place, text in enumerate(value if isinstance(value, list) else ()):
        label = chr(ord("A") + place)
        options.append(Option(label, re.sub(rf"^\(?{label}[).:]\s*", "", _text(text))))
    return tuple(options)


def with_options(question: str, value: Any) -> str:
    """A question with its options, each in a line of its own; a text of options (MathQA's) as it is."""
    if isinstance(value, str):
        return f"{question}\nOptions: {value.strip()}" if value.strip() else question
    return "\n".join([question, *(f"{label}) {text}" for label, text in options_of(value))])


def chosen_of(answer: Any, value: Any) -> Any:
    """An answer that is an option's place, counted from 0, as that option's label; any other as it is."""
    if not isinstance(answer, int) or isinstance(answer, bool) or not isinstance(value, list | Mapping):
        return answer
    options = options_of(value)
    is_place = 0 <= answer < len(options) and all(str(answer) not in option for option in options)
    return options[answer].label if is_place else answer


def _text(value: Any) -> str:
    return (text_of(value, "option") or "").strip()
