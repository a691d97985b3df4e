"""Whether two answers are the same, decided by exact rules; what they leave open is for `symbolic`."""

import math
import re
from fractions import Fraction
from functools import lru_cache

from mlxmath.grading.expression import Value
from mlxmath.grading.normal import MAX_CHARACTERS, normalize, squeeze
from mlxmath.grading.quantity import Quantity, parse_quantity
from mlxmath.grading.structure import Shape, is_equation, shape, split_name, union_parts

RELATIVE_TOLERANCE = Fraction(1, 10**9)
"""Between numbers of which one is a float: the noise of its computation."""
LONG_DECIMALS = 5
"""A gold with so many decimals is a computed float; an answer may be its rounding to four significant digits."""
_MAX_ITEMS = 60
_MAX_DEPTH = 4

_CHOICE_GOLD = re.compile(r"^\(?([A-Z])\)?$")
_CHOICE = re.compile(r"^(?:(?:option|choice|answer)\s+)?\(?([A-Z])(?:\)|[.:](?=\s|$)|$)", re.IGNORECASE)
_TIME = re.compile(r"^(\d{1,2})(?::(\d{2}))?(?::(\d{2}))?\s*(?:([ap])\.?\s?m\.?|o'clock)?$", re.IGNORECASE)
_WORDS = re.compile(r"^[A-Za-z][A-Za-z' -]*[A-Za-z]$")
_BASED = re.compile(r"^([0-9A-Za-z]+)_\{?(\d{1,2})\}?$")
_INFINITE = re.compile(r"^([-+]?)\s*(?:\\infty|inf(?:inity)?|oo)$")


@lru_cache(maxsize=8192)
def compare(answer: str, gold: str) -> bool | None:
    """True or False where exact rules decide whether `answer` equals `gold`, None where algebra is needed.

    Layers: the same text; numbers (separators, currency, percent, fractions, units, words); arithmetic without
    variables; choice letters; times; words; intervals, tuples, sets and lists item by item.
    """
    if answer.strip() == gold.strip():
        return bool(gold.strip())
    if max(len(answer), len(gold)) > MAX_CHARACTERS:
        return False
    return _compare(normalize(answer), normalize(gold), 0)


def _compare(answer: str, gold: str, depth: int) -> bool | None:
    if not answer or not gold:
        return False
    if squeeze(answer) == squeeze(gold):
        return True
    if depth > _MAX_DEPTH:
        return None
    decided = _scalar(answer, gold)
    if decided is not None:
        return decided
    (answer_name, answer_value), (gold_name, gold_value) = split_name(answer), split_name(gold)
    if answer_name or gold_name:
        return _compare(answer_value, gold_value, depth + 1)
    if is_equation(answer) != is_equation(gold) and _all_in_lists(answer, gold):
        return _lists(shape(answer), shape(gold), depth)
    if "\\cup" in answer and "\\cup" in gold:
        parts, gold_parts = union_parts(answer), union_parts(gold)
        return _unordered(parts, gold_parts, depth) if len(parts) == len(gold_parts) else None
    return _lists(shape(answer), shape(gold), depth)


def _all_in_lists(answer: str, gold: str) -> bool:
    return shape(answer).kind != "scalar" and shape(gold).kind != "scalar"


def _scalar(answer: str, gold: str) -> bool | None:
    """Compare as numbers, letters, times, words; None if none of these fits."""
    letter = _CHOICE_GOLD.match(gold)
    if letter and (chosen := _CHOICE.match(answer)):
        return chosen[1].upper() == letter[1]
    if (same := _infinite(answer, gold)) is not None:
        return same
    answer_number, gold_number = parse_quantity(answer), parse_quantity(gold)
    if answer_number and gold_number:
        return same_quantity(answer_number, gold_number)
    if (same := _times(answer, gold)) is not None:
        return same
    if (same := _based(answer, gold)) is not None:
        return same
    if _WORDS.match(answer) and _WORDS.match(gold):
        return _plain_words(answer) == _plain_words(gold)
    if (gold_number and _WORDS.match(answer) and len(answer) > 2) or (
        answer_number and _WORDS.match(gold) and len(gold) > 2
    ):
        return False
    return None


def _plain_words(text: str) -> str:
    return re.sub(r"^(?:the|a|an)\s+", "", text.casefold()).replace(" ", "")


def same_quantity(answer: Quantity, gold: Quantity) -> bool:
    """Same number in the same unit, as far as both units are known; 28 % is 28 and is 0.28, but 0.28 is not 28."""
    if answer.unit and gold.unit and answer.unit != gold.unit:
        return False
    if answer.percent == gold.percent or gold.value == 0:
        return _same_value(answer, gold, Fraction(1))
    if answer.percent:
        return _same_value(answer, gold, Fraction(1)) or _same_value(answer, gold, Fraction(1, 100))
    return _same_value(answer, gold, Fraction(1)) or _same_value(answer, gold, Fraction(100))


def _same_value(answer: Quantity, gold: Quantity, factor: Fraction) -> bool:
    """Exact for whole numbers and fractions; a decimal may be the rounding of a float, a fraction or a root."""
    value, reference = answer.value * factor, gold.value
    if value == reference:
        return True
    if isinstance(value, Fraction) and isinstance(reference, Fraction):
        if value.denominator == 1 and reference.denominator == 1:
            return False
        if gold.decimals is not None and gold.decimals >= LONG_DECIMALS:
            close = _close(value, reference) or _is_rounding(gold, value, 6)
            return close or _is_rounding(answer, reference, 4 if answer.decimals else 6)
        if gold.decimals is None:
            return bool(answer.decimals) and _is_rounding(answer, reference, 6)
        return answer.decimals is None and bool(gold.decimals) and _is_rounding(gold, value, 6)
    if _close(value, reference):
        return True
    if answer.decimals is not None or gold.decimals is not None:
        decimal = answer if answer.decimals is not None else gold
        return bool(decimal.decimals) and _is_rounding(decimal, reference if decimal is answer else value, 6)
    return False


