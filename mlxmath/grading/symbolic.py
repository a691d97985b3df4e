"""What a worker process runs: math_verify on one pair of answers. Only `workers` starts it; see there."""

import re
from collections.abc import Mapping
from typing import Any

from mlxmath.grading.normal import replaced, rules
from mlxmath.grading.units import read_unit
from mlxmath.runtime.bounded import serve

_DIGITS = 30
_EXACT = 0.0
"""Relative difference up to which two values without decimals are the same: none, to as many digits as sympy tries."""
_PRINTED = 1e-12
"""The same of a decimal and an exact gold: the last bits of a float that was printed in full, no rounding."""
_ROUNDED = 1e-6
"""The same where the gold is a decimal."""
_DECIMAL = re.compile(r"\d\.\d|\.\d")
_POINTS = (
    ((37, 29), (61, 23), (83, 31), (97, 41)), ((271, 19), (149, 7), (353, 13), (491, 17)),
    ((5, 13), (3, 11), (7, 17), (11, 29)), ((13, 3), (37, 9), (101, 7), (53, 6)),
    ((-17, 23), (43, 11), (-29, 7), (8, 5)), ((19, 6), (-31, 9), (23, 8), (-47, 5)),
    ((-59, 7), (-41, 6), (-67, 9), (-73, 8)),
)  # fmt: skip
"""Values of the variables in order of their names, as numerators and denominators; far from anything special."""
_LEAST_POINTS = 2

# math_verify takes a letter or two at the end for a unit and drops them: it reads `2ab` as 2.
_LAST_LETTERS = re.compile(r"(?<=[\d}\s])(?<![\\A-Za-z])([A-Za-z]{1,3})$")

