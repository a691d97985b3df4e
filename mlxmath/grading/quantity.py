"""A number as people write it (separators, currency, percent, fractions, words, units), and when two are the same."""

import contextlib
import math
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from mlxmath.grading.expression import NotArithmetic, Value, evaluate
from mlxmath.grading.normal import as_count
from mlxmath.grading.units import UNIT_WORD, is_left_out_of, ratio_of_units, read_unit

_SIGNED = r"(?P<sign>[-+]?)\s*"
_CURRENCY = r"(?:US\s?|C|A)?[$€£¥₹₽₩₪¢]|USD|EUR|GBP|Rs\.?"
_NUMBER = re.compile(
    rf"^(?P<before>{_CURRENCY})?\s*{_SIGNED}(?P<currency>{_CURRENCY})?\s*"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3})+(?:[.,]\d+)?|\d{1,3}(?:_\d{3})+(?!\d)"
    r"|[1-9]\d{0,2}(?:(?:\.\d{3})+,\d{1,2}|(?:\.\d{3}){2,})(?![.,\d])|\d{1,2}(?:,\d{2})*,0\d(?:,\d{2})*,\d{3}(?![,\d])|\d+(?:[.,]\d*)?|\.\d+)"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3})|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*\{?\s*(?P<power>[-+]?\s*\d{1,3})\s*\}?(?![\d.]))?"
    r"(?:\s*\^?\s*\{?\s*(?:st|nd|rd|th)\b\s*\}?)?\s*(?P<rest>.*)$",  # an ordinal counts as its number
    re.DOTALL,
)
_PERCENT = re.compile(r"^\s*(?:%|(?:percent(?:age)?|pct|per cent)\b\.?)\s*", re.IGNORECASE)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12, "hundred": 100}
_SCALE = re.compile(rf"^({'|'.join(_SCALES)})s?\b\s*", re.IGNORECASE)

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: i for i, word in enumerate(_ONES.split())} | {w: 10 * i for i, w in enumerate(_TENS.split(), 2)}
_PARTS_FROM_THIRD = (
    "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth"
    " seventeenth eighteenth nineteenth twentieth"
)
_PARTS = {"half": 2, "halves": 2, "quarter": 4, "thirtieth": 30, "fiftieth": 50, "hundredth": 100, "thousandth": 1000}
_PARTS |= {name: number for number, name in enumerate(_PARTS_FROM_THIRD.split(), 3)}
_PARTS |= {f"{name}s": number for name, number in _PARTS.items()}
_COUNT = re.compile(r"^(?P<kind>[CP])\s*\(\s*(?P<n>\d+)\s*,\s*(?P<k>\d+)\s*\)$")
_REPEATING = re.compile(
    r"^(?P<sign>[-+]?)\s*(?P<whole>\d{0,12})\.(?P<first>\d{0,12}?)\s*\{?\s*"
    r"(?:\\(?:overline|bar|widebar|overbar|overparen|wideparen|widehat|hat)\s*(?:\{\s*(?P<line>\d{1,12})\s*\}|(?P<one>\d)(?!\d))"
    r"|\\dot\s*\{?\s*(?P<dot>\d)\s*\}?(?:(?P<between>\d{0,10})\\dot\s*\{?\s*(?P<last>\d)\s*\}?)?"
    r"|\((?P<round>\d{1,12})\)|(?P<marked>(?:\d[\u0304\u0305]){1,12}|\d\u0307(?:\d{0,10}\d\u0307)?)"
    r"|(?P<shown>\d{1,6})(?P=shown){1,20}…|(?P<word>\d)(?P=word)*\s*\(?(?:repeating|recurring)\)?)\s*\}?(?P<rest>.*)$"
)
_PERIODS = ("line", "one", "dot", "between", "last", "round", "marked", "shown", "word")
_MAY_REPEAT = re.compile(r"[\\…(\u0304\u0305\u0307]|repeating|recurring")
_MIXED = re.compile(
    r"^(?P<sign>-?)(?P<whole>\d{1,3}(?:,\d{3}){1,2}|\d{1,9})(?:\s+and\s+|-(?=\d+/\d+ [A-Za-z]))"
    r"(?:(?P<top>\d{1,4})/(?P<below>\d{1,4})|\\frac\{(?P<t>\d{1,4})\}\{(?P<b>\d{1,4})\}"
    r"|(?P<part>a half|a quarter|one half))"
    r"(?![\d/])(?P<rest>.*)$"
)
_SUMMAND = re.compile(rf"(?P<number>\d[\d,]*(?:\.\d+)?)\s?(?P<unit>{UNIT_WORD})(?:\s*,)?(?:\s+and)?\s*")
_TRAILING_UNIT = re.compile(r"(?<=[\d)}! ])\s*((?:%|percent|[A-Za-z]{2,}|[mghsL]\b)[A-Za-z°/ .^\d{}%-]*)$")
RELATIVE_TOLERANCE = Fraction(1, 10**9)
"""Between numbers of which one is a float: the noise of its computation."""
_LEAST_DIGITS = 3
"""A decimal gold with so many significant digits may be the rounding of a fraction."""
_LEAST_DIGITS_OF_A_ROOT = 6
"""The same of a root, of π, of a function's value."""
LONG_DECIMALS = 5
"""A gold with so many decimals is a computed float; an answer may be its rounding to four significant digits."""
_NOISE_DIGITS = 15
_NOISE_DECIMALS = 9
_NOISE_AT_ZERO = Fraction(1, 10**12)


