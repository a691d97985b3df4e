"""A number as people write it: separators, currency, percent, fractions, scientific, words, with or without a unit."""

import contextlib
import re
from dataclasses import dataclass, replace
from fractions import Fraction

from mlxmath.grading.expression import NotArithmetic, Value, evaluate
from mlxmath.grading.normal import as_count
from mlxmath.grading.units import UNIT_WORD, ratio_of_units, read_unit

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


_COUNT = re.compile(r"^(?P<kind>[CP])\s*\(\s*(?P<n>\d+)\s*,\s*(?P<k>\d+)\s*\)$")


def parse_quantity(text: str) -> Quantity | None:
    """Read normalized text as a number with an optional percent sign or unit; None if it is anything else."""
    if not text or len(text) > 300:
        return None
    text = _COUNT.sub(as_count, " ".join(text.split()))
    for layer in (_repeating, _decimal, _mixed, _sum_of_units, _fraction_or_expression, _words):
        if quantity := layer(text):
            return quantity
    return None


def _decimal(text: str) -> Quantity | None:
    match = _NUMBER.match(text)
    if not match or len(match["digits"]) > 60:
        return None
    digits = match["digits"]
    whole, point, decimals = _split_decimals(digits)
    if point and not decimals and match["rest"][:1].isdigit():
        return None
    value = Fraction(f"{whole or 0}.{decimals or 0}")
    exponent = match["exponent"] or match["power"]
    if exponent:
        value *= Fraction(10) ** int(exponent.replace(" ", ""))
    if match["sign"] == "-":
        value = -value
    significant = len((whole + decimals).lstrip("0"))
    found = _with_rest(value, match["rest"].removeprefix("…"), None if exponent else len(decimals), significant)
    currency = (match["before"] or match["currency"] or "").rstrip(".")
    if found and currency and not found.unit:
        return replace(found, unit=read_unit(currency if currency.isalpha() else currency[-1]) or "")
    return found


_REPEATING = re.compile(
    r"^(?P<sign>[-+]?)\s*(?P<whole>\d{0,12})\.(?P<first>\d{0,12}?)\s*\{?\s*"
    r"(?:\\(?:overline|bar|widebar|overbar|overparen|wideparen|widehat|hat)\s*(?:\{\s*(?P<line>\d{1,12})\s*\}|(?P<one>\d)(?!\d))"
    r"|\\dot\s*\{?\s*(?P<dot>\d)\s*\}?(?:(?P<between>\d{0,10})\\dot\s*\{?\s*(?P<last>\d)\s*\}?)?"
    r"|\((?P<round>\d{1,12})\)|(?P<marked>(?:\d[\u0304\u0305]){1,12}|\d\u0307(?:\d{0,10}\d\u0307)?)"
    r"|(?P<shown>\d{1,6})(?P=shown){1,20}…|(?P<word>\d)(?P=word)*\s*\(?(?:repeating|recurring)\)?)\s*\}?(?P<rest>.*)$"
)


_PERIODS = ("line", "one", "dot", "between", "last", "round", "marked", "shown", "word")
_MAY_REPEAT = re.compile(r"[\\…(\u0304\u0305\u0307]|repeating|recurring")


def _repeating(text: str) -> Quantity | None:
    r"""`0.1\overline{6}`, `0.\dot{1}8\dot{5}`, `0.1(6)`, `0.333...`: a decimal whose last digits go on for ever."""
    match = _REPEATING.match(text) if _MAY_REPEAT.search(text) else None
    if not match:
        return None
    period = "".join(match[name] or "" for name in _PERIODS)
    period = re.sub(r"\D", "", period)
    first = match["first"]
    tail = Fraction(int(period), 10 ** len(period) - 1)
    value = int(match["whole"] or 0) + (int(first or 0) + tail) / 10 ** len(first)
    return _with_rest(-value if match["sign"] == "-" else value, match["rest"], None)


_MIXED = re.compile(
    r"^(?P<sign>-?)(?P<whole>\d{1,9})(?:\s+and\s+|-(?=\d+/\d+ [A-Za-z]))"
    r"(?:(?P<top>\d{1,4})/(?P<below>\d{1,4})|\\frac\{(?P<t>\d{1,4})\}\{(?P<b>\d{1,4})\}"
    r"|(?P<part>a half|a quarter|one half))"
    r"(?![\d/])(?P<rest>.*)$"
)


def _mixed(text: str) -> Quantity | None:
    """`3 and 1/2`, `3 and a half`, `1-1/2 cups`."""
    match = _MIXED.match(text)
    if not match:
        return None
    top, below = int(match["top"] or match["t"] or 1), int(match["below"] or match["b"] or 2)
    if match["part"]:
        below = _PARTS[match["part"].split()[1]]
    if not 0 < top < below:
        return None
    value = int(match["whole"]) + Fraction(top, below)
    return _with_rest(-value if match["sign"] else value, match["rest"], None)