_LONE_NUMBER = re.compile(
    r"^(?:[^\d\\^_+*/!]|\\text\s*\{[^\d{}]*\}|\\[ $%])*-?(?:\d[\d,]*\.?\d*|\.\d+)(?:[^\d\\^_+*/!=<>-]|\\[ $%])*$"
)
"""One number among words and punctuation."""
_DEGREE_SIGN = r"(?:\s*\^\s*\{?\s*\\circ(?![A-Za-z])\s*\}?|\s*°)"
_DEGREES = re.compile(rf"(\d+(?:\.\d+)?){_DEGREE_SIGN}")
_FUNCTION_OF_ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])|e\^\{i")
_MISREAD = rules(
    (
        r"(?:\\(?:operatorname|text|mathrm)\s*\{\s*cis\s*\}|\\?\bcis(?![A-Za-z]))\s*"
        r"(?P<angle>\\left\([^()]*\\right\)|\([^()]*\)|\{[^{}]*\}|-?(?:[\d.]+\s*)?"
        rf"(?:\\[dt]?frac\s*\{{[^{{}}]*\}}\s*\{{[^{{}}]*\}}|\\pi(?:/\d+)?|\\theta)?)(?P<degrees>{_DEGREE_SIGN})?",
        r"e^{i(\g<angle>\g<degrees>)}",
    ),
    (r"\\gamma(?![A-Za-z])|\\Gamma(?![A-Za-z(])", r"\\omicron "),
    (r"(?<![\\A-Za-z])([eE])(?=_)", r"\\hat{\1}"),
    (r"(?<![\\A-Za-z])([A-Za-z])'{2}", r"\\ddot{\1}"),
    (r"(?<![\\A-Za-z])([A-Za-z])'", r"\\dot{\1}"),
    (r"(?<![\\A-Za-z])(sin|cos|tan|cot|sec|csc|ln|log|exp)(?![A-Za-z])", r"\\\1"),
    (r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
)


def equivalent(answer: str, gold: str) -> bool:
    """Whether algebra takes `answer` for `gold`; bare LaTeX gets the delimiters that math_verify's parser needs.

    Expressions are compared by their values; sets, tuples and equations as math_verify does.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    latex, plain = LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()
    # Of what it cannot read as LaTeX, math_verify takes the last number for the whole: only if that is all there is.
    golds, answers = (
        parse(wrapped(legible(text)), (latex, plain) if _LONE_NUMBER.match(text) else (latex,), parsing_timeout=0)
        for text in (gold, answer)
    )
    if not golds or not answers:
        return False
    tolerance = _ROUNDED if _DECIMAL.search(gold) else _PRINTED if _DECIMAL.search(answer) else _EXACT
    same = same_values(answers[0], golds[0], tolerance)
    if same or (same is False and "%" not in answer + gold):
        return same
    return verify(golds, answers, allow_set_relation_comp=True, timeout_seconds=0)


def same_values(answer: Any, gold: Any, tolerance: float) -> bool | None:
    """Compare two sympy expressions by their values; None where one is no expression or too few points decide.

    Constants are compared as complex numbers. Expressions with variables are compared to 30 digits at points of both
    signs, as real functions where both are defined: 2 ln x is ln x^2, but x is not |x|. A letter i is the imaginary
    unit.
    """
    import sympy

    if not all(isinstance(side, sympy.Expr) and not side.is_infinite for side in (answer, gold)):
        return None
    answer, gold = (side.subs({s: sympy.I for s in side.free_symbols if s.name == "i"}) for side in (answer, gold))
    symbols = sorted(answer.free_symbols | gold.free_symbols, key=str)
    is_one_absolute = answer.has(sympy.Abs) != gold.has(sympy.Abs)
    is_complex = not symbols or answer.has(sympy.I) or gold.has(sympy.I)
    num_compared = 0
    for point in _POINTS if symbols else _POINTS[:1]:
        at = {symbol: sympy.Rational(*point[i % len(point)]) + i // len(point) for i, symbol in enumerate(symbols)}
        if not is_complex and not all(are_real := [_is_real(answer, at), _is_real(gold, at)]):
            if is_one_absolute and any(are_real):
                return None  # ln x is ln |x| only where both are defined
            continue
        first, second = (side.subs(at).evalf(_DIGITS) for side in (answer, gold))
        if not (first.is_number and second.is_number and first.is_finite and second.is_finite):
            continue
        if tolerance and abs(first - second) > tolerance * max(abs(first), abs(second)):
            return False
        if not tolerance and not _is_zero((answer - gold).subs(at).evalf(_DIGITS)):
            return False
        num_compared += 1
    return True if num_compared >= (_LEAST_POINTS if symbols else 1) else None


def _is_zero(difference: Any) -> bool:
    """Whether nothing is left of a difference: sympy computes on until a digit is certain, and marks where none is."""
    return all(part == 0 or getattr(part, "_prec", 0) == 1 for part in difference.as_real_imag())


def _is_real(expression: Any, at: Mapping[Any, Any]) -> bool:
    """Whether a real function has a value at a point: no root or logarithm of a negative number anywhere in it."""
    import sympy

    for part in sympy.preorder_traversal(expression):
        is_power = isinstance(part, sympy.Pow) and not part.exp.is_integer
        if not is_power and not isinstance(part, sympy.log):
            continue
        inner = part.args[0].subs(at).evalf(_DIGITS)
        if not (inner.is_number and inner.is_positive):
            return False
    return True


def legible(text: str) -> str:
    r"""Notation that math_verify misreads in one that it reads.

    It takes \gamma for a function or Euler's constant, E_0 for nothing, y' for y, sin x for a product, degrees for
    radians, and knows no \operatorname{cis}.
    """
    text = replaced(text, _MISREAD)
    return _DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", text) if _FUNCTION_OF_ANGLE.search(text) else text


def wrapped(text: str) -> str:
    """An answer as one formula between dollar signs, unless it has delimiters of its own."""
    if "$" in text or "\\(" in text or "\\[" in text:
        return text
    return "$" + _LAST_LETTERS.sub(_as_variables, " ".join(text.split())) + "$"


def _as_variables(letters: re.Match[str]) -> str:
    is_unit = len(letters[1]) > 1 and read_unit(letters[1])
    return letters[1] if is_unit else "".join(x if x in "ie" else f"{{{x}}}" for x in letters[1])


def _compared(answers: list[str]) -> bool | None:
    """Whether two answers are the same; None where that cannot be told."""
    try:
        return equivalent(*answers)
    except (RecursionError, MemoryError):
        return None  # not decided, and so not remembered
    except Exception:  # sympy raises of all kinds; the pair is then not shown to be equal
        return False


if __name__ == "__main__":
    serve(_compared, ["x+1", "1+x"])
