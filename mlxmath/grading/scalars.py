"""Whether two answers that are no lists are the same: numbers, letters, times, dates, words, bases, angles, figures."""

import math
import re
from fractions import Fraction

from mlxmath.grading.normal import squeeze
from mlxmath.grading.quantity import parse_quantity, same_quantity
from mlxmath.grading.structure import split_items

_MAX_PRODUCT = 3
"""So many lower-case letters may be a product of variables instead of a word."""
_CHOICE_GOLD = re.compile(r"^\(?([A-Z])\)?$")
_CHOICE = re.compile(r"^(?:(?:option|choice|answer)\s+)?\(?([A-Z])(?:\)|[.:](?=\s|$)|$)", re.IGNORECASE)
_CHOICE_AND_VALUE = re.compile(r"^(?:\([A-Z]\)\s*|[A-Z][.:)]\s+)(?=\S)")
_GOLD_CHOICE_AND_VALUE = re.compile(r"^\(([A-Z])\)\s*(?=\S)")
_LOOSE_CHOICE = re.compile(r"^(?:(?:option|choice|answer)\s+)?\(?([A-Za-z])\s?[).:]?(?:$|(?<=[).:])\s*)")
"""A letter alone, or "b) 4", "a ) 38": what answers a question whose right option is known with its text."""
_RATIO = re.compile(r"^\d+(?:\.\d+)?(?:\s*(?::|\bto\b)\s*\d+(?:\.\d+)?)+$")
_WORDS = re.compile(r"^[A-Za-z][A-Za-z' -]*[A-Za-z]$")
_PAIR = re.compile(r"^[-+]?\d+,[-+]?\d{1,2}$")
"""Two numbers, or one with a decimal comma."""
_PAIR_OF_DIGITS = re.compile(r"^[-+]?\d,[-+]?\d$")
"""Two numbers: what is meant is a list, not 1.2."""
_IN_DEGREES = re.compile(r"(?:°|\bdegrees?)$")
_IN_RADIANS = re.compile(r"\\pi(?![A-Za-z])|\brad(?:ians?)?$")
_GEOMETRIC = re.compile(
    r"^\\?(?:(?:overline|overrightarrow|overleftrightarrow|vec|m?\\?angle|triangle|bigtriangleup|segment|line|ray)\b\s*)+"
    r"\{?\s*(?P<name>[A-Z](?:\s?[A-Z]){0,3})\s*\}?$"
)
_NAME = re.compile(r"^[A-Z](?:\s?[A-Z]){0,3}$")
_SAME_WORDS = (
    "dne undefined doesnotexist notdefined doesn'texist",
    "nosolution \\emptyset norealsolution nosuchnumber",
)
_SYNONYMS = {word: words.split()[0] for words in _SAME_WORDS for word in words.split()}
_INFINITE = re.compile(r"^([-+]?)\s*(?:\\infty|inf(?:inity)?|oo|infinite(?:ly many)?(?: solutions)?)$")
_BASE_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
               "twelve": 12, "sixteen": 16}  # fmt: skip
_NAMED_BASES = rf"\d{{1,2}}|{'|'.join(_BASE_WORDS)}"
_BASED = re.compile(
    r"^(?:\(\s*)?(?P<digits>[0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?)(?:\s*\))?"
    rf"\s*(?:_\s*\{{?\s*\(?\s*(?P<sub>{_NAMED_BASES})\s*\)?\s*\}}?"
    rf"|\(?\s*(?:in\s+)?base[\s-]+(?P<word>{_NAMED_BASES})\s*\)?)$"
)
_PREFIXED = re.compile(r"^0(?:x(?P<x>[0-9A-Fa-f]+)|b(?P<b>[01]+)|o(?P<o>[0-7]+))$")
_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
           "december")  # fmt: skip
_MONTH = "|".join(rf"{name[:3]}(?:{name[3:]})?" if name != "may" else name for name in _MONTHS)
_WEEKDAY = r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s+)?(?:the\s+)?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?(?!\d)"
_YEAR = r"(?:,?\s+(?P<year>\d{4}))?"

_HALF = r"\s?(?:[aApP][mM]\b|[aApP]\.\s?[mM]\b\.?)"
CLOCK = rf"\d{{1,2}}:\d{{2}}(?::\d{{2}})?(?![\d:])(?:{_HALF})?|\d{{1,2}}{_HALF}"
"""A time inside a text, as a regular expression."""
_CAPITALIZED = "|".join(name.capitalize() for name in _MONTHS)
_ORDINAL = r"\d{1,2}(?:st|nd|rd|th)?(?!\d)"
DATE = rf"(?:[A-Z][a-z]+day,? )?(?:(?:{_CAPITALIZED}) {_ORDINAL}|{_ORDINAL} (?:of )?(?:{_CAPITALIZED}))(?:,? \d{{4}})?"
"""A date inside a text, as a regular expression."""

