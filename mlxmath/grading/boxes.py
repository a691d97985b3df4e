r"""Boxes in LaTeX: `\boxed{}` with nested braces, left open, or several that are one list."""

import re

from mlxmath.grading.normal import MAX_CHARACTERS

_MAX_BOXES = 40

CONNECTOR = re.compile(r"^[^\w.!?=<>\\]{0,40}(?:and|or)?[^\w.!?=<>\\]{0,40}$")
"""What joins two formulas to one list."""
_CONNECTING = re.compile(r"^[^.!?\n]{0,20}\b(?:and|or)\b[^.!?\n]{0,20}$")
_GAP_NOISE = re.compile(r"\\(?:quad|qquad|text|textbf|mathrm)(?![A-Za-z])|\\[()\[\],;:! ]|[${}]")
_PLACEHOLDER = re.compile(
    r"^(?:\\[hv]?phantom\s*\{[^{}]*\}|\\(?:square|Box|ldots|dots)(?![A-Za-z])|\\[ ,;:!]|[\s?_.…~])*$"
)


_EMPTY_BOX = re.compile(r"\\(?:f?boxed|fbox)\s*(?:\{\s*(?:\}|$)|$)")


def last_box(response: str) -> tuple[str, int] | None:
    """The content of the last box and where it ends; boxes joined by commas, "and" or "or" are one list."""
    boxes = _boxes(response)
    if not boxes:
        return None
    texts = [boxes[-1][2]]
    for (_, end, text), (start, _, _) in zip(reversed(boxes[:-1]), reversed(boxes[1:]), strict=True):
        gap = _GAP_NOISE.sub(" ", response[end:start].rstrip("\\")) if start - end <= 60 else "…"
        if not (CONNECTOR.match(gap) or _CONNECTING.match(gap)):
            break
        texts.append(text)
    return ", ".join(dict.fromkeys(reversed(texts))), boxes[-1][1]


def behind_empty_box(response: str) -> str | None:
    """What follows the last box if nothing is in it: an answer that was begun and not given. None if it has content."""
    start = max(response.rfind("\\boxed"), response.rfind("\\fbox"))
    match = _EMPTY_BOX.match(response, start) if start >= 0 else None
    return response[match.end() :] if match else None


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
