"""A model's text as a terminal may show it: formulas as plain Unicode, and nothing that steers the terminal."""

import re

from mlxmath.evaluation.latex import LONGEST, MATH
from mlxmath.runtime.console import harmless
from mlxmath.serving.plain_math import to_text

_OPENS = re.compile(r"(?<!\\)\$\$?|\\\[|\\\(|\\begin\{|\\boxed\{")
_MAY_OPEN = re.compile(r"\\[a-z]{0,5}\Z")
_MONEY = re.compile(r"\$\d[\d,.]*\s+[a-z]{2}", re.IGNORECASE)
"""A sum before a word: no formula begins there."""


class Readable:
    """Text that comes in pieces, as it is shown: the same however it is cut into pieces.

    A formula is held back until it is whole.

    Args:
        formulas: show formulas as text (False: as the model writes them).
    """

    def __init__(self, *, formulas: bool) -> None:
        self._formulas = formulas
        self._waiting = ""

    def feed(self, piece: str) -> str:
        """What can be shown after a further piece."""
        self._waiting += piece
        return self._take(last=False)

    def finish(self) -> str:
        """The rest."""
        return self._take(last=True)

    def _take(self, *, last: bool) -> str:
        if not self._formulas:
            shown, self._waiting = self._waiting, ""
            return harmless(shown)
        text = ""
        while opening := _OPENS.search(self._waiting):
            text += _outside(self._waiting[: opening.start()])
            self._waiting = self._waiting[opening.start() :]
            found = MATH.match(self._waiting)
            is_none = _is_none(found[0] if found else self._waiting)
            if not (is_none or last) and (found is None or found.end() == len(self._waiting)):
                return harmless(text)  # it goes on, or a digit behind it makes it money
            source = opening[0] if is_none or found is None else found[0]
            text += source if is_none or found is None else _formula(found)
            self._waiting = self._waiting[len(source) :]
        cut = len(self._waiting)
        if not last and (partial := _MAY_OPEN.search(self._waiting)):
            cut = partial.start()
        text += _outside(self._waiting[:cut])
        self._waiting = self._waiting[cut:]
        return harmless(text)


def _outside(text: str) -> str:
    return text.replace("\\$", "$")


def _is_none(text: str) -> bool:
    """Whether what begins as a formula can be none, whatever follows."""
    if len(text) > LONGEST or "\n\n" in text:
        return True
    if not text.startswith("$") or text.startswith("$$"):
        return False
    inside = text[1:]
    closing = inside.find("$")
    is_open = closing < 0 or closing == len(inside) - 1
    return bool(
        inside[:1].isspace()
        or "\n" in (inside if closing < 0 else inside[:closing])
        or _MONEY.match(text)
        or (not is_open and not MATH.match(text))
    )


def _formula(found: re.Match[str]) -> str:
    """A formula as text; one that cannot be read as its source."""
    source = next(part for part in found.groupdict().values() if part is not None)
    return to_text(source) or found[0]
