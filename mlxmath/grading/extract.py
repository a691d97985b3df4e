"""Finds the final answer in a response, in layers from the most explicit sign to the weakest."""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from mlxmath.grading.normal import MAX_CHARACTERS, clean
from mlxmath.grading.quantity import parse_quantity, read_unit

Rule = Literal["####", "boxed", "answer is", "whole", "therefore", "last number"]
"""Which layer found the answer, from the surest to the weakest."""

_TAIL = 6000
"""The weak layers look only so far back, in characters."""
_MAX_BOXES = 40
_LONGEST_BARE_GOLD = 250
"""A gold text above this many characters is a solution, not an answer by itself."""

_STOP = re.compile(r"<\|(?:im_end|im_start|endoftext|eot_id|end_of_text|end|user)\|>|</s>|<eos>|<end_of_turn>")
_NUMBER_TEXT = (
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d{1,3}(?: \d{3})+(?![\d.,])|\d+[.,]\d+|\d+|\.\d+)"
    r"(?:[eE][-+]?\d{1,3}(?!\w))?"
)
_NUMBER = re.compile(
    rf"(?<![\w.^_])(?:[-+](?=[$€£¥₹\d.]))?[$€£¥₹]?{_NUMBER_TEXT}(?:\s?/\s?\d+(?![\d/]))?(?:\s?\\?%|\s?percent\b)?"
)
_MATH = re.compile(
    r"\$\$(?P<a>[^$]{1,1000})\$\$|\\\[(?P<b>(?:[^\\]|\\(?!\])){1,1000})\\\]|\\\((?P<c>(?:[^\\]|\\(?!\))){1,1000})\\\)"
    r"|(?<![\\\d$])\$(?P<d>(?:\\[^\n]|[^$\\\n]){1,1000})\$"
)
_BARE_LATEX = re.compile(
    r"-?\s?\\[dtc]?frac\s?(?:\{[^{}\n]{1,80}\}\s?\{[^{}\n]{1,80}\}|\d\d)|-?\d*\s?\\sqrt\s?\{[^{}\n]{1,80}\}"
)
_CONNECTOR = re.compile(r"^[^\w.!?=<>\\]*(?:and|or)?[^\w.!?=<>\\]*$")
_CONNECTING = re.compile(r"^[^.!?\n]{0,20}\b(?:and|or)\b[^.!?\n]{0,20}$")
_GAP_NOISE = re.compile(r"\\(?:quad|qquad|text|textbf|mathrm)(?![A-Za-z])|\\[()\[\],;:! ]|[${}]")

_PLACEHOLDER = re.compile(
    r"^(?:\\[hv]?phantom\s*\{[^{}]*\}|\\(?:square|Box|ldots|dots)(?![A-Za-z])|\\[ ,;:!]|[\s?_.…~])*$"
)

_HASHES = re.compile(r"^[ \t>*]*####(?!#)[ \t]*(.*)$", re.MULTILINE)
_ANSWER_LINE = re.compile(
    r"(?:^[ \t>*_#-]*(?:A|Ans(?:wer)?|Solution|Result)[ \t]*[*_]*[ \t]*[:=][*_]*"
    r"|\b(?:final|correct)?[ \t]*(?:answers?|option|choice)\b(?![ \t]*(?:choices|options)\b)[^.\n:=$\\]{0,80}?"
    r"(?:\b(?:is|are|be|was|equals)\b|[:=])[*_]*:?[*_]*)[ \t]*"
    r"(?P<text>[^\n]*(?:\n[ \t]*\n?[ \t]*(?=\$|\\\[|\\\()[^\n]*)?)",
    re.MULTILINE | re.IGNORECASE,
)
_FINAL_ANSWER = re.compile(r"\bfinal answer is[ \t]*:?[ \t]*([^\n]+)", re.IGNORECASE)
_THEREFORE = re.compile(
    r"(?:^|(?<=[.!?:\n*] )|(?<=[\n*]))\W{0,3}(?:therefore|thus|hence|so|in conclusion|altogether|in total)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z\[(*#]|\s*$)|\n")
_HOPE = re.compile(r"\.?\s*I hope (?:it|this) (?:is correct|helps).*$", re.IGNORECASE | re.DOTALL)
_IS = re.compile(
    r"(?:\b(?:is|are|be|equals)\b(?:\s+(?:equal to|approximately|about|exactly|therefore|thus))?|[=:≈])\s*",
    re.IGNORECASE,
)
_LETTER = re.compile(r"^\**\(?([A-Z])\)?\**(?=[\s.,:)*]|$)")


@dataclass(frozen=True)
class Extracted:
    """An answer as it stands in the text, and which rule found it."""

    text: str
    rule: Rule


def after_thinking(response: str) -> str | None:
    """What follows the last `</think>`; None if a `<think>` is left open."""
    end = response.rfind("</think>")
    rest = response if end < 0 else response[end + len("</think>") :]
    return None if "<think>" in rest else rest


