"""Boxes, formulas, numbers and short answers inside a text."""

import re
from collections.abc import Iterator
from itertools import islice, pairwise

from mlxmath.grading.normal import MAX_CHARACTERS, clean
from mlxmath.grading.quantity import parse_quantity
from mlxmath.grading.scalars import CLOCK, DATE, is_moment
from mlxmath.grading.units import read_unit

_MAX_BOXES = 40

CONNECTOR = re.compile(r"^[^\w.!?=<>\\]{0,40}(?:and|or)?[^\w.!?=<>\\]{0,40}$")
"""What joins two formulas to one list."""
_CONNECTING = re.compile(r"^[^.!?\n]{0,20}\b(?:and|or)\b[^.!?\n]{0,20}$")
_BOX = re.compile(r"\\boxed|\\fbox")
_OPENING = re.compile(r" *(?:\{|(?P<bare>-?[\w.,]+))")
_GAP_NOISE = re.compile(r"\\(?:quad|qquad|text|textbf|mathrm)(?![A-Za-z])|\\[()\[\],;:! ]|[${}]")
_PLACEHOLDER = re.compile(
    r"^(?:\\[hv]?phantom\s*\{[^{}]*\}|\\(?:square|Box|ldots|dots)(?![A-Za-z])|\\[ ,;:!]|[\s?_.…~])*$"
)
_EMPTY_BOX = re.compile(r"\\(?:f?boxed|fbox)\s*(?:\{\s*(?:\}|$)|$)")
NUMBER = (
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d{1,3}(?: \d{3})+(?:,\d{1,2})?(?![.,]?\d)|\d+[.,]\d+|\d+|\.\d+)"
    r"(?:[eE][-+]?\d{1,3}(?!\w))?"
)
"""A number inside a text, as a regular expression."""
_RATIO = r"\d+(?:\.\d+)?(?:(?::\d+(?:\.\d+)?)+| : \d+(?:\.\d+)?)"
_SIGN = "[¼-¾⅐-⅞]"
_LABELS = (
    "day week month year hour step stage round part case question problem exercise example chapter page line row phase"
    " level grade class team group room number option equation January February March April May June July August"
    " September October November December"
)
_UNLABELLED = "".join(rf"(?<!\b(?i:{word})\s)" for word in _LABELS.split())
"""Not the number of a day, a step, a page: on day 2 1/2 of them left."""
_WHOLE = r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,8})"
_BLANK = r"[^\S\n]"
_WHOLE_PART = (
    rf"(?<![\w./^])(?<!\d,){_UNLABELLED}"
    rf"(?:{_WHOLE}(?:{_BLANK}|(?=[\\¼-¾⅐-⅞]))|(?<!\bboth\s)(?<!\bbetween\s)(?<!\d,\s){_WHOLE}{_BLANK}and{_BLANK})"
)
"""What stands before the fraction of a mixed number: 2 1/2, 2 and 1/2, 2½."""
_MIXED = rf"{_WHOLE_PART}(?P<top>\d{{1,4}})/(?P<below>\d{{1,4}})(?![\d/]|[.,]\d)|(?:{_WHOLE_PART})?{_SIGN}"
_PLAIN = rf"{NUMBER}(?:\s?/\s?\d+(?![\d/]))?"


def _with_signs(number: str) -> re.Pattern[str]:
    """A number inside a text with its sign, currency and percent; before it times and ratios."""
    return re.compile(
        rf"(?<![\w.^_:])(?:{CLOCK}|{_RATIO})(?![\w:])"
        r"|(?<![\w.^_])(?:[-+−–](?=[$€£¥₹\d.¼-¾⅐-⅞])|(?<![\d)]\s)−\s(?=[$€£¥₹\d.¼-¾⅐-⅞]))?[$€£¥₹]?"
        rf"(?:{number})(?:\s?\\?%|\s?percent\b)?"
    )