def _is_rounding(decimal: Quantity, exact: Value, least_digits: int) -> bool:
    """Whether a printed decimal is `exact` rounded to its last digit, with so many significant digits or more."""
    if decimal.decimals is None or isinstance(decimal.value, float):
        return False
    digits = len(str(abs(decimal.value.numerator * 10**decimal.decimals // decimal.value.denominator)))
    half_step = Fraction(1, 2 * 10**decimal.decimals)
    return digits >= least_digits and abs(decimal.value - Fraction(exact)) <= half_step * Fraction(1001, 1000)


def _close(a: Value, b: Value) -> bool:
    if not (math.isfinite(a) and math.isfinite(b)):
        return False
    first, second = Fraction(a), Fraction(b)
    return abs(first - second) <= RELATIVE_TOLERANCE * max(abs(first), abs(second))


def _infinite(answer: str, gold: str) -> bool | None:
    a, g = _INFINITE.match(answer), _INFINITE.match(gold)
    if not a and not g:
        return None
    if a and g:
        return (a[1] == "-") == (g[1] == "-")
    return False if parse_quantity(gold if a else answer) else None


def _times(answer: str, gold: str) -> bool | None:
    """Clock times: `4:30 p.m.` is `4:30 PM`, `16:30` and `4:30`."""
    a, g = _TIME.match(answer), _TIME.match(gold)
    if not a or not g or not (a[2] or a[4]) or not (g[2] or g[4]):
        return None
    hours = []
    for match in (a, g):
        hour = int(match[1])
        if match[4]:
            hour = hour % 12 + (12 if match[4].lower() == "p" else 0)
        hours.append(hour)
    if (int(a[2] or 0), int(a[3] or 0)) != (int(g[2] or 0), int(g[3] or 0)):
        return False
    if bool(a[4]) != bool(g[4]):
        return int(a[1]) == int(g[1]) or hours[0] == hours[1]
    return hours[0] == hours[1]


def _based(answer: str, gold: str) -> bool | None:
    r"""`1011_2` and `1011_{2}`; the base may be left out of the answer."""
    g = _BASED.match(squeeze(gold))
    if not g or not g[1].isalnum():
        return None
    a = _BASED.match(squeeze(answer))
    if a:
        return _value_in_base(*a.groups()) == _value_in_base(*g.groups())
    return squeeze(answer) == g[1] if re.fullmatch(r"[0-9A-Za-z]+", squeeze(answer)) else None


def _value_in_base(digits: str, base: str) -> int | str:
    """The number, or its own spelling where the digits do not fit the base."""
    try:
        return int(digits, int(base))
    except ValueError:
        return f"{digits}_{base}"


def _lists(answer: Shape, gold: Shape, depth: int) -> bool | None:
    """Item by item: tuples and intervals in order and with their brackets, sets and lists in any order."""
    if answer.kind == gold.kind == "scalar":
        return None
    if max(len(answer.items), len(gold.items)) > _MAX_ITEMS:
        return None
    if answer.kind == gold.kind == "tuple":
        if len(answer.items) != len(gold.items):
            return False
        if answer.brackets != gold.brackets and not _are_vectors(answer, gold):
            return False
        return _ordered(answer.items, gold.items, depth)
    kinds = {answer.kind, gold.kind}
    if kinds == {"tuple", "list"}:
        bare = answer if answer.kind == "list" else gold
        if all(shape(item).kind == "scalar" for item in bare.items) and len(answer.items) == len(gold.items):
            return _ordered(answer.items, gold.items, depth)
        return None
    if "tuple" not in kinds:
        return _unordered(answer.items, gold.items, depth)
    if kinds == {"set", "tuple"}:
        return False
    return None


def _are_vectors(answer: Shape, gold: Shape) -> bool:
    """More than two items can be no interval: round or square brackets, both mean a tuple."""
    return len(answer.items) > 2 and {answer.brackets, gold.brackets} == {"()", "[]"}


def _ordered(answers: tuple[str, ...], golds: tuple[str, ...], depth: int) -> bool | None:
    open_question = False
    for answer, gold in zip(answers, golds, strict=True):
        same = _compare(answer, gold, depth + 1)
        if same is False:
            return False
        open_question |= same is None
    return None if open_question else True


def _unordered(answers: "tuple[str, ...] | list[str]", golds: "tuple[str, ...] | list[str]", depth: int) -> bool | None:
    """Every gold item has its answer and the other way round; equal items count once, named ones go by their names."""
    named_answers, named_golds = [split_name(a) for a in answers], [split_name(g) for g in golds]
    answer_names, gold_names = [n for n, _ in named_answers if n], [n for n, _ in named_golds if n]
    if (
        len(answer_names) == len(answers)
        and len(set(answer_names)) == len(answer_names)
        and sorted(map(squeeze, answer_names)) == sorted(map(squeeze, gold_names))
    ):
        by_name = {squeeze(name): value for name, value in named_golds}
        values = tuple(by_name[squeeze(name)] for name, _ in named_answers)
        return _ordered(tuple(value for _, value in named_answers), values, depth)
    table = [[_compare(a, g, depth + 1) for _, g in named_golds] for _, a in named_answers]
    if all(True in row for row in table) and all(True in column for column in zip(*table, strict=True)):
        return True
    impossible = any(all(cell is False for cell in row) for row in table) or any(
        all(cell is False for cell in column) for column in zip(*table, strict=True)
    )
    has_choice = any("\\pm" in item for item in (*answers, *golds))
    return None if has_choice or not impossible else False
