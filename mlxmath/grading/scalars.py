"""Whether two answers that are no lists are the same: numbers, letters, times, words, bases, angles, figures."""

import math
import re
from fractions import Fraction

from mlxmath.grading.calendar import same_date, same_time
from mlxmath.grading.normal import squeeze
from mlxmath.grading.quantity import parse_quantity
from mlxmath.grading.sameness import same_quantity
from mlxmath.grading.structure import split_items

_MAX_PRODUCT = 3
"""So many lower-case letters may be a product of variables instead of a word."""
_CHOICE_GOLD = re.compile(r"^\(?([A-Z])\)?$")
_CHOICE = re.compile(r"^(?:(?:option|choice|answer)\s+)?\(?([A-Z])(?:\)|[.:](?=\s|$)|$)", re.IGNORECASE)
_CHOICE_AND_VALUE = re.compile(r"^(?:\([A-Z]\)\s*|[A-Z][.:)]\s+)(?=\S)")
_GOLD_CHOICE_AND_VALUE = re.compile(r"^\(([A-Z])\)\s*(?=\S)")
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
_LETTER_DIGITS = re.compile(r"^[A-Z]+$")


def compare_scalars(answer: str, gold: str) -> bool | None:
    """Compare as numbers, letters, times, words; None if none of these fits."""
    letter = _CHOICE_GOLD.match(gold)
    if letter and (chosen := _CHOICE.match(answer)):
        return chosen[1].upper() == letter[1]
    if (choice := _CHOICE_GOLD.match(answer)) and (gold_choice := _GOLD_CHOICE_AND_VALUE.match(gold)):
        return choice[1] == gold_choice[1]
    if bool(labelled := _CHOICE_AND_VALUE.match(answer)) != bool(gold_labelled := _CHOICE_AND_VALUE.match(gold)):
        answer = answer[labelled.end() :] if labelled else answer
        gold = gold[gold_labelled.end() :] if gold_labelled else gold
    if (same := _infinite(answer, gold)) is not None:
        return same
    for layer in (_based, _angles):
        if (same := layer(answer, gold)) is not None:
            return same
    is_pair = bool(_PAIR.match(gold)) and ("," in answer or bool(_PAIR_OF_DIGITS.match(gold)))
    answer_number = None if is_pair and "," in answer else parse_quantity(answer)
    gold_number = None if is_pair else parse_quantity(gold)
    if answer_number and gold_number:
        return same_quantity(answer_number, gold_number)
    for layer in (same_time, same_date, _ratios, _geometric):
        if (same := layer(answer, gold)) is not None:
            return same
    meanings = [_SYNONYMS.get(_plain_words(text)) for text in (answer, gold)]
    if all(meanings):
        return meanings[0] == meanings[1]
    if _WORDS.match(answer) and _WORDS.match(gold):
        if max(len(answer), len(gold)) <= _MAX_PRODUCT and answer != gold and sorted(answer) == sorted(gold):
            return None if answer.islower() else False
        return sorted(map(_plain_words, split_items(answer))) == sorted(map(_plain_words, split_items(gold)))
    if (gold_number and _WORDS.match(answer) and len(answer) > 2) or (
        answer_number and _WORDS.match(gold) and len(gold) > 2
    ):
        return False
    return None


def _plain_words(text: str) -> str:
    text = re.sub(r"^(?:the|a|an)\s+", "", text.casefold()).replace(" ", "")
    return text[:-1] if len(text) > 3 and text.endswith("s") and not text.endswith("ss") else text


def _infinite(answer: str, gold: str) -> bool | None:
    a, g = _INFINITE.match(answer), _INFINITE.match(gold)
    if not a and not g:
        return None
    if a and g:
        return (a[1] == "-") == (g[1] == "-")
    return False if parse_quantity(gold if a else answer) else None


def _ratios(answer: str, gold: str) -> bool | None:
    """`3:4` is `6 : 8` and `3 to 4`; a ratio of two is also a fraction."""
    a, g = (_terms(text) if _RATIO.match(text) else None for text in (answer, gold))
    if a and g:
        return len(a) == len(g) and all(x * g[0] == y * a[0] for x, y in zip(a, g, strict=True))
    terms, other = (a, parse_quantity(gold)) if a else (g, parse_quantity(answer))
    if not terms or len(terms) > 2 or not other or not terms[1]:
        return None
    return other.value == terms[0] / terms[1]


def _terms(ratio: str) -> list[Fraction]:
    return [Fraction(term) for term in re.findall(r"\d+(?:\.\d+)?", ratio)]


def _based(answer: str, gold: str) -> bool | None:
    r"""`1011_2`, `1011_{2}`, "1011 base 2" and their value 11; the base may be left out of the answer."""
    a, g = _in_base(answer), _in_base(gold)
    if a and g:
        return a[1] == g[1]
    if not a and not g:
        return None
    (digits, value), other = (a, gold) if a else (g, answer)  # type: ignore[misc]
    if g and squeeze(answer) == digits:
        return True
    number = parse_quantity(other)
    return None if number is None or isinstance(value, str) else number.value == value


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
    if not any(map(str.isdigit, digits)) and not (base > 10 and _LETTER_DIGITS.match(digits)):
        return None
    return digits, value


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
    if bool(a) == bool(g):
        return None
    bare = gold if a else answer
    named = (a or g)["name"]  # type: ignore[index]
    return squeeze(bare) == squeeze(named) if _NAME.match(bare) else None