def extract(response: str) -> Extracted | None:
    r"""The final answer of a response without its thinking, None if there is none.

    Layers: after `####`; the last `\boxed{}`; a line such as `A: …`, "the answer is …"; a response that is nothing but
    an answer; the last "Therefore …" sentence; the last number or formula.
    """
    if stop := _STOP.search(response, 1):
        response = response[: stop.start()]
    response = response.rstrip()
    for layer in (_hashes, _boxed, _answer_line, _whole, _therefore, _last):
        found = layer(response)
        if found:
            return found
    return None


def reference(gold: str) -> str:
    r"""The answer that a gold text states: after `####` or in its last `\boxed{}`; of a solution the final answer."""
    found = _hashes(gold) or _boxed(gold) or (extract(gold) if len(gold) > _LONGEST_BARE_GOLD else None)
    return found.text if found else gold.strip()


def _hashes(response: str) -> Extracted | None:
    """The last `####` line that states an answer; other such lines are markdown headings."""
    if "####" not in response:
        return None
    lines = list(_HASHES.finditer(response))
    for match in reversed(lines[-50:]):
        text = match[1].strip().strip("*").strip()
        is_end = not response[match.end() :].strip()
        if text and len(text) <= MAX_CHARACTERS and (is_end or _states_answer(text)):
            found = _inner_box(text) or _HOPE.sub("", text)
            return Extracted(found, "####")
    return None


def _states_answer(text: str) -> bool:
    r"""A number with or without a unit, or one formula: not a heading such as "Step 2: add" or "2. Find the sum"."""
    plain = clean(text).rstrip(" .")
    if parse_quantity(plain.replace("\\$", "").replace("$", "").strip()):
        return True
    match = _MATH.fullmatch(plain)
    return bool(match) or bool(re.fullmatch(r"\(?[A-Z]\)?", plain)) or plain.startswith("\\boxed")


def _boxed(response: str) -> Extracted | None:
    """The last box; boxes joined by commas, "and" or "or" are one list."""
    boxes = _boxes(response)
    if not boxes:
        return None
    texts = [boxes[-1][2]]
    for (_, end, text), (start, _, _) in zip(reversed(boxes[:-1]), reversed(boxes[1:]), strict=True):
        gap = _GAP_NOISE.sub(" ", response[end:start].rstrip("\\")) if start - end <= 60 else "…"
        if not (_CONNECTOR.match(gap) or _CONNECTING.match(gap)):
            break
        texts.append(text)
    if final := _final_answer_line(response[boxes[-1][1] :]):
        return final
    unique = list(dict.fromkeys(reversed(texts)))
    return Extracted(", ".join(unique), "boxed")