def _split_decimals(digits: str) -> tuple[str, str, str]:
    """Whole part, separator, decimals. A comma separates thousands where all groups have three digits.

    So do points before a comma (1.234,56) or several (1.000.000), underscores (1_000) and commas that cut off a group
    with a zero (10,00,000).
    """
    if re.search(r"\..*,", digits):
        return digits.replace(".", "").partition(",")
    if digits.count(".") > 1 or "_" in digits or ("." not in digits and digits.count(",") > 1):
        return re.sub(r"[.,_]", "", digits), "", ""
    if "." in digits:
        return digits.replace(",", "").replace(" ", "").partition(".")
    if re.fullmatch(r"[1-9]\d{0,2}(?:[, ]\d{3})+", digits):
        return digits.replace(",", "").replace(" ", ""), "", ""
    return digits.replace(" ", "").partition(",")


def _with_rest(value: Value, rest: str, decimals: int | None, digits: int | None = None) -> Quantity | None:
    """The number with what follows it: percent, a scale word, a unit; None if that is no unit."""
    rest = rest.strip()
    if rest.startswith("(") and rest.endswith(")"):
        rest = rest[1:-1].strip()
    if scale := _SCALE.match(rest):
        value, decimals, rest = value * _SCALES[scale[1].lower()], None, rest[scale.end() :]
    percent = bool(match := _PERCENT.match(rest))
    if match:
        rest = rest[match.end() :]
    unit = read_unit(rest)
    return None if unit is None else Quantity(value, percent, decimals, unit, digits)


_SUMMAND = re.compile(rf"(?P<number>\d[\d,]*(?:\.\d+)?)\s?(?P<unit>{UNIT_WORD})(?:\s*,)?(?:\s+and)?\s*")


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
    for body, rest in dict.fromkeys((_split_unit(text), (text, ""))):
        with contextlib.suppress(NotArithmetic):
            if quantity := _with_rest(evaluate(body).value, rest, None):
                return quantity
    return None


_TRAILING_UNIT = re.compile(r"(?<=[\d)}! ])\s*((?:%|percent|[A-Za-z]{2,}|[mghsL]\b)[A-Za-z°/ .^\d{}%-]*)$")


def _split_unit(text: str) -> tuple[str, str]:
    """An expression and the unit or percent sign behind it."""
    match = _TRAILING_UNIT.search(text)
    if not match or text[match.start(1) - 1 : match.start(1)] == "\\":
        return text, ""
    body = text[: match.start(1)].strip()
    if body.count("{") != body.count("}"):
        return text, ""
    return body, match[1]


def _words(text: str) -> Quantity | None:
    """`twenty-five`, `one hundred and five dollars`, `two thirds`, `minus three`."""
    words = text.lower().replace("-", " ").replace(",", " ").split()
    if not words or len(words) > 14 or not all(word.isalpha() for word in words):
        return None
    sign = 1
    if words[0] in ("minus", "negative"):
        sign, words = -1, words[1:]
    if words and words[0] in ("a", "an") and len(words) > 1 and (words[1] in _SCALES or words[1] in _PARTS):
        words[0] = "one"
    if words and words[0] == "half":
        words = ["one", *words]
    total, group, used = 0, 0, 0
    for i, word in enumerate(words):
        if word in _WORDS:
            group += _WORDS[word]
        elif word == "hundred" and used:
            group *= 100
        elif word in _SCALES and used:
            total, group = total + group * _SCALES[word], 0
        elif word == "and" and used and i + 2 < len(words) and words[i + 1] in _WORDS and words[i + 2] in _PARTS:
            part = Fraction(_WORDS[words[i + 1]], _PARTS[words[i + 2]])
            return _with_rest(sign * (total + group + part), " ".join(words[i + 3 :]), None)
        elif word == "and" and used and i + 1 < len(words) and words[i + 1] in _WORDS:
            continue
        else:
            break
        used = i + 1
    if not used:
        return None
    value = Fraction(total + group)
    rest = words[used:]
    if rest[:1] == ["and"] and rest[1:2] in (["a"], ["an"]) and rest[2:3] and rest[2] in _PARTS:
        value, rest = value + Fraction(1, _PARTS[rest[2]]), rest[3:]
    elif rest and rest[0] in _PARTS:
        value, rest = value / _PARTS[rest[0]], rest[1:]
    return _with_rest(sign * value, " ".join(rest), None)