@dataclass(frozen=True)
class Quantity:
    """A number and what stood around it."""

    value: Value
    percent: bool = False
    decimals: int | None = None
    """Digits behind the point where it was written as a decimal number; None for fractions, words and expressions."""
    unit: str = ""
    """Canonical name of a known unit; empty for none or an unknown one."""
    digits: int | None = None
    """Significant digits of a decimal number."""


@lru_cache(maxsize=4096)
def parse_quantity(text: str) -> Quantity | None:
    """Read normalized text as a number with an optional percent sign or unit; None if it is anything else."""
    if not text or len(text) > 300:
        return None
    text = _COUNT.sub(as_count, " ".join(text.split()))
    layers = (_repeating, _decimal, _mixed, _sum_of_units, _fraction_or_expression, _words)
    return next(filter(None, (layer(text) for layer in layers)), None)


def _decimal(text: str) -> Quantity | None:
    match = _NUMBER.match(text)
    if not match or len(match["digits"]) > 60:
        return None
    whole, point, decimals = _split_decimals(match["digits"])
    if point and not decimals and match["rest"][:1].isdigit():
        return None
    exponent = (match["exponent"] or match["power"] or "").replace(" ", "")
    value = Fraction(f"{match['sign']}{whole or 0}.{decimals or 0}e{exponent or 0}")
    num_digits = len((whole + decimals).lstrip("0"))
    found = _with_rest(value, match["rest"].removeprefix("…"), None if exponent else len(decimals), num_digits)
    currency = (match["before"] or match["currency"] or "").rstrip(".")
    if found and currency and not found.unit:
        return replace(found, unit=read_unit(currency if currency.isalpha() else currency[-1]) or "")
    return found


def _split_decimals(digits: str) -> tuple[str, str, str]:
    """Whole part, separator, decimals. A comma separates thousands where all groups have three digits.

    So do points before a comma (1.234,56) or several (1.000.000), underscores (1_000) and commas that cut off a group
    with a zero (10,00,000).
    """
    digits = (
        digits.replace(" ", "") if not re.fullmatch(r"[1-9]\d{0,2}(?: \d{3})+", digits) else digits.replace(" ", ",")
    )
    if re.search(r"\..*,", digits):
        return digits.replace(".", "").partition(",")
    if digits.count(".") > 1 or "_" in digits or ("." not in digits and digits.count(",") > 1):
        return re.sub(r"[.,_]", "", digits), "", ""
    if "." in digits or re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+", digits):
        return digits.replace(",", "").partition(".")
    return digits.partition(",")


def _repeating(text: str) -> Quantity | None:
    r"""`0.1\overline{6}`, `0.\dot{1}8\dot{5}`, `0.1(6)`, `0.333...`: a decimal whose last digits go on for ever."""
    match = _REPEATING.match(text) if _MAY_REPEAT.search(text) else None
    if not match:
        return None
    first, period = match["first"], re.sub(r"\D", "", "".join(match[name] or "" for name in _PERIODS))
    tail = Fraction(int(period), 10 ** len(period) - 1)
    value = int(match["whole"] or 0) + (int(first or 0) + tail) / 10 ** len(first)
    return _with_rest(-value if match["sign"] == "-" else value, match["rest"], None)


def _mixed(text: str) -> Quantity | None:
    """`3 and 1/2`, `3 and a half`, `1-1/2 cups`."""
    match = _MIXED.match(text)
    if not match:
        return None
    below = _PARTS[match["part"].split()[1]] if match["part"] else int(match["below"] or match["b"])
    part = Fraction(int(match["top"] or match["t"] or 1), below or 1)
    value = int(match["whole"].replace(",", "")) + part
    return _with_rest(-value if match["sign"] else value, match["rest"], None) if 0 < part < 1 else None


def _with_rest(value: Value, rest: str, decimals: int | None, digits: int | None = None) -> Quantity | None:
    """The number with what follows it: percent, a scale word, a unit; None if that is no unit."""
    rest = rest.strip()
    if rest.startswith("(") and rest.endswith(")"):
        rest = rest[1:-1].strip()
    if scale := _SCALE.match(rest):
        value, decimals, rest = value * _SCALES[scale[1].lower()], None, rest[scale.end() :]
    without_percent = _PERCENT.sub("", rest)
    unit = read_unit(without_percent)
    return None if unit is None else Quantity(value, without_percent != rest, decimals, unit, digits)