_TIME = re.compile(r"^(\d{1,2})(?::(\d{2}))?(?::(\d{2}))?\s*(?:([ap])\.?\s?m\.?)?$", re.IGNORECASE)
_NAMED_TIMES = {"noon": "12:00 pm", "midday": "12:00 pm", "midnight": "12:00 am",
                "12 noon": "12:00 pm", "12 midnight": "12:00 am"}  # fmt: skip
_HOURS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_PART_OF_HOUR = re.compile(rf"^(?:a )?(half|quarter) (past|after|to|before) (\d{{1,2}}|{'|'.join(_HOURS)})\b")
_DATES = (
    re.compile(r"^(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})$"),
    re.compile(rf"^{_WEEKDAY}(?P<month>{_MONTH})\.?\s+(?:the\s+)?{_DAY}{_YEAR}$", re.IGNORECASE),
    re.compile(rf"^{_WEEKDAY}{_DAY}\s+(?:of\s+)?(?P<month>{_MONTH})\.?{_YEAR}$", re.IGNORECASE),
)
_DAYTIMES = {"in the morning": "am", "in the afternoon": "pm", "in the evening": "pm", "at night": "pm"}
_DAYTIME = re.compile(rf"\s+({'|'.join(_DAYTIMES)})$", re.IGNORECASE)


def compare_scalars(answer: str, gold: str) -> bool | None:
    """Compare as numbers, letters, times, words; None if none of these fits."""
    letter = _CHOICE_GOLD.match(gold)
    if letter and (chosen := _CHOICE.match(answer)):
        return chosen[1].upper() == letter[1]
    if (gold_choice := _GOLD_CHOICE_AND_VALUE.match(gold)) and (given := _LOOSE_CHOICE.match(answer)):
        answer, gold = answer[given.end() :].strip(), gold[gold_choice.end() :].strip()
        if given[1].upper() != gold_choice[1] or answer.casefold() in ("", gold.casefold()):
            return given[1].upper() == gold_choice[1]
    if bool(_CHOICE_AND_VALUE.match(answer)) != bool(_CHOICE_AND_VALUE.match(gold)):
        answer, gold = (_CHOICE_AND_VALUE.sub("", text) for text in (answer, gold))
    for rule in (_infinite, _based, _angles, _numbers, same_time, same_date, _ratios, _geometric, _in_words):
        if (same := rule(answer, gold)) is not None:
            return same
    return None


def is_moment(text: str) -> bool:
    """Whether a text is a clock time or a date and nothing else."""
    return _time(text) is not None or _date(text) is not None


def same_time(answer: str, gold: str) -> bool | None:
    """Clock times: `4:30 p.m.` is `4:30 PM`, `16:30` and `4:30`; None if one is no time."""
    a, g = _time(answer), _time(gold)
    if not a or not g:
        return None
    (hour, half, *rest), (gold_hour, gold_half, *gold_rest) = a, g
    hours = [one % 12 + (12 if of == "p" else 0) if of else one for one, of in ((hour, half), (gold_hour, gold_half))]
    is_same_half = bool(half) == bool(gold_half)
    return rest == gold_rest and (hours[0] == hours[1] or (not is_same_half and hour == gold_hour))


def _time(text: str) -> tuple[int, str, int, int] | None:
    """Hour as it stands, "a" or "p" or nothing, minute, second."""
    text = re.sub(r"^(\d{1,2}) ?o'clock\b", r"\1:00", text.lower())
    text = _PART_OF_HOUR.sub(_part_of_hour, text)
    match = _TIME.match(_DAYTIME.sub(lambda daytime: " " + _DAYTIMES[daytime[1]], _NAMED_TIMES.get(text, text)))
    if not match or not (match[2] or match[4]):
        return None
    return int(match[1]), match[4] or "", int(match[2] or 0), int(match[3] or 0)


def _part_of_hour(match: re.Match[str]) -> str:
    """`half past 4` as 4:30, `quarter to five` as 4:45."""
    minutes = 30 if match[1] == "half" else 15
    hour = int(match[3]) if match[3].isdigit() else _HOURS.index(match[3]) + 1
    if match[2] in ("to", "before"):
        hour, minutes = (hour - 2) % 12 + 1, 60 - minutes
    return f"{hour}:{minutes}"


def same_date(answer: str, gold: str) -> bool | None:
    """`May 5` is `5th of May` and, where a side leaves out the year, `May 5, 2020`; None if one is no date."""
    a, g = _date(answer), _date(gold)
    return a[:2] == g[:2] and (a[2] == g[2] or not a[2] or not g[2]) if a and g else None


def _date(text: str) -> tuple[int, int, int] | None:
    """Month, day, year; 0 where there is none."""
    match = next(filter(None, (pattern.match(text) for pattern in _DATES)), None)
    if not match:
        return None
    month = match["month"].lower()[:3]
    number = int(month) if month.isdigit() else [name[:3] for name in _MONTHS].index(month) + 1
    return number, int(match["day"]), int(match["year"] or 0)


