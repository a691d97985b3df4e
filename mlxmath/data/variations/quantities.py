"""The numbers of a question: where each stands, what it counts, and which must stay as they are.

A number stays where something else than arithmetic fixes it: a clock, a date, a model's name, what a thing always has
(legs of a dog), a conversion ("12 inches in a foot"), or that it occurs twice, in figures or in words.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction

from mlxmath.data.variations.arithmetic import NUMBER, number_of

_NUMERAL = re.compile(
    rf"(?P<money>\$\s?)?(?P<number>{NUMBER})(?:\s?/\s?(?P<below>\d+))?(?P<percent>\s?%|[ -]percent\b)?"
)
_CLOCK_OR_WORD = re.compile(r"[A-Za-z]|:\d|\s?(?:[ap]\.?m\b|o'clock)")
_NAMES = (
    ("a an one once single", 1), ("two twice double doubled doubles pair pairs couple both second", 2),
    ("three thrice triple tripled triples third thirds trio", 3),
    ("four quadruple quadrupled fourth fourths", 4), ("five fifth fifths", 5), ("six sixth sixths", 6),
    ("seven seventh sevenths week weeks weekly", 7), ("eight eighth eighths", 8), ("nine ninth ninths", 9),
    ("ten tenth tenths decade decades", 10), ("eleven", 11), ("twelve dozen dozens", 12), ("thirteen", 13),
    ("fourteen", 14), ("fifteen", 15), ("sixteen", 16), ("seventeen", 17), ("eighteen", 18), ("nineteen", 19),
    ("twenty", 20), ("thirty", 30), ("forty", 40), ("fifty", 50), ("sixty", 60), ("seventy", 70), ("eighty", 80),
    ("ninety", 90), ("hundred", 100), ("thousand", 1000), ("million", 10**6),
)  # fmt: skip
WORDS = {word: Fraction(value) for words, value in _NAMES for word in words.split()}
"""Number words, and words that bring a number along."""
_PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4} | {
    word: int(value) for word, value in WORDS.items() if value > 2 and re.search(r"(?:rd|th)s?$", word)
}  # fmt: skip
_USUAL = (
    (r"\b(?:days?|daily|weeks?|weekly|weekdays?|weekends?|\w+days?)\b", (7, 5, 14)),
    (r"\b(?:months?|monthly|years?|yearly|annual\w*)\b", (12, 4, 52, 365, 30)),
    (r"\b(?:hours?|hourly|minutes?|seconds?|\d ?[ap]\.?m)\b", (60, 3600, 12, 24)),
    (r"\b(?:days?|daily)\b", (24, 30, 31, 365)), (r"\b(?:dozens?|inch(?:es)?|foot|feet)\b", (12,)),
    (r"%|\bpercent|\bcents?\b|\b(?:discount|tax|interest|penn(?:y|ies)|meters?|centimeters?)\b|\$\.", (100,)),
    (r"\b(?:quarters?)\b", (25, 4)), (r"\bdimes?\b", (10,)), (r"\bnickels?\b", (5,)), (r"\byards?\b", (3, 36)),
    (r"\b(?:pounds?|ounces?)\b", (16,)), (r"\bgallons?\b", (4, 8, 16, 128)), (r"\bquarts?\b|\bpints?\b", (2, 4)),
    (r"\b(?:kilo\w+|km|kg|grams?|ml|liters?|milli\w+|thousand)\b", (1000,)), (r"\bdegrees?|triangle\b", (90, 180, 360)),
    (r"\b(?:square|rectang\w+)\b", (4,)), (r"\btriang\w+\b", (3,)), (r"\bcentur(?:y|ies)\b", (100,)),
)  # fmt: skip
"""What a question must speak of, and the numbers that it then brings along."""
_MONTH = r"January|February|March|April|May|June|July|August|September|October|November|December"
_FIXED_BEFORE = re.compile(
    rf"(?:\b(?:{_MONTH}|[Gg]rade|[Ll]evel|[Rr]oom|[Pp]age|[Nn]umber|[Cc]hapter|[Rr]oute|[Hh]ighway|[Ss]ize|[Ll]eague"
    r"|[Dd]ay|[Ww]eek|[Yy]ear|[Ss]tage|[Tt]ype|[Qq]uestion|[Bb]ox|[Bb]us|[Gg]ame|[Tt]eam|[Gg]roup|[Cc]lass|[Cc]lub|[Pp]lan|[Ss]tep"
    r"|[Aa]partment|[Pp]iece|[Ff]loor|[Ll]ine|[Ll]ap|[Mm]ountain|[Cc]hannel|[Gg]rades|[Ll]evels|[Dd]ays|[Ww]eeks|iPhone|[Cc]hild"
    r"|since|until|till|circa|year of)|#|\bin(?= (?:1[5-9]|20)\d\d\b)|\d\s?[:/-])\s?$"
)  # fmt: skip
_THINGS = (
    r"legs?|legged|wheels?|wheeled|wheeler|strings?|sides?|sided|eyes?|fingers?|toes?|ears?|paws?|"
    r"feet|wings?|horns?|humps?|letters?|quarters?|halves|innings?|periods?|suits?|states|degrees?|"
    r"holes?|bills?|coins?|notes?|pointers?|points?|syllables?|oceans|continents|planets|strikes?|"
    r"tentacles?|corners|vertices"
)
"""What has always as many of it."""
_FIXED_UNIT = re.compile(
    rf"[\s-]*(?:{_THINGS})\b|[\s-]*(?:dollar|cent)s?\s+(?:bill|coin|note|stamp)s?\b"
    r"|-(?:dollar|cent)\b|:\d|\s?out of\b|\s?in (?:every )?\d|\s?to \d|\s?-\s?\d|\s?x\s?\d|\s?by \d|\s?[*+×=]"
    r"|\s(?:and\s)?\d+\s?/\s?\d"
)
_ONE = "(?:a|an|one|1|each|every)"
_CONVERSION = re.compile(
    rf"there (?:are|is) [\d,.]+ \w+ (?:in|per) {_ONE} \w+"
    r"|(?:1|one|an?) \w+ (?:is|are|=|equals|has|contains|weighs) (?:about |equal to )?[\d,.]+ \w+"
    r"|[\d,.]+ (?:inches|feet|ounces|grams|pounds|cups|pints|quarts|tablespoons|teaspoons|cents|minutes|seconds|hours"
    rf"|days|weeks|months|milliliters|centimeters|meters|pennies) (?:in|per|to|make|makes|is|are|=) {_ONE} (?:foot|yard"
    r"|mile|pound|ton|gallon|quart|pint|cup|liter|meter|kilometer|kilogram|dollar|hour|minute|day|week|month|year"
    r"|tablespoon)\b",
    re.IGNORECASE,
)
_TIME_BEFORE = re.compile(r"\b(?:at|by|before|after|from|to)\s$")
_TIME_BEHIND = re.compile(r"\s?(?:[.,?!;]|in the|to \d|and\b|on\b|$)")
_SOME_OF = re.compile(r"\b(?:\d+|one|two|three|four|five|six) of (?:them|which|these|those|whom)\b", re.IGNORECASE)
_FEW = 10
"""Where a text says "2 of them", a number up to this one may be what they are of."""
_NEAR = 60
"""Characters before and behind a number that may say what it is."""
_VOWEL_SOUND = re.compile(r"(?:8|11(?:,|\.|$|[^\d])|18(?:,|\.|$|[^\d])|11,?\d\d\d$|18,?\d\d\d$)")
_ARTICLE = re.compile(r"\b(?P<article>an?)\s+\$?$", re.IGNORECASE)


@dataclass(frozen=True)
class Numeral:
    """A number in figures."""

    start: int
    end: int
    text: str
    """The figures alone."""
    value: Fraction
    percent: bool
    money: bool
    unit: str
    """The word behind it, in small letters."""
    fixed: str | None
    """Why it stays as it is; None where it may change."""
    article: str | None
    """"a" or "an", where one stands before it."""

    @property
    def decimals(self) -> int:
        """Digits behind the point."""
        return len(self.text.partition(".")[2])

    def written(self, value: Fraction) -> str:
        """Another value the way that this one is written."""
        text = f"{float(value):,.{self.decimals}f}" if "," in self.text else f"{float(value):.{self.decimals}f}"
        return text.removeprefix("0") if self.text.startswith(".") else text

    def fits_article(self, value: Fraction) -> bool:
        """Whether "a" or "an" stays right."""
        if self.article is None:
            return True
        return (self.article == "an") == bool(_VOWEL_SOUND.match(self.written(value)))


@dataclass(frozen=True)
class Question:
    """A question's numbers."""

    text: str
    numerals: tuple[Numeral, ...]
    words: frozenset[Fraction]
    """Values of number words, and what these say of parts: 1/2 of "half"."""
    usual: frozenset[Fraction]
    """What the units that it speaks of bring along: 7 where there are weeks."""

    def with_values(self, values: dict[int, Fraction]) -> str:
        """The text with other values of some numerals, by their number."""
        text = self.text
        for i in sorted(values, reverse=True):
            numeral = self.numerals[i]
            text = text[: numeral.start] + numeral.written(values[i]) + text[numeral.end :]
        return text