def _final_answer_line(text: str) -> Extracted | None:
    """What "the final answer is" states behind the last box."""
    matches = list(_FINAL_ANSWER.finditer(text[-_TAIL:]))
    found = _pick(_HOPE.sub("", matches[-1][1])) if matches else None
    return Extracted(found, "answer is") if found else None


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of the last boxes, outermost first where they are nested."""
    boxes: list[tuple[int, int, str]] = []
    limit = len(text)
    while limit > 0 and len(boxes) < _MAX_BOXES:
        start = max(text.rfind("\\boxed", 0, limit), text.rfind("\\fbox", 0, limit))
        if start < 0:
            break
        limit = start
        content_start = start + (6 if text.startswith("\\boxed", start) else 5)
        span = _braced(text, content_start)
        if span is None:
            continue
        content = text[span[0] : span[1]].strip()
        if len(content) <= MAX_CHARACTERS and not _PLACEHOLDER.match(content):
            boxes.append((start, min(span[1] + 1, len(text)), content))
    return boxes[::-1]


def _braced(text: str, start: int) -> tuple[int, int] | None:
    r"""Where the content of `{…}` lies; a brace left open ends at the line or the formula; `\boxed 5` has none."""
    while start < len(text) and text[start] == " ":
        start += 1
    if start >= len(text):
        return None
    if text[start] != "{":
        match = re.compile(r"-?[\w.,]+").match(text, start)
        return match.span() if match else None
    depth = 0
    for i in range(start, min(len(text), start + MAX_CHARACTERS + 2)):
        if text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if depth == 0:
                return start + 1, i
    end = re.compile(r"\n|\$|\\\]|\\\)").search(text, start)
    return start + 1, end.start() if end else min(len(text), start + MAX_CHARACTERS)


def _inner_box(text: str) -> str | None:
    found = _boxed(text)
    return found.text if found else None


def _answer_line(response: str) -> Extracted | None:
    matches = list(_ANSWER_LINE.finditer(response[-_TAIL:]))
    for match in reversed(matches[-20:]):
        if text := _pick(_HOPE.sub("", match["text"])):
            return Extracted(text, "answer is")
    return None


def _whole(response: str) -> Extracted | None:
    """A response that is one short line without a sentence: an answer by itself."""
    text = response.strip()
    if "\n" in text or len(text) > 200 or not re.search(r"\w", text.replace("\\boxed", "")):
        return None
    return Extracted(text, "whole") if _is_answer(text) else None


def _is_answer(text: str) -> bool:
    if parse_quantity(clean(text).replace("$", "").rstrip(". ").strip()):
        return True
    plain = re.sub(
        r"(?<=[\d)}])(?:and|or)(?=[A-Za-z(\d])|\\(?:text|mathrm|textbf|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+",
        " ",
        text,
    )
    words = [
        w
        for w in re.findall(r"[A-Za-z]{2,}", plain)
        if w.lower() not in ("and", "or", "sqrt", "pi", "sin", "cos", "tan", "ln", "log")
    ]
    return len(words) <= (0 if re.search(r"\d|\\", text) else 1)


def _therefore(response: str) -> Extracted | None:
    lines = [line for line in response[-_TAIL:].split("\n") if line.strip()][-2:]
    tail = "\n".join(lines)
    matches = list(_THEREFORE.finditer(tail))
    if not matches:
        return None
    sentence = _first_sentence(tail[matches[-1].end() :])
    text = _pick_last(sentence)
    return Extracted(text, "therefore") if text else None


def _last(response: str) -> Extracted | None:
    text = _pick_last(response[-_TAIL:])
    return Extracted(text, "last number") if text else None


def _first_sentence(text: str) -> str:
    """Up to the first full stop outside a formula that ends a sentence."""
    formulas = [match.span() for match in _MATH.finditer(text)]
    for match in _SENTENCE_END.finditer(text):
        if not any(start < match.start() < end for start, end in formulas) and not re.search(
            r"\b[ap]\.m$", text[: match.start()]
        ):
            return text[: match.start()]
    return text


def _pick(text: str) -> str | None:
    """The answer in what follows "the answer is": a formula, a number with its unit, a letter, a few words."""
    text = text.strip().strip("*_ ").strip()
    if not text:
        return None
    if (box := _inner_box(text)) is not None:
        return box
    formulas = _formulas(text)
    if formulas and formulas[0][0] == 0:
        return _joined(text, formulas)
    sentence = _first_sentence(text).strip().strip("*_\"' ").strip()
    if letter := _LETTER.match(sentence):
        return letter[1]
    if _is_answer(sentence):
        return sentence
    for match in reversed(list(_IS.finditer(sentence))):
        if any(start < match.start() < end for start, end, _ in formulas):
            continue
        rest = sentence[match.end() :].strip()
        if rest and (rest[0].isdigit() or rest[0] in "$\\-+([.£€" or _is_answer(rest)):
            return _pick(rest)
    if formulas and formulas[0][0] < len(sentence):
        number = _NUMBER.match(sentence)
        return number[0].strip() if number else _joined(text, formulas)
    if numbers := list(_NUMBER.finditer(sentence)):
        first = numbers[0]
        follows = sentence[first.end() :].strip()
        unit = read_unit(follows.split(" ")[0]) if follows else ""
        return first[0].strip() + (" " + follows.split(" ")[0] if unit else "")
    return sentence if 0 < len(sentence) <= 100 else None


def _pick_last(text: str) -> str | None:
    """The rightmost formula or number outside formulas; of an equation in words the part behind the equals sign."""
    formulas = _formulas(text)
    numbers = [m for m in _NUMBER.finditer(text) if not any(s <= m.start() < e for s, e, _ in formulas)]
    last_formula = next((f for f in reversed(formulas) if re.search(r"[\w\\]", f[2])), None)
    if last_formula and (not numbers or numbers[-1].start() < last_formula[0]):
        upto = formulas[: formulas.index(last_formula) + 1]
        return _joined_back(text, upto)
    if not numbers:
        return None
    number = numbers[-1]
    return number[0].strip()


def _formulas(text: str) -> list[tuple[int, int, str]]:
    found = [(m.start(), m.end(), next(g for g in m.groups() if g is not None).strip()) for m in _MATH.finditer(text)]
    if not found:
        found = [(m.start(), m.end(), m[0].strip()) for m in _BARE_LATEX.finditer(text)]
    return found


def _joined(text: str, formulas: list[tuple[int, int, str]]) -> str:
    """The first formula and those joined to it by commas, "and", "or"; a percent sign behind it belongs to it."""
    parts = [formulas[0][2]]
    for (_, end, _), (start, _, part) in pairwise(formulas):
        if not _CONNECTOR.match(text[end:start]):
            break
        parts.append(part)
    percent = re.match(r"\s*\\?%|\s*percent\b", text[formulas[0][1] :]) if len(parts) == 1 else None
    return ", ".join(parts) + ("%" if percent else "")


def _joined_back(text: str, formulas: list[tuple[int, int, str]]) -> str:
    """The last formula and those joined to it."""
    first = len(formulas) - 1
    while first and _CONNECTOR.match(text[formulas[first - 1][1] : formulas[first][0]]):
        first -= 1
    return _joined(text, formulas[first:])
