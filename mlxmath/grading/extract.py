"""Finds the final answer in a response, in layers from the most explicit sign to the weakest."""

import re
from dataclasses import dataclass
from typing import Literal

from mlxmath.grading.amounts import MATH, first_sentence, is_answer, pick_last
from mlxmath.grading.boxes import behind_empty_box, last_box
from mlxmath.grading.normal import MAX_CHARACTERS, clean
from mlxmath.grading.quantity import parse_quantity
from mlxmath.grading.statements import final_answer_line, judgement, stated_answer, without_denied, without_hope

Rule = Literal["####", "boxed", "answer is", "whole", "therefore", "last number"]
"""Which layer found the answer, from the surest to the weakest."""

_LONGEST_BARE_GOLD = 250
"""A gold text above this many characters is a solution, not an answer by itself."""

_STOP = re.compile(r"<\|(?:im_end|im_start|endoftext|eot_id|end_of_text|end|user)\|>|</s>|<eos>|<end_of_turn>")
_HASHES = re.compile(r"^[ \t>*]*####(?!#)[ \t]*(.*)$", re.MULTILINE)
_THEREFORE = re.compile(
    r"(?:^|(?<=[.!?:\n*] )|(?<=[\n*]))\W{0,3}(?:therefore|thus|hence|so|in conclusion|altogether|in total)\b",
    re.IGNORECASE,
)


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
    if tagged := _tagged(response):
        return tagged
    if tagged := _hashes(response):
        return tagged
    if (rest := behind_empty_box(response)) is not None:
        return extract(rest)
    for layer in (_boxed, _answer_line, _whole, _therefore, _last, _judgement):
        found = layer(response)
        if found:
            return found
    return None


def _tagged(response: str) -> Extracted | None:
    """The answer inside the last `<answer>` tag."""
    start = response.rfind("<answer>")
    inside = response[start + len("<answer>") :].partition("</answer>")[0].strip() if start >= 0 else ""
    if not inside:
        return None
    found = extract(inside.replace("<answer>", " "))
    if found and found.rule in ("####", "boxed"):
        return found
    text = found.text if found else inside
    return Extracted(text, "answer is") if len(text) <= MAX_CHARACTERS else None


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
            box = last_box(text)
            return Extracted(box[0] if box else without_hope(text), "####")
    return None


def _states_answer(text: str) -> bool:
    r"""A number with or without a unit, or one formula: not a heading such as "Step 2: add" or "2. Find the sum"."""
    plain = clean(text).rstrip(" .")
    if parse_quantity(plain.replace("\\$", "").replace("$", "").strip()):
        return True
    match = MATH.fullmatch(plain)
    return bool(match) or bool(re.fullmatch(r"\(?[A-Z]\)?", plain)) or plain.startswith("\\boxed")


def _boxed(response: str) -> Extracted | None:
    box = last_box(response)
    if not box:
        return None
    text, end = box
    if final := final_answer_line(response[end:]):
        return Extracted(final, "answer is")
    return Extracted(text, "boxed")


def _answer_line(response: str) -> Extracted | None:
    text = stated_answer(response)
    return Extracted(text, "answer is") if text else None


def _whole(response: str) -> Extracted | None:
    """A response that is one short line without a sentence: an answer by itself."""
    text = response.strip()
    if "\n" in text or len(text) > 200 or not re.search(r"\w", text.replace("\\boxed", "")):
        return None
    return Extracted(text, "whole") if is_answer(text) else None


def _therefore(response: str) -> Extracted | None:
    lines = [line for line in without_denied(response).split("\n") if line.strip()][-2:]
    tail = "\n".join(lines)
    matches = list(_THEREFORE.finditer(tail))
    if not matches:
        return None
    sentence = first_sentence(tail[matches[-1].end() :])
    text = pick_last(sentence)
    return Extracted(text, "therefore") if text else None


def _last(response: str) -> Extracted | None:
    text = pick_last(without_denied(response))
    return Extracted(text, "last number") if text else None


def _judgement(response: str) -> Extracted | None:
    text = judgement(response)
    return Extracted(text, "answer is") if text else None
