"""Whether two answers are the same, decided by exact rules; what they leave open is for `symbolic`."""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from mlxmath.grading.expression import Value
from mlxmath.grading.normal import MAX_CHARACTERS, clean, normalize, squeeze
from mlxmath.grading.quantity import parse_quantity
from mlxmath.grading.ranges import Range, ranges, same_sets
from mlxmath.grading.scalars import compare_scalars
from mlxmath.grading.structure import (
    LETTERS,
    Shape,
    names_another,
    renamed,
    shape,
    solved_for_another,
    split_items,
    split_name,
    vector,
)

_MAX_ITEMS = 60
_MAX_DEPTH = 4

_MODULUS = re.compile(r"\s*(?:\(\s*(?:\\?mod(?![A-Za-z]))\s*(\w+)\s*\)|\\[pb]?mod\s*\{?\s*(\w+)\s*\}?)$")
_SIGNS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
_GROUPED = re.compile(r"^[(\[]?\d{1,3}(?:,\d{3})+[)\]]?$|^\\\{\d{1,3}(?:,\d{3})+\\\}$")
_POINT = re.compile(r"^[A-Z]'?(?:_\{?\w\}?)?\s*(?=\()")


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


def for_algebra(answer: str, gold: str) -> tuple[str, str]:
    r"""The pair that algebra is asked about: names as the gold has them, both values of `\pm`, else as it stands."""
    normal = normalize(answer), normalize(gold)
    first, second = renamed(*normal) or normal
    if _SIGNS.search(first) or _SIGNS.search(second):
        return ", ".join(_values(first)), ", ".join(_values(second))
    return (clean(answer), clean(gold)) if (first, second) == normal else (first, second)


def _compare(answer: str, gold: str, depth: int) -> bool | None:
    if not answer or not gold:
        return False
    if squeeze(answer) == squeeze(gold):
        return True
    if depth > _MAX_DEPTH:
        return None
    for rule in (_points, _scalars, _gaps, _ungrouped, _modular, _either_sign, _renamed, _same_ranges, _vectors):
        if (same := rule(answer, gold, depth)) is not None:
            return same
    (answer_name, answer_value), (gold_name, gold_value) = named = split_name(answer), split_name(gold)
    if answer_name and gold_name and solved_for_another(*named):
        return None
    if answer_name and gold_name and names_another(answer_name, gold_name):
        return False
    if answer_name or gold_name:
        return _compare(answer_value, gold_value, depth + 1)
    if "\\cup" in answer and "\\cup" in gold:
        parts, gold_parts = ([part.strip() for part in text.split("\\cup")] for text in (answer, gold))
        return _unordered(parts, gold_parts, depth) if len(parts) == len(gold_parts) else None
    return _lists(shape(answer), shape(gold), depth)


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    """False if one is, None if one is open, else True."""
    verdicts = set(verdicts)
    return False if False in verdicts else None if None in verdicts else True


def _ordered(answers: Sequence[str], golds: Sequence[str], depth: int) -> bool | None:
    return _all(_compare(answer, gold, depth + 1) for answer, gold in zip(answers, golds, strict=True))


def _unordered(answers: Sequence[str], golds: Sequence[str], depth: int) -> bool | None:
    """Every gold item has its answer and the other way round; equal items count once, named ones go by their names."""
    named, gold_named = ([split_name(item) for item in items] for items in (answers, golds))
    a, g = ({squeeze(name): value for name, value in items if name} for items in (named, gold_named))
    if a.keys() == g.keys() and len(a) == len(answers) == len(golds):
        return _ordered([a[name] for name in g], list(g.values()), depth)
    table = [[_compare(value, other, depth + 1) for _, other in gold_named] for _, value in named]
    rows = [set(row) for row in (*table, *zip(*table, strict=True))]
    if all(True in row for row in rows):
        return True
    has_choice = any("\\pm" in item for item in (*answers, *golds))
    return False if {False} in rows and not has_choice else None


