"""Numbers, formulas and short answers inside prose."""

import re
from itertools import pairwise

from mlxmath.grading.boxes import CONNECTOR, last_box
from mlxmath.grading.calendar import CLOCK, DATE, is_moment
from mlxmath.grading.normal import clean
from mlxmath.grading.quantity import parse_quantity
from mlxmath.grading.units import read_unit

NUMBER = (
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d{1,3}(?: \d{3})+(?:,\d{1,2})?(?![.,]?\d)|\d+[.,]\d+|\d+|\.\d+)"
    r"(?:[eE][-+]?\d{1,3}(?!\w))?"
)
"""A number inside a text, as a regular expression."""
_RATIO = r"\d+(?:\.\d+)?(?:(?::\d+(?:\.\d+)?)+| : \d+(?:\.\d+)?)"
_NUMBER = re.compile(
    rf"(?<![\w.^_:])(?:{CLOCK}|{_RATIO})(?![\w:])"
    rf"|(?<![\w.^_])(?:[-+−–](?=[$€£¥₹\d.])|(?<![\d)]\s)−\s(?=[$€£¥₹\d.]))?[$€£¥₹]?{NUMBER}(?:\s?/\s?\d+(?![\d/]))?(?:\s?\\?%|\s?percent\b)?"
)
_DATE = re.compile(DATE)
_AMOUNT = r"\d[\d,]*(?:\.\d+)?\s?[A-Za-z]{1,12}"
_SUM_OF_UNITS = re.compile(rf"(?<![\w.]){_AMOUNT}(?:,?\s(?:and\s)?{_AMOUNT}){{1,3}}\b")
"""Amounts that may be one: 2 hours and 30 minutes."""
_RAISED = r"(?:\^(?:\(-?\d+\)|\{-?\d+\}|-?\d+)|[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)"
_ROOT = r"(?:[√∛]\s?(?:\d+(?:\.\d+)?|\(\d+\))|\bsqrt\(\d+\)|\b(?:log|ln) \d+)"
_COMPOUND = re.compile(
    rf"(?<![\w.^_])[-−]?(?:{NUMBER}\s?[×x*·]\s?10{_RAISED}|\d+(?:\.\d+)?{_RAISED}"
    rf"|(?:{NUMBER}(?:\s?/\s?\d+)?\s?)?(?:{_ROOT}|π|\bpi\b)(?:\s?/\s?\d+)?)"
)
"""A number and what multiplies it, raised or under a root: 25π, 2√3, 2^10, 3 × 10^8."""
_REMARK = re.compile(
    r"(?<=[\w%])\s\((?:(?=[^()]*(?:[A-Za-z]{2}|%))|(?=[\d\s.$+*/×÷=−-]*\d\s?[+*/×÷=][\d\s.$+*/×÷=−-]*\)))[^()]*\)"
)
_BASED = re.compile(r"^[0-9A-F]+ (?:in )?base (?:\d+|[a-z]+)\b")
_RATIO_IN_WORDS = re.compile(rf"{_RATIO}|\d+ to \d+")
_LETTERS = re.compile(
    r"^\(?[A-H]\)?(?:,?\s*(?:and|or|&)\s*\(?[A-H]\b\)?|,\s*\(?[A-H]\b\)?(?=\s*(?:,|and\b|or\b|[.)]|$)))+"
)
_LETTER = re.compile(r"^\**\(?([A-Z])\)?\**(?=[\s.,:)*]|$)")
MATH = re.compile(
    r"\$\$(?P<a>[^$]{1,1000})\$\$|\\\[(?P<b>(?:[^\\]|\\(?!\])){1,1000})\\\]|\\\((?P<c>(?:[^\\]|\\(?!\))){1,1000})\\\)"
    r"|(?<![\\\d$])\$(?P<d>(?! )(?:\\[^\n]|[^$\\\n]){1,1000}(?<! )|(?= )(?:\\[^\n]|[^$\\\n]){1,1000}(?<= ))\$(?!\d)"
)
"""A formula between its delimiters. A dollar sign before a digit opens an amount, and closes no formula."""
_BARE_LATEX = re.compile(
    r"-?\s?\\[dtc]?frac\s?(?:\{[^{}\n]{1,80}\}\s?\{[^{}\n]{1,80}\}|\d\d)|-?\d{0,20}\s?\\sqrt\s?\{[^{}\n]{1,80}\}"
)
_SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z\[(*#]|\s*$)|[。！？]|\n")
_IS = re.compile(
    r"(?:\b(?:is|are|be|equals)\b(?:\s+(?:equal to|approximately|about|exactly|therefore|thus))?"
    r"|[=≈]|(?<!\d):|:(?! ?\d))\s*",
    re.IGNORECASE,
)
_REASON = re.compile(
    r",?\s{1,5}(?:because|since|as it|which|so that)\b.*$|,\s{1,5}so\b.*$"
    r"|,?\s{1,5}(?:and|or|but)$",
    re.IGNORECASE | re.DOTALL,
)
_LEADING = re.compile(
    r"^(?:(?:(?:option|choice)(?= \([A-Z]\))|but|either|both|rather|simply|just|indeed|now|then|actually)\b,?\s+)+",
    re.IGNORECASE,
)
_MINUS = re.compile(r"^(?:minus|negative)\s+(?=[$€£]?[\d.])", re.IGNORECASE)


def pick(text: str) -> str | None:
    """The answer in what follows "the answer is": a formula, a number with its unit, a letter, a few words."""
    text = text.strip().strip("*_ ").strip()
    if not text:
        return None
    if box := last_box(text):
        return box[0]
    formulas = _formulas(text)
    if formulas and formulas[0][0] == 0:
        return _joined(text, formulas)
    sentence = _LEADING.sub("", first_sentence(text).strip().strip("*_\"' ").strip())
    sentence = without_remark(_MINUS.sub("-", without_reason(sentence.rstrip(" ,"))))
    if letters := _LETTERS.match(sentence):
        return letters[0]
    if letter := _LETTER.match(sentence):
        value = sentence[letter.end() :].strip()
        return sentence if sentence[0] == "(" and value and is_answer(value) else letter[1]
    if is_answer(sentence):
        return sentence
    if whole := _DATE.match(sentence) or _BASED.match(sentence):
        return whole[0]
    for match in reversed(list(_IS.finditer(sentence))):
        if any(start < match.start() < end for start, end, _ in formulas):
            continue
        rest = sentence[match.end() :].strip()
        if rest and (rest[0].isdigit() or rest[0] in "$\\-+([.£€" or is_answer(rest)):
            return pick(rest)
    if formulas and formulas[0][0] < len(sentence):
        number = _NUMBER.match(sentence)
        return number[0].strip() if number else _joined(text, formulas)
    if numbers := list(_NUMBER.finditer(sentence)):
        first = numbers[0]
        follows = sentence[first.end() :].strip()
        if follows and parse_quantity(clean(sentence[first.start() :])):
            return sentence[first.start() :].strip()
        unit = read_unit(follows.split(" ")[0]) if follows else ""
        return first[0].strip() + (" " + follows.split(" ")[0] if unit else "")
    return sentence if 0 < len(sentence) <= 100 else None


def pick_last(text: str) -> str | None:
    """The rightmost formula or number outside formulas; of an equation in words the part behind the equals sign."""
    text = without_remark(text)
    formulas = _formulas(text)
    numbers = [m for m in _NUMBER.finditer(text) if not any(s <= m.start() < e for s, e, _ in formulas)]
    last_formula = next((f for f in reversed(formulas) if re.search(r"[\w\\]", f[2])), None)
    if last_formula and (not numbers or numbers[-1].start() < last_formula[0]):
        upto = formulas[: formulas.index(last_formula) + 1]
        return _joined_back(text, upto)
    if not numbers:
        return None
    number = numbers[-1]
    for pattern in (_DATE, _SUM_OF_UNITS, _COMPOUND):
        whole = [m[0] for m in pattern.finditer(text) if m.start() <= number.start() < m.end()]
        if whole and (pattern is not _SUM_OF_UNITS or parse_quantity(clean(whole[-1]))):
            return whole[-1]
    return number[0].strip()


def is_answer(text: str) -> bool:
    plain = clean(text).replace("$", "").rstrip(". ").strip()
    if parse_quantity(plain) or _RATIO_IN_WORDS.fullmatch(plain) or is_moment(plain):
        return True
    plain = re.sub(
        r"(?<=[\d)}])(?:and|or)(?=[A-Za-z(\d])|\\(?:text|mathrm|textbf|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+",
        " ",
        text,
    )
    words = [
        w
        for w in re.findall(r"[^\W\d_]{2,}", plain)
        if w.lower() not in ("and", "or", "sqrt", "pi", "sin", "cos", "tan", "ln", "log")
    ]
    return len(words) <= (0 if re.search(r"\d|\\", text) else 1)


def first_sentence(text: str) -> str:
    """Up to the first full stop outside a formula that ends a sentence."""
    formulas = [match.span() for match in MATH.finditer(text)]
    for match in _SENTENCE_END.finditer(text):
        if not any(start < match.start() < end for start, end in formulas) and not re.search(
            r"\b[ap]\.m$", text[: match.start()]
        ):
            return text[: match.start()]
    return text


def _formulas(text: str) -> list[tuple[int, int, str]]:
    found = [(m.start(), m.end(), next(g for g in m.groups() if g is not None).strip()) for m in MATH.finditer(text)]
    if not found:
        found = [(m.start(), m.end(), m[0].strip()) for m in _BARE_LATEX.finditer(text)]
    return found


def _joined(text: str, formulas: list[tuple[int, int, str]]) -> str:
    """The first formula and those joined to it by commas, "and", "or"; a percent sign behind it belongs to it."""
    parts = [formulas[0][2]]
    for (_, end, _), (start, _, part) in pairwise(formulas):
        if not CONNECTOR.match(text[end:start]):
            break
        parts.append(part)
    percent = re.match(r"\s*\\?%|\s*percent\b", text[formulas[0][1] :]) if len(parts) == 1 else None
    return ", ".join(parts) + ("%" if percent else "")


def _joined_back(text: str, formulas: list[tuple[int, int, str]]) -> str:
    """The last formula and those joined to it."""
    first = len(formulas) - 1
    while first and CONNECTOR.match(text[formulas[first - 1][1] : formulas[first][0]]):
        first -= 1
    return _joined(text, formulas[first:])


def without_reason(sentence: str) -> str:
    """ "Ann, because she has 5" without the clause that gives a reason."""
    return _REASON.sub("", sentence)


def without_remark(sentence: str) -> str:
    """ "15 students (60% of them)" without the remark in brackets, if a number or formula is left."""
    rest = _REMARK.sub("", sentence)
    return rest if _NUMBER.search(rest) or _formulas(rest) else sentence