_NUMBER = _with_signs(f"{_MIXED}|{_PLAIN}")
_UNMIXED = _with_signs(_PLAIN)
_AMOUNT = r"\d[\d,]*(?:\.\d+)?\s?[A-Za-z]{1,12}"
_SUM_OF_UNITS = rf"(?<![\w.]){_AMOUNT}(?:,?\s(?:and\s)?{_AMOUNT}){{1,3}}\b"
"""Amounts that may be one: 2 hours and 30 minutes."""
_RAISED = r"(?:\^(?:\(-?\d+\)|\{-?\d+\}|-?\d+)|[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)"
_ROOT = r"(?:[√∛]\s?(?:\d+(?:\.\d+)?|\(\d+\))|\bsqrt\(\d+\)|\b(?:log|ln) \d+)"
_COMPOUND = (
    rf"(?<![\w.^_])[-−]?(?:{NUMBER}\s?[×x*·]\s?10{_RAISED}|\d+(?:\.\d+)?{_RAISED}"
    rf"|(?:(?:{_WHOLE_PART}(?=\d+/\d))?{NUMBER}(?:\s?/\s?\d+)?\s?)?(?:{_ROOT}|π|\bpi\b)(?:\s?/\s?\d+)?)"
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
    rf"-?\s?(?:{_WHOLE_PART})?\\[dtc]?frac\s?"
    r"(?:\{[^{}\n]{1,80}\}\s?\{[^{}\n]{1,80}\}|\d\d)|-?\d{0,20}\s?\\sqrt\s?\{[^{}\n]{1,80}\}"
)
_SENTENCE_END = re.compile(r"(?<!\b[ap]\.m)(?<!\b[ap]\.m\n)(?:[.!?](?=\s+[A-Z\[(*#]|\s*$)|[。！？]|\n)")
_IS = re.compile(
    r"(?:\b(?:is|are|be|equals)\b(?:\s+(?:equal to|approximately|about|exactly|therefore|thus))?"
    r"|[=≈]|(?<!\d):|:(?! ?\d))\s*",
    re.IGNORECASE,
)
REASON = re.compile(
    r",?\s{1,5}(?:because|since|as it|which|so that)\b.*$|,\s{1,5}so\b.*$"
    r"|,?\s{1,5}(?:and|or|but)$",
    re.IGNORECASE | re.DOTALL,
)
"""A clause that gives a reason, as in "Ann, because she has 5"."""
_LEADING = re.compile(
    r"^(?:(?:but|either|both|rather|simply|just|indeed|now|then|actually|therefore|thus|hence)\b,?\s+)+",
    re.IGNORECASE,
)
_OPTION = re.compile(
    r"^(?:option|choice|alternative|letter)\s\**(?:\((?P<a>[A-Z])\)|(?P<b>[A-Z]))\**(?:[\s.,:)=*]+|$)", re.IGNORECASE
)
"""What stands before the text of an option: option D: 7 apples."""
_MINUS = re.compile(r"^(?:minus|negative)\s+(?=[$€£]?[\d.])", re.IGNORECASE)
_NO_WORDS = re.compile(
    r"(?<=[\d)}])(?:and|or)(?=[A-Za-z(\d])|\\(?:text|mathrm|textbf|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+"
)
_FORMULA_WORDS = ("and", "or", "sqrt", "pi", "sin", "cos", "tan", "ln", "log")

Formula = tuple[int, int, str]
"""Where a formula begins and ends with its delimiters, and what stands between them."""


def last_box(response: str) -> tuple[str, int] | None:
    r"""The content of the last `\boxed{}` and where it ends; boxes joined by commas, "and" or "or" are one list."""
    boxes = list(islice(_boxes(response), _MAX_BOXES))
    texts = [text for _, _, text in boxes[:1]]
    for (start, _, _), (_, end, text) in pairwise(boxes):
        gap = _GAP_NOISE.sub(" ", response[end:start].rstrip("\\")) if start - end <= 60 else "…"
        if not (CONNECTOR.match(gap) or _CONNECTING.match(gap)):
            break
        texts.append(text)
    return (", ".join(dict.fromkeys(reversed(texts))), boxes[0][1]) if boxes else None


def behind_empty_box(response: str) -> str | None:
    """What follows the last box if nothing is in it: an answer that was begun and not given. None if it has content."""
    start = max(response.rfind("\\boxed"), response.rfind("\\fbox"))
    match = _EMPTY_BOX.match(response, start) if start >= 0 else None
    return response[match.end() :] if match else None


def _boxes(text: str) -> Iterator[Formula]:
    """Boxes with something in them, from the last to the first."""
    for match in reversed(list(_BOX.finditer(text))):
        start, end = _braced(text, match.end())
        content = text[start:end].strip()
        if len(content) <= MAX_CHARACTERS and not _PLACEHOLDER.match(content):
            yield match.start(), min(end + 1, len(text)), content


