"""Whether two answers are the same, decided by exact rules; what they leave open is for `symbolic`."""

import re
from fractions import Fraction
from functools import lru_cache

from mlxmath.grading.calendar import same_date, same_time
from mlxmath.grading.normal import MAX_CHARACTERS, normalize, squeeze
from mlxmath.grading.quantity import parse_quantity
from mlxmath.grading.ranges import Range, ranges
from mlxmath.grading.sameness import same_quantity
from mlxmath.grading.structure import Shape, is_equation, shape, split_items, split_name, union_parts, vector

_MAX_ITEMS = 60
_MAX_DEPTH = 4
_MAX_PRODUCT = 3
"""So many lower-case letters may be a product of variables instead of a word."""

_CHOICE_GOLD = re.compile(r"^\(?([A-Z])\)?$")
_CHOICE = re.compile(r"^(?:(?:option|choice|answer)\s+)?\(?([A-Z])(?:\)|[.:](?=\s|$)|$)", re.IGNORECASE)
_CHOICE_AND_VALUE = re.compile(r"^(?:\([A-Z]\)\s*|[A-Z][.:)]\s+)(?=\S)")
_RATIO = re.compile(r"^\d+(?:\.\d+)?(?:\s*(?::|\bto\b)\s*\d+(?:\.\d+)?)+$")
_MODULUS = re.compile(r"\s*(?:\(\s*(?:\\?mod(?![A-Za-z]))\s*(\w+)\s*\)|\\[pb]?mod\s*\{?\s*(\w+)\s*\}?)$")
_SIGNS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
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
    if (same := _modular(answer, gold, depth)) is not None or (same := _either_sign(answer, gold, depth)) is not None:
        return same
    if _same_ranges(answer, gold, depth):
        return True
    for entries, other in ((vector(answer), gold), (vector(gold), answer)):
        if entries and not vector(other) and shape(other).kind == "tuple" and shape(other).brackets == "()":
            items = shape(other).items
            return len(items) == len(entries) and _ordered(items, entries, depth)
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
    if bool(labelled := _CHOICE_AND_VALUE.match(answer)) != bool(gold_labelled := _CHOICE_AND_VALUE.match(gold)):
        answer = answer[labelled.end() :] if labelled else answer
        gold = gold[gold_labelled.end() :] if gold_labelled else gold
    if (same := _infinite(answer, gold)) is not None:
        return same
    answer_number, gold_number = parse_quantity(answer), parse_quantity(gold)
    if answer_number and gold_number:
        return same_quantity(answer_number, gold_number)
    for layer in (same_time, same_date, _ratios, _based):
        if (same := layer(answer, gold)) is not None:
            return same
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


def _modular(answer: str, gold: str, depth: int) -> bool | None:
    r"""`5 \pmod 7` is `x \equiv 5 \pmod{7}` and, where one leaves it out, 5."""
    a, g = _MODULUS.search(answer), _MODULUS.search(gold)
    if not a and not g:
        return None
    if a and g and (a[1] or a[2]) != (g[1] or g[2]):
        return False
    residues = [text[: m.start()] if m else text for text, m in ((answer, a), (gold, g))]
    first, second = (residue.rpartition("\\equiv")[2].strip() for residue in residues)
    return _compare(first, second, depth + 1)


def _either_sign(answer: str, gold: str, depth: int) -> bool | None:
    r"""`\pm 3` as the list `3, -3`; None where there is no such sign, or algebra may still find them equal."""
    if not (_SIGNS.search(answer) or _SIGNS.search(gold)):
        return None
    answers, golds = ([value for item in split_items(text) for value in _both(item)] for text in (answer, gold))
    return _unordered(answers, golds, depth) or None


def _both(item: str) -> list[str]:
    if not _SIGNS.search(item):
        return [item]
    signs = ({"\\pm": "+", "\\mp": "-"}, {"\\pm": "-", "\\mp": "+"})
    return [_SIGNS.sub(lambda match, of=of: of[match[0]], item) for of in signs]  # type: ignore[misc]


def _same_ranges(answer: str, gold: str, depth: int) -> bool:
    r"""`0 < x \le 5` is `(0, 5]`, `x < 0 or x > 1` is `(-\infty, 0) \cup (1, \infty)`."""
    a, g = ranges(answer), ranges(gold)
    if not a or not g or len(a) != len(g):
        return False

    def same(first: Range, second: Range) -> bool:
        return first.brackets == second.brackets and bool(_ordered(first[1:], second[1:], depth))

    return all(any(same(x, y) for y in g) for x in a) and all(any(same(x, y) for x in a) for y in g)


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
            items = _by_name(answer.items) if bare is answer else answer.items
            return _ordered(items, gold.items, depth)
        return None
    if "tuple" not in kinds:
        return _unordered(answer.items, gold.items, depth)
    if kinds == {"set", "tuple"}:
        return False
    return None


def _by_name(items: tuple[str, ...]) -> tuple[str, ...]:
    """`y = 4, x = 3` in the order of a pair (x, y)."""
    names = [split_name(item)[0] for item in items]
    return tuple(item for _, item in sorted(zip(names, items, strict=True))) if all(names) else items


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
