"""Whether two answers are the same, decided by exact rules; what they leave open is for `symbolic`."""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from mlxmath.grading.normal import MAX_CHARACTERS, clean, normalize, squeeze
from mlxmath.grading.quantity import parse_quantity
from mlxmath.grading.ranges import Range, ranges, same_sets
from mlxmath.grading.renaming import LETTERS, names_another, renamed, solved_for_another
from mlxmath.grading.scalars import compare_scalars
from mlxmath.grading.structure import Shape, is_equation, shape, split_items, split_name, union_parts, vector

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
    pair = renamed(*normal) or normal
    if any(map(_SIGNS.search, pair)):
        first, second = (", ".join(value for item in split_items(text) for value in _both(item)) for text in pair)
        return first, second
    return (clean(answer), clean(gold)) if pair == normal else pair


def _compare(answer: str, gold: str, depth: int) -> bool | None:
    if not answer or not gold:
        return False
    if squeeze(answer) == squeeze(gold):
        return True
    if depth > _MAX_DEPTH:
        return None
    if (decided := _points(answer, gold, depth)) is not None:
        return decided
    if (decided := compare_scalars(answer, gold)) is not None:
        return decided
    for rule in (_gaps, _ungrouped, _modular, _either_sign, _renamed, _same_ranges):
        if (same := rule(answer, gold, depth)) is not None:
            return same
    if "\\hat{" in answer + gold and (a := vector(answer)) and (g := vector(gold)):
        width = max(len(a), len(g))
        a, g = ((*entries, *["0"] * (width - len(entries))) for entries in (a, g))
        return len(a) == len(g) and _ordered(a, g, depth)
    for entries, other in ((vector(answer), gold), (vector(gold), answer)):
        if entries and not vector(other) and shape(other).kind == "tuple" and shape(other).brackets == "()":
            items = shape(other).items
            return len(items) == len(entries) and _ordered(items, entries, depth)
    (answer_name, answer_value), (gold_name, gold_value) = named = split_name(answer), split_name(gold)
    if answer_name and gold_name:
        if solved_for_another(*named):
            return None
        if names_another(answer_name, gold_name):
            return False
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


def _same_ranges(answer: str, gold: str, depth: int) -> bool | None:
    r"""`0 < x \le 5` is `(0, 5]`, `x < 0 or x > 1` is `(-\infty, 0) \cup (1, \infty)`; y < 5 is not x < 5."""
    a, g = ranges(answer), ranges(gold)
    if not a or not g:
        return None
    variables = {part.variable.casefold() for part in (*a, *g)} - {""}
    if len(variables) > 1:
        has_numbers_only = not any(LETTERS.search(end) for part in (*a, *g) for end in part[1:3])
        return False if has_numbers_only else None

    def same(first: Range, second: Range) -> bool:
        return first.brackets == second.brackets and bool(_ordered(first[1:3], second[1:3], depth))

    if variables and (is_same := same_sets(a, g)) is not None:
        return is_same
    if len(a) != len(g):
        return None
    return (all(any(same(x, y) for y in g) for x in a) and all(any(same(x, y) for x in a) for y in g)) or None


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
        return bool(terms) and len(terms) == len(others) and bool(_ordered(tuple(terms), tuple(others), depth))
    a, g = _terms_of(answer), _terms_of(gold)
    if "…" not in a or "…" not in g:
        return False
    (a_start, a_end), (g_start, g_end) = ((x[: x.index("…")], x[x.index("…") + 1 :]) for x in (a, g))
    short, long = sorted((a_start, g_start), key=len)
    more = [*short, *_continued(short, len(long) - len(short))]
    return (
        len(more) == len(long)
        and len(a_end) == len(g_end)
        and bool(_ordered(tuple(more), tuple(long), depth))
        and bool(_ordered(tuple(a_end), tuple(g_end), depth))
    )


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
    if count <= 0 or len(numbers) != len(terms) or len(steps) != 1:
        return []
    (step,) = steps
    return [str(numbers[-1] + step * (i + 1)) for i in range(count)]


def _filled(terms: Sequence[str]) -> list[str]:
    """All terms of an arithmetic progression from its first to its last, else none."""
    if terms.count("…") != 1 or terms[-2:-1] != ["…"] or len(terms) < 4:
        return []
    start, last = list(terms[:-2]), parse_quantity(terms[-1])
    if not last:
        return []
    for term in _continued(start, _MAX_ITEMS):
        start.append(term)
        if Fraction(term) == last.value:
            return start
    return []


def _ungrouped(answer: str, gold: str, depth: int) -> bool | None:
    """`(1,234)` is `(1, 234)`, but nobody writes the pair (1, 0) as `(1,000)`."""
    for grouped, other in ((answer, gold), (gold, answer)):
        if _GROUPED.match(grouped) and not _GROUPED.match(other) and len(shape(other).items) > 1:
            items = re.findall(r"\d+", grouped)
            if any(item[0] == "0" and len(item) > 1 for item in items):
                return False
            return _compare(grouped.replace(",", ", "), other, depth + 1)
    return None


def _renamed(answer: str, gold: str, depth: int) -> bool | None:
    """Constants and parameters may have other names; None if that is not it."""
    pair = renamed(answer, gold)
    return _compare(*pair, depth + 1) if pair else None


def _points(answer: str, gold: str, depth: int) -> bool | None:
    """`A(1, 2)` names the point (1, 2)."""
    bare = _POINT.sub("", answer), _POINT.sub("", gold)
    if bare == (answer, gold) or not all(shape(text).kind == "tuple" for text in bare):
        return None
    return _compare(*bare, depth + 1) if answer in bare or gold in bare else None


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