def _braced(text: str, start: int) -> tuple[int, int]:
    r"""Where the content of `{…}` lies; a brace left open ends at the line or the formula; `\boxed 5` has none."""
    opening = _OPENING.match(text, start)
    if not opening or opening["bare"]:
        return opening.span("bare") if opening else (start, start)
    start, depth = opening.end(), 1
    for i in range(start, min(len(text), start + MAX_CHARACTERS + 1)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return start, i
    end = re.compile(r"\n|\$|\\\]|\\\)").search(text, start)
    return start, end.start() if end else min(len(text), start + MAX_CHARACTERS - 1)


def pick(text: str) -> str | None:
    """The answer in what follows "the answer is": a formula, a number with its unit, a letter, a few words."""
    text = text.strip().strip("*_ ").strip()
    if box := last_box(text):
        return box[0]
    formulas = _formulas(text)
    if formulas and formulas[0][0] == 0:
        return _joined(text, formulas)
    sentence = _LEADING.sub("", first_sentence(text).strip().strip("*_\"' ").strip())
    sentence = _OPTION.sub(lambda match: f"({(match['a'] or match['b']).upper()}) ", sentence).strip()
    sentence = _without_remark(_MINUS.sub("-", REASON.sub("", sentence.rstrip(" ,"))))
    if letters := _LETTERS.match(sentence):
        return letters[0]
    if letter := _LETTER.match(sentence):
        mark, value = letter[0] + sentence[letter.end() : letter.end() + 1], sentence[letter.end() :].lstrip(" :")
        has_text = value and set(mark) & set("():") and is_answer(value)
        return f"({letter[1]}) {value}" if has_text else letter[1]
    if sentence and is_answer(sentence):
        return sentence
    if whole := re.match(DATE, sentence) or _BASED.match(sentence):
        return whole[0]
    for match in reversed(list(_IS.finditer(sentence))):
        rest = sentence[match.end() :].strip()
        is_stated = rest and (rest[0].isdigit() or rest[0] in "$\\-+([.£€" or is_answer(rest))
        if is_stated and not any(start < match.start() < end for start, end, _ in formulas):
            return pick(rest)
    number = next(_numbers(sentence), None)
    if formulas and formulas[0][0] < len(sentence):
        return number[0].strip() if number and number.start() == 0 else _joined(text, formulas)
    if number:
        follows = sentence[number.end() :].strip()
        if follows and parse_quantity(clean(sentence[number.start() :])):
            return sentence[number.start() :].strip()
        word = follows.partition(" ")[0]
        return number[0].strip() + (f" {word}" if read_unit(word) else "")
    return sentence if 0 < len(sentence) <= 100 else None


def pick_last(text: str) -> str | None:
    """The rightmost formula or number outside formulas; of an equation in words the part behind the equals sign."""
    text = _without_remark(text)
    formulas = _formulas(text)
    numbers = [m for m in _numbers(text) if not any(s <= m.start() < e for s, e, _ in formulas)]
    while formulas and not re.search(r"[\w\\]", formulas[-1][2]):
        formulas.pop()
    if formulas and (not numbers or numbers[-1].start() < formulas[-1][0]):
        first = len(formulas) - 1
        while first and CONNECTOR.match(text[formulas[first - 1][1] : formulas[first][0]]):
            first -= 1
        return _joined(text, formulas[first:])
    if not numbers:
        return None
    number = numbers[-1]
    for pattern in (DATE, _SUM_OF_UNITS, _COMPOUND):
        whole = [m[0] for m in re.finditer(pattern, text) if m.start() <= number.start() < m.end()]
        if whole and (pattern is not _SUM_OF_UNITS or parse_quantity(clean(whole[-1]))):
            return whole[-1]
    return number[0].strip()


def is_answer(text: str) -> bool:
    """Whether a text is an answer and no sentence: a number, a moment, a formula, a single word."""
    plain = clean(text).replace("$", "").rstrip(". ").strip()
    if parse_quantity(plain) or _RATIO_IN_WORDS.fullmatch(plain) or is_moment(plain):
        return True
    words = re.findall(r"[^\W\d_]{2,}", _NO_WORDS.sub(" ", text))
    return len([word for word in words if word.lower() not in _FORMULA_WORDS]) <= (not re.search(r"\d|\\", text))


def first_sentence(text: str) -> str:
    """Up to the first full stop outside a formula that ends a sentence."""
    formulas = [match.span() for match in MATH.finditer(text)]
    ends = (match.start() for match in _SENTENCE_END.finditer(text))
    return text[: next((at for at in ends if not any(start < at < end for start, end in formulas)), None)]


def _numbers(text: str) -> Iterator[re.Match[str]]:
    """The numbers in a text; 5 10/2 are two, as the fraction of a mixed number is below one."""
    position = 0
    while match := _NUMBER.search(text, position):
        if match["top"] and not 0 < int(match["top"]) < int(match["below"]):
            match = _UNMIXED.match(text, match.start()) or match
        yield match
        position = match.end()


def _formulas(text: str) -> list[Formula]:
    pattern = MATH if MATH.search(text) else _BARE_LATEX
    return [(*m.span(), next((g for g in m.groups() if g is not None), m[0]).strip()) for m in pattern.finditer(text)]


def _joined(text: str, formulas: list[Formula]) -> str:
    """The first formula and those joined to it by commas, "and", "or"; a percent sign behind it belongs to it."""
    parts = [formulas[0][2]]
    for (_, end, _), (start, _, part) in pairwise(formulas):
        if not CONNECTOR.match(text[end:start]):
            break
        parts.append(part)
    percent = re.match(r"\s*\\?%|\s*percent\b", text[formulas[0][1] :]) if len(parts) == 1 else None
    return ", ".join(parts) + ("%" if percent else "")


def _without_remark(sentence: str) -> str:
    """ "15 students (60% of them)" without the remark in brackets, if a number or formula is left."""
    rest = _REMARK.sub("", sentence)
    return rest if _NUMBER.search(rest) or _formulas(rest) else sentence