def _lists(answer: Shape, gold: Shape, depth: int) -> bool | None:
    """Item by item: tuples and intervals in order and with their brackets, sets and lists in any order."""
    kinds, num_items = {answer.kind, gold.kind}, len(gold.items)
    if kinds == {"scalar"} or max(len(answer.items), num_items) > _MAX_ITEMS:
        return None
    if "tuple" not in kinds:
        return _unordered(answer.items, gold.items, depth)
    if kinds == {"tuple"}:  # more than two items can be no interval: round or square brackets mean the same
        is_vector = num_items > 2 and {answer.brackets, gold.brackets} == {"()", "[]"}
        if len(answer.items) != num_items or (answer.brackets != gold.brackets and not is_vector):
            return False
        return _ordered(answer.items, gold.items, depth)
    bare = answer if gold.kind == "tuple" else gold
    if bare.kind != "list" or len(answer.items) != num_items or any(shape(i).kind != "scalar" for i in bare.items):
        return False if bare.kind == "set" else None
    items, names = answer.items, [split_name(item)[0] for item in answer.items]
    if bare is answer and all(names):  # `y = 4, x = 3` in the order of a pair (x, y)
        items = tuple(item for _, item in sorted(zip(names, items, strict=True)))
    return _ordered(items, gold.items, depth)


def _scalars(answer: str, gold: str, _: int) -> bool | None:
    return compare_scalars(answer, gold)


def _points(answer: str, gold: str, depth: int) -> bool | None:
    """`A(1, 2)` names the point (1, 2)."""
    bare = _POINT.sub("", answer), _POINT.sub("", gold)
    if (
        bare == (answer, gold)
        or not (answer in bare or gold in bare)
        or {shape(text).kind for text in bare} != {"tuple"}
    ):
        return None
    return _compare(*bare, depth + 1)


def _vectors(answer: str, gold: str, depth: int) -> bool | None:
    """Entry by entry; one of two vectors may be written as a tuple."""
    a, g = vector(answer), vector(gold)
    if a and g and "\\hat{" in answer + gold:
        width = max(len(a), len(g))
        a, g = ((*entries, *["0"] * (width - len(entries))) for entries in (a, g))
    elif bool(a) == bool(g):
        return None
    a, g = (x or (shape(text).items if shape(text).brackets == "()" else ()) for x, text in ((a, answer), (g, gold)))
    return (len(a) == len(g) and _ordered(a, g, depth)) if a and g else None


def _modular(answer: str, gold: str, depth: int) -> bool | None:
    r"""`5 \pmod 7` is `x \equiv 5 \pmod{7}` and, where one leaves it out, 5."""
    a, g = map(_MODULUS.search, (answer, gold))
    if a and g and (a[1] or a[2]) != (g[1] or g[2]):
        return False
    first, second = (_MODULUS.sub("", text).rpartition("\\equiv")[2].strip() for text in (answer, gold))
    return _compare(first, second, depth + 1) if a or g else None


def _either_sign(answer: str, gold: str, depth: int) -> bool | None:
    r"""`\pm 3` as the list `3, -3`; None where there is no such sign, or algebra may still find them equal."""
    has_sign = _SIGNS.search(answer) or _SIGNS.search(gold)
    return (_unordered(_values(answer), _values(gold), depth) or None) if has_sign else None


def _values(text: str) -> list[str]:
    r"""The items of a list, those with `\pm` once for each sign."""
    both = (
        [re.sub(r"\\pm(?![A-Za-z])", sign, re.sub(r"\\mp(?![A-Za-z])", other, item)) for sign, other in ("+-", "-+")]
        for item in split_items(text)
    )
    return [value for values in both for value in dict.fromkeys(values)]


