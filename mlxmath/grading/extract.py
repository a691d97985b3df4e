"""Finds the final answer in a response, in layers from the most explicit sign to the weakest."""

import re
from dataclasses import dataclass

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?")
_HASHES = re.compile(r"####\s*(.+)")
_SENTENCE = re.compile(r"(?:final answer|the answer|answer)\s*(?:is|:|=)\s*(.+)", re.IGNORECASE)


@dataclass(frozen=True)
class Extracted:
    """An answer as it stands in the text, and which rule found it."""

    text: str
    rule: str


def extract(response: str) -> Extracted | None:
    r"""The final answer: after `####`, in the last `\boxed{}`, after "answer is", or the last number."""
    if hashes := _HASHES.findall(response):
        return Extracted(_number_or_text(hashes[-1]), "####")
    if (boxed := _last_boxed(response)) is not None:
        return Extracted(boxed.strip(), "boxed")
    if sentences := _SENTENCE.findall(response):
        return Extracted(_number_or_text(sentences[-1]), "answer is")
    if numbers := _NUMBER.findall(response):
        return Extracted(numbers[-1], "last number")
    return None


def _number_or_text(text: str) -> str:
    found = _NUMBER.search(text)
    return found[0] if found else text.strip().rstrip(".")


def _last_boxed(response: str) -> str | None:
    start = response.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for i in range(begin, len(response)):
        depth += {"{": 1, "}": -1}.get(response[i], 0)
        if depth == 0:
            return response[begin:i]
    return None