def numbers_of(text: str) -> Question:
    """Find the numbers of a question."""
    conversions = [match.span() for match in _CONVERSION.finditer(text)]
    counts_some = bool(_SOME_OF.search(text))
    found: list[Numeral] = []
    words = _word_values(text.lower())
    for match in _NUMERAL.finditer(text):
        value = number_of(match["number"])
        before, behind = text[max(0, match.start() - _NEAR) : match.start()], text[match.end() : match.end() + _NEAR]
        fixed = _why_fixed(match, before, behind)
        if fixed is None and any(start <= match.start() and match.end() <= end for start, end in conversions):
            fixed = "a conversion"
        if fixed is None and counts_some and value <= _FEW and not match["money"]:
            fixed = "some of them are counted"
        if match["below"] and int(match["below"]):
            below = int(match["below"])
            words |= _of_part(value, below)
            if whole := re.search(r"(\d+)\s(?:and\s)?$", before):
                words.add(Fraction(whole[1]) + value / below)
        if fixed:
            words.add(value)
        article, unit = _ARTICLE.search(before), re.match(r"[\s-]*([A-Za-z]+)", behind)
        found.append(
            Numeral(
                match.start("number"), match.end("number"), match["number"], value, bool(match["percent"]),
                bool(match["money"]), unit[1].lower() if unit else "", fixed,
                article["article"].lower() if article else None,
            )
        )  # fmt: skip
    counts = Counter(numeral.value for numeral in found)
    numerals = [
        replace(n, fixed=n.fixed or ("occurs twice" if counts[n.value] > 1 or n.value in words else None))
        for n in found
    ]
    lower = text.lower()
    usual = {Fraction(value) for pattern, values in _USUAL if re.search(pattern, lower) for value in values}
    return Question(text, tuple(numerals), frozenset(words), frozenset(usual))


