"""How a call stands in an answer, and what a tool writes behind it.

- calculator, as in GSM8K's annotations (Cobbe et al. 2021, arXiv:2110.14168): the model writes `<<48/2=`, the tool
  `24>>`.
- python, as in ToRA (Gou et al. 2024, arXiv:2309.17452) and Qwen2.5-Math: the model writes a block that begins with a
  line ```` ```python ```` and ends with a line ```` ``` ````, the tool a block ```` ```output ````.

What a tool wrote is told from the text alone, so that a row that holds calls needs no mark of its own.
"""

import re
from collections.abc import Sequence

from mlxmath.config.methods import Tool as Tool
from mlxmath.tools.calculator import MOST_CHARACTERS, calculate

MOST_CALLS = {"calculator": 32, "python": 8}
"""Of an answer; what is written like a call after these is text."""
_EXPRESSION = rf"<<([^<>=\n]{{1,{MOST_CHARACTERS}}})="
_PROGRAM = r"(?:\A|(?<=\n))```python\n((?:(?!\n```).)*)\n```"
_AT_END = {"calculator": re.compile(rf"{_EXPRESSION}\Z"), "python": re.compile(rf"{_PROGRAM}\n?\Z", re.DOTALL)}
_WHOLE = {
    "calculator": re.compile(rf"{_EXPRESSION}([^<>\n]{{0,{MOST_CHARACTERS}}}>>)"),
    "python": re.compile(rf"{_PROGRAM}(\n```output\n.*?\n```\n?)", re.DOTALL),
}
_BEGINS = {"calculator": "<<", "python": "```python\n"}
ENDS = {"calculator": ("=",), "python": ("```", "```\n")}
"""What a text ends in where a call ends."""


def call_at_end(tool: Tool, text: str) -> str | None:
    """The expression or program of the call that ends a text; None where none does."""
    if not text.endswith(ENDS[tool]) or (start := text.rfind(_BEGINS[tool])) < 0:
        return None
    found = _AT_END[tool].search(text, start)
    return found[1] if found else None


def behind(tool: Tool, text: str, result: str) -> str:
    """What a tool writes behind a text that ends in a call."""
    if tool == "calculator":
        return f"{result}>>"
    line = "" if text.endswith("\n") else "\n"
    return f"{line}```output\n{result}\n```\n"


def by_tool(tool: Tool, text: str) -> list[tuple[int, int]]:
    """The parts [start, end) of a whole answer that the tool wrote, in order.

    A mark whose expression the calculator does not take is the model's own.
    """
    found = _WHOLE[tool].finditer(text)
    return [one.span(2) for one in found if tool == "python" or calculate(one[1]) is not None]


def parts(tool: Tool, text: str) -> Sequence[tuple[str, bool]]:
    """An answer in parts, each with whether the tool wrote it; together they are the text."""
    made, last = list[tuple[str, bool]](), 0
    for start, end in by_tool(tool, text):
        made += [(text[last:start], False), (text[start:end], True)]
        last = end
    return [part for part in (*made, (text[last:], False)) if part[0]]
