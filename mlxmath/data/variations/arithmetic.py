"""The equations of a solution: those in calculator marks (`<<48/2=24>>`) and plain ones beside them, in exact numbers.

An expression is kept in postfix order, so that it can be evaluated again with other operands.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_TOKEN = re.compile(rf"(?P<number>{NUMBER})(?P<percent>\s*%)?|(?P<sign>[-+*/()])")
_SIGNS = str.maketrans({"×": "*", "÷": "/", "–": "-", "−": "-", "x": "*", "X": "*", "[": "(", "]": ")", "$": " "})
_MARK = re.compile(r"<<([^<>\n]*)>>")
_ARITHMETIC = r"\d.,+\-*/x×÷–−()$% "
_PLAIN = re.compile(
    rf"(?<![{_ARITHMETIC}])(?P<left>[{_ARITHMETIC}]++)=\s*\$?\s*(?P<result>{NUMBER})(?![\d,.]*\s*[-+*/x×÷(=%])"
)
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
_LONGEST = 200
"""Characters of an equation."""

Step = int | str
"""Of an expression in postfix order: the operand's number, or an operator."""


@dataclass(frozen=True)
class Equation:
    """`left = result`."""

    steps: tuple[Step, ...]
    operands: tuple[Fraction, ...]
    result: Fraction
    is_marked: bool

    def value(self, operands: Sequence[Fraction]) -> Fraction | None:
        """The left side with these operands; None where it divides by 0."""
        stack: list[Fraction] = []
        for step in self.steps:
            if isinstance(step, int):
                stack.append(operands[step])
                continue
            right, left = stack.pop(), stack.pop()
            if step == "/" and not right:
                return None
            stack.append(
                left + right if step == "+"
                else left - right if step == "-"
                else left * right if step == "*"
                else left / right
            )  # fmt: skip
        return stack[0]

    @property
    def num_terms(self) -> int:
        """How many numbers are added up, where it is nothing but a sum; else 0."""
        return len(self.operands) if set(self.steps) <= {"+", *range(len(self.operands))} else 0


def number_of(text: str) -> Fraction:
    """The value of what `NUMBER` matches."""
    return Fraction(text.replace(",", ""))


def equations_of(solution: str) -> list[Equation] | None:
    """A solution's equations in its order; None where one is not plain arithmetic, or is not true."""
    found: list[tuple[int, Equation]] = []
    for match in _MARK.finditer(solution):
        left, equals, right = match[1].rpartition("=")
        equation = _equation(left, right, is_marked=True) if equals else None
        if equation is None:
            return None
        found.append((match.start(), equation))
    bare = _MARK.sub(lambda mark: "\0" * len(mark[0]), solution)
    for match in _PLAIN.finditer(bare):
        equation = _equation(match["left"], match["result"], is_marked=False)
        if equation is not None and len(equation.operands) > 1:
            found.append((match.start(), equation))
    return [equation for _, equation in sorted(found, key=lambda pair: pair[0])]


def _equation(left: str, right: str, *, is_marked: bool) -> Equation | None:
    """None where a side is something else, or the sides differ."""
    both = _postfix(left), _postfix(right)
    if both[0] is None or both[1] is None or len(both[1][1]) != 1:
        return None
    steps, operands = both[0]
    equation = Equation(steps, operands, both[1][1][0], is_marked)
    return equation if equation.value(operands) == equation.result else None


def _postfix(text: str) -> tuple[tuple[Step, ...], tuple[Fraction, ...]] | None:
    """An expression of numbers, + - * / and brackets in postfix order (Dijkstra's shunting yard); None for others."""
    text = text.translate(_SIGNS).strip()
    steps: list[Step] = []
    operands: list[Fraction] = []
    waiting: list[str] = []
    at, may_end = 0, False
    if len(text) > _LONGEST:
        return None
    while at < len(text):
        if text[at] == " ":
            at += 1
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        at = match.end()
        if match["number"]:
            if may_end:
                return None
            steps.append(len(operands))
            operands.append(number_of(match["number"]) / (100 if match["percent"] else 1))
            may_end = True
        elif match["sign"] == "(":
            if may_end:
                waiting.append("*")
            waiting.append("(")
            may_end = False
        elif not may_end:
            return None
        elif match["sign"] == ")":
            while waiting and waiting[-1] != "(":
                steps.append(waiting.pop())
            if not waiting:
                return None
            waiting.pop()
        else:
            while waiting and waiting[-1] != "(" and _PRECEDENCE[waiting[-1]] >= _PRECEDENCE[match["sign"]]:
                steps.append(waiting.pop())
            waiting.append(match["sign"])
            may_end = False
    if not may_end or "(" in waiting:
        return None
    return (*steps, *reversed(waiting)), tuple(operands)