def _why_fixed(match: re.Match[str], before: str, behind: str) -> str | None:
    """What else than arithmetic a number is there for; None if nothing is known."""
    is_amount = match["money"] or match["percent"]
    value = number_of(match["number"])
    if match["below"]:
        return "a fraction"
    if _CLOCK_OR_WORD.match(behind) or re.search(r"[\w.:]$", before):
        return "part of a word, a clock or an ordinal"
    if not is_amount and _FIXED_BEFORE.search(before):
        return "a name or a date"
    if not is_amount and _TIME_BEFORE.search(before) and _TIME_BEHIND.match(behind):
        return "a time"
    if _FIXED_UNIT.match(behind):
        return "a constant of its thing"
    return "too small" if value <= 2 and value.denominator == 1 else None


def _of_part(above: Fraction, below: int) -> set[Fraction]:
    """What a solution may make of 2/3: itself and its numbers, what is left, what it is with one more."""
    part = above / below
    return {above, Fraction(below), part, 1 - part, below - above, 1 + part, below + above, Fraction(1, below)}


def _word_values(lower: str) -> set[Fraction]:
    """Values of the number words, of tens with ones, of parts ("three fourths", "a third", "half")."""
    words = re.findall(r"[a-z]+", lower)
    found = {WORDS[word] for word in words if word in WORDS}
    for i, word in enumerate(words):
        if word in _PARTS:
            found |= _of_part(Fraction(1), _PARTS[word])
            found |= _of_part(WORDS.get(words[i - 1], Fraction(1)) if i else Fraction(1), _PARTS[word])
        if word in WORDS and i:
            tens, ones = WORDS.get(words[i - 1], Fraction(0)), WORDS[word]
            if tens and tens % 10 == 0 and tens < 100 and 0 < ones < 10:
                found.add(tens + ones)
            if ones in (100, 1000, 10**6) and tens:
                found.add(tens * ones)
            if word in ("dozen", "dozens") and tens:
                found.add(tens * 12)
    found |= {Fraction(1), Fraction(2)}
    return {value for value in found if value > 0}