def _numbers(answer: str, gold: str) -> bool | None:
    is_pair = bool(_PAIR.match(gold)) and ("," in answer or bool(_PAIR_OF_DIGITS.match(gold)))
    first = None if is_pair and "," in answer else parse_quantity(answer)
    second = None if is_pair else parse_quantity(gold)
    return same_quantity(first, second) if first and second else None


def _in_words(answer: str, gold: str) -> bool | None:
    meanings = [_SYNONYMS.get(_plain_words(text)) for text in (answer, gold)]
    if all(meanings):
        return meanings[0] == meanings[1]
    are_words = [bool(_WORDS.match(text)) for text in (answer, gold)]
    if all(are_words):
        if max(len(answer), len(gold)) <= _MAX_PRODUCT and answer != gold and sorted(answer) == sorted(gold):
            return None if answer.islower() else False
        first, second = (sorted(map(_plain_words, split_items(text))) for text in (answer, gold))
        return first == second
    word, other = (answer, gold) if are_words[0] else (gold, answer)
    is_number = any(are_words) and len(word) > 2 and not _PAIR_OF_DIGITS.match(gold) and parse_quantity(other)
    return False if is_number else None


def _plain_words(text: str) -> str:
    text = re.sub(r"^(?:the|a|an)\s+", "", text.casefold()).replace(" ", "")
    return text[:-1] if len(text) > 3 and text.endswith("s") and not text.endswith("ss") else text


def _infinite(answer: str, gold: str) -> bool | None:
    a, g = _INFINITE.match(answer), _INFINITE.match(gold)
    if a and g:
        return (a[1] == "-") == (g[1] == "-")
    return False if (a or g) and parse_quantity(gold if a else answer) else None


def _ratios(answer: str, gold: str) -> bool | None:
    """`3:4` is `6 : 8` and `3 to 4`; a ratio of two is also a fraction."""
    a, g = (re.findall(r"\d+(?:\.\d+)?", text) if _RATIO.match(text) else [] for text in (answer, gold))
    first, second = ([Fraction(term) for term in terms] for terms in (a, g))
    if first and second:
        return len(a) == len(g) and all(x * second[0] == y * first[0] for x, y in zip(first, second, strict=True))
    terms, other = (first, parse_quantity(gold)) if first else (second, parse_quantity(answer))
    return other.value == terms[0] / terms[1] if len(terms) == 2 and other and terms[1] else None


def _based(answer: str, gold: str) -> bool | None:
    r"""`1011_2`, `1011_{2}`, "1011 base 2" and their value 11; the base may be left out of the answer."""
    a, g = _in_base(answer), _in_base(gold)
    if a and g:
        return a[1] == g[1]
    if g and squeeze(answer) == g[0]:
        return True
    based, number = a or g, parse_quantity(gold if a else answer)
    return number.value == based[1] if based and number and not isinstance(based[1], str) else None


def _in_base(text: str) -> tuple[str, Fraction | str] | None:
    """The digits and the value, which is the text itself where the digits do not fit the base.

    Without a figure among them capitals are digits where the base is above ten and has them all: `FF_{16}`, not `x_2`.
    """
    if match := _PREFIXED.match(text):
        digits, base = next((match[name], base) for name, base in (("x", 16), ("b", 2), ("o", 8)) if match[name])
        return digits, Fraction(int(digits, base))
    match = _BASED.match(text)
    if not match:
        return None
    digits, named = match["digits"], match["sub"] or match["word"]
    base = _BASE_WORDS.get(named) or int(named)
    whole, _, part = digits.partition(".")
    try:
        value = Fraction(int(whole + part, base), base ** len(part))
    except ValueError:
        return (digits, f"{digits}_{named}") if any(map(str.isdigit, digits)) else None
    is_word = not any(map(str.isdigit, digits)) and not (base > 10 and re.fullmatch("[A-Z]+", digits))
    return None if is_word else (digits, value)


def _angles(answer: str, gold: str) -> bool | None:
    r"""`30°` is `\frac{\pi}{6}`; None unless one is in degrees and the other in radians."""
    sides = [(parse_quantity(text), _IN_DEGREES.search(text), _IN_RADIANS.search(text)) for text in (answer, gold)]
    for (angle, in_degrees, _), (other, is_other_in_degrees, in_radians) in (sides, sides[::-1]):
        if angle and other and in_degrees and in_radians and not is_other_in_degrees:
            return math.isclose(math.radians(angle.value), other.value, rel_tol=1e-9)
    return None


def _geometric(answer: str, gold: str) -> bool | None:
    r"""`\overline{AB}` and `AB`, `\angle ABC` and `ABC`: one side may leave out what it is."""
    a, g = _GEOMETRIC.match(answer), _GEOMETRIC.match(gold)
    figure, bare = a or g, gold if a else answer
    is_name = _NAME.match(bare) and not (a and g)
    return squeeze(bare) == squeeze(figure["name"]) if figure and is_name else None