def _sum_of_units(text: str) -> Quantity | None:
    """`2 hours and 30 minutes`, `5 ft 6 in`: in the last unit, money in the first. Behind hours m is minutes."""
    total, last, position = Fraction(0), "", 0
    while position < len(text):
        match = _SUMMAND.match(text, position)
        name = match["unit"].strip() if match else ""
        unit = read_unit("min" if name == "m" and last in ("h", "day") else name)
        ratio = ratio_of_units(last, unit) if last and unit else Fraction(1)
        if not match or not unit or not ratio or (last and ratio <= 1):
            return None
        total, last, position = total * ratio + Fraction(match["number"].replace(",", "")), unit, match.end()
    return Quantity(total / 100, unit="dollar") if last == "cent" else Quantity(total, unit=last)


def _fraction_or_expression(text: str) -> Quantity | None:
    """`3/4`, `\\frac{3}{4}`, `2 1/3`, `7\\pi`, `\\sqrt{2}/2`, also with percent or a unit behind."""
    splits = [(text, "")]
    unit = _TRAILING_UNIT.search(text)
    if unit and (body := text[: unit.start(1)].strip()).count("{") == body.count("}"):
        splits.insert(0, (body, unit[1]))
    for body, rest in splits:
        with contextlib.suppress(NotArithmetic):
            if quantity := _with_rest(evaluate(body).value, rest, None):
                return quantity
    return None


def _words(text: str) -> Quantity | None:
    """`twenty-five`, `one hundred and five dollars`, `two thirds`, `minus three`."""
    words = text.lower().replace("-", " ").replace(",", " ").split()
    if not words or len(words) > 14 or not all(map(str.isalpha, words)):
        return None
    sign = -1 if words[0] in ("minus", "negative") else 1
    words = [*words[sign < 0 :], "", "", ""]
    if words[0] in ("a", "an") and (words[1] in _SCALES or words[1] in _PARTS):
        words[0] = "one"
    if words[0] == "half":
        words.insert(0, "one")
    total, group, used = 0, 0, 0
    for i, word in enumerate(words):
        if word in _WORDS:
            group += _WORDS[word]
        elif word == "hundred" and used:
            group *= 100
        elif word in _SCALES and used:
            total, group = total + group * _SCALES[word], 0
        elif word == "and" and used and words[i + 1] in _WORDS and words[i + 2] not in _PARTS:
            continue
        else:
            break
        used = i + 1
    if not used:
        return None
    value, rest = Fraction(total + group), words[used:]
    if rest[0] == "and" and rest[1] in (*_WORDS, "a", "an") and rest[2] in _PARTS:
        value, rest = value + Fraction(_WORDS.get(rest[1], 1), _PARTS[rest[2]]), rest[3:]
    elif rest[0] in _PARTS:
        value, rest = value / _PARTS[rest[0]], rest[1:]
    return _with_rest(sign * value, " ".join(rest), None)


def same_quantity(answer: Quantity, gold: Quantity) -> bool:
    """Same number in the same unit, as far as both units are known; 28 % is 28 and is 0.28, but 0.28 is not 28.

    Of two units that measure the same thing the answer's is converted. A rate may leave out what it is per.
    """
    units = answer.unit, gold.unit
    if all(units) and answer.unit != gold.unit and set(units) != {"lb", "£"}:
        if ratio := ratio_of_units(*units):
            return _equal(answer.value * ratio, gold.value)
        if not is_left_out_of(*units) and not is_left_out_of(*units[::-1]):
            return False
    factors = [Fraction(1)]
    if answer.percent != gold.percent and gold.value != 0:
        factors.append(Fraction(1, 100) if answer.percent else Fraction(100))
    return any(_same_value(answer, answer.value * factor, gold) for factor in factors)


def _equal(value: Value, other: Value) -> bool:
    """Exactly if both are fractions, else but for the noise of floats."""
    return value == other if isinstance(value, Fraction) and isinstance(other, Fraction) else _close(value, other)


def _same_value(answer: Quantity, value: Value, gold: Quantity) -> bool:
    """Exact for whole numbers and fractions; a decimal gold may be the rounding of a float, a fraction or a root.

    The other way round it is no answer: 0.333333 is not 1/3, only what a float prints in full is.
    """
    reference = gold.value
    if _equal(value, reference) or _is_noise(answer, value, reference) or _is_noise(gold, reference, value):
        return True
    if not isinstance(value, Fraction) or not isinstance(reference, Fraction):
        return bool(gold.decimals) and _is_rounding(gold, value, _LEAST_DIGITS_OF_A_ROOT)
    if value.denominator == 1 and reference.denominator == 1:
        return False
    if gold.decimals is not None and gold.decimals >= LONG_DECIMALS:
        close = _close(value, reference) or _is_rounding(gold, value, 6)
        return close or _is_rounding(answer, reference, 4 if answer.decimals else 6)
    return answer.decimals is None and bool(gold.decimals) and _is_rounding(gold, value, _LEAST_DIGITS)


def _is_noise(decimal: Quantity, value: Value, other: Value) -> bool:
    """Whether a decimal with as many digits as a float prints is `other` but for the float's last bits."""
    if other == 0:
        return (decimal.digits or 0) >= _NOISE_DIGITS and -_NOISE_AT_ZERO <= value <= _NOISE_AT_ZERO
    is_long = (decimal.digits or 0) >= _NOISE_DIGITS and (decimal.decimals or 0) >= _NOISE_DECIMALS
    return is_long and _close(value, other)


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