def _same_ranges(answer: str, gold: str, depth: int) -> bool | None:
    r"""`0 < x \le 5` is `(0, 5]`, `x < 0 or x > 1` is `(-\infty, 0) \cup (1, \infty)`; y < 5 is not x < 5."""
    a, g = ranges(answer), ranges(gold)
    if not a or not g:
        return None
    variables = {part.variable.casefold() for part in (*a, *g)} - {""}
    if len(variables) > 1:
        return None if any(LETTERS.search(end) for part in (*a, *g) for end in part[1:3]) else False
    if variables and (is_same := same_sets(a, g)) is not None:
        return is_same

    def same(first: Range, second: Range) -> bool:
        return first.brackets == second.brackets and bool(_ordered(first[1:3], second[1:3], depth))

    table = [[same(x, y) for y in g] for x in a] if len(a) == len(g) else [[False]]
    return all(map(any, (*table, *zip(*table, strict=True)))) or None


def _gaps(answer: str, gold: str, depth: int) -> bool | None:
    """Sequences and sums with dots in the middle, term by term; None without dots.

    Dots stand for what goes on as the terms before them: `1, 2, ..., n` is `1, 2, 3, ..., n`, and with a number at
    its end a sequence is the list of all its terms.
    """
    if "…" not in answer + gold:
        return None
    if "…" not in answer or "…" not in gold:
        written, gap = (gold, answer) if "…" in answer else (answer, gold)
        terms, others = _filled(_terms_of(gap)), _terms_of(written)
        return bool(terms) and len(terms) == len(others) and bool(_ordered(terms, others, depth))
    a, g = _terms_of(answer), _terms_of(gold)
    if "…" not in a or "…" not in g:
        return False
    (a_start, a_end), (g_start, g_end) = ((x[: x.index("…")], x[x.index("…") + 1 :]) for x in (a, g))
    short, long = sorted((a_start, g_start), key=len)
    more = [*short, *_continued(short, len(long) - len(short)), *a_end]
    is_as_long = len(more) - len(a_end) == len(long) and len(a_end) == len(g_end)
    return is_as_long and bool(_ordered(more, long + g_end, depth))


def _terms_of(text: str) -> list[str]:
    """Items of a list, or of a sum or product with dots."""
    shaped = shape(text)
    if shaped.kind != "scalar":
        return list(shaped.items)
    terms = re.split(r"\s*(?:\+|\\cdot|\\times)\s*(?![^(]*\))", text)
    return [term[1:-1] if term[:1] == "(" and term[-1:] == ")" else term for term in map(str.strip, terms)]


def _continued(terms: Sequence[str], count: int) -> list[str]:
    """The next `count` terms of an arithmetic progression, else none."""
    numbers = [quantity.value for term in terms if (quantity := parse_quantity(term))]
    steps = {second - first for first, second in pairwise(numbers)}
    is_progression = len(numbers) == len(terms) and len(steps) == 1
    return [str(numbers[-1] + i * step) for step in steps for i in range(1, count + 1)] if is_progression else []


def _filled(terms: Sequence[str]) -> list[str]:
    """All terms of an arithmetic progression from its first to its last, else none."""
    last = parse_quantity(terms[-1])
    if terms.count("…") != 1 or terms[-2:-1] != ["…"] or len(terms) < 4 or not last:
        return []
    more = _continued(terms[:-2], _MAX_ITEMS)
    values: list[Value] = [Fraction(term) for term in more]
    return [*terms[:-2], *more[: values.index(last.value) + 1]] if last.value in values else []


def _ungrouped(answer: str, gold: str, depth: int) -> bool | None:
    """`(1,234)` is `(1, 234)`, but nobody writes the pair (1, 0) as `(1,000)`."""
    for grouped, other in ((answer, gold), (gold, answer)):
        if _GROUPED.match(grouped) and not _GROUPED.match(other) and len(shape(other).items) > 1:
            has_zeros = re.search(r"\b0\d", grouped)
            return False if has_zeros else _compare(grouped.replace(",", ", "), other, depth + 1)
    return None


def _renamed(answer: str, gold: str, depth: int) -> bool | None:
    """Constants and parameters may have other names; None if that is not it."""
    pair = renamed(answer, gold)
    return _compare(*pair, depth + 1) if pair else None
