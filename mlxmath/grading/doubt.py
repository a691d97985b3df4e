"""Recursive doubt: does a response go round in circles instead of on?"""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from mlxmath.grading.extract import THOUGHT_END
from mlxmath.grading.faithfulness import CALCULATOR, prepare

NGRAM = 8
MAX_REPEATED_NGRAMS = 0.2
_SHORT_NGRAMS = 80
_MAX_REPEATED_NGRAMS_SHORT = 0.35
"""In a text of fewer 8-grams one honest parallel sentence already gives 0.2."""
MAX_COMPUTATIONS = 3
MAX_PERIOD = 128
MIN_PERIODS = 3
MIN_MARKERS = 3
MAX_NULL_DOUBT = 0.5
_MIN_NGRAMS = 24
_MIN_TAIL_TOKENS = 12
_MIN_TAIL_TOKENS_WITHOUT_WORDS = 32
_MAX_CHARACTERS = 100_000

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|\w+|[^\w\s]")
_MARKER = re.compile(
    r"(?:^|(?<=[.!?:;…\n>*\"”)]))[ \t\"“*(]{0,6}(?:(?:but|and|so|oh|okay|ok|hmm{1,9}|well|no|ah)[, .…]{1,4})?"
    r"(?:wait|hold on|hang on|hmm+|hm|no(?=\s*[,.!…]|\s+wait)|nope|actually|oops|scratch that|on second thought|"
    r"let me (?:re-?\s?(?:check|do|think|consider|calculate|compute|examine|read|count|verify)|double[- ]check|"
    r"check (?:that|this|it|again)|start over|try again|think again|reconsider|go back)|"
    r"i (?:made|think i made) (?:a|an) (?:mistake|error)|that(?:'s| is|’s) (?:not right|wrong|incorrect)|"
    r"(?:that|this) (?:doesn't|does not|can't|cannot) (?:seem |be |look )?(?:right|correct)|am i sure|"
    r"i(?:'m| am) not sure|maybe not)\b",
    re.IGNORECASE | re.MULTILINE,
)
_COMPUTATION = re.compile(
    r"(?P<left>(?<![\d.,()$%])[-+]?[(\d$][\d.,()$% ]{0,40}(?:[-+*/^x×÷] ?[-(\d$][\d.,()$% ]{0,40}){1,20})="
    r" ?\$?(?P<right>-?[\d,]*\.?\d+)"
)
_FORMULA = re.compile(r"[\w)\]}%'$][ \t]*=[ \t]*[-\w$(\\.]")
_STATED = re.compile(
    r"\b(?:answer|result|total|it|that|this)\b[^.\n=:]{0,40}?(?:\b(?:is|must be|should be|equals|was)\b|[:=])"
    r"\s{0,5}\*{0,3}\$?\s{0,5}(-?\d[\d,]*(?:\.\d+)?)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


@dataclass(frozen=True)
class Doubt:
    """The five measures and the verdict."""

    num_markers: int
    """Sentences that begin with "wait", "hold on", "hmm", "no", "actually" and the like."""
    markers_per_1000_tokens: float
    """D1."""
    max_same_computation: int
    """D2: how often the most frequent computation is carried out."""
    repeated_ngrams: float
    """D3: 1 - distinct / all 8-grams of words."""
    tail_period: int | None
    """D4: tokens after which the end of the text repeats itself, at least three times; None if it does not."""
    answer_flips: int
    """D5: how often a stated answer differs from the one stated before."""
    null_doubt: float
    """D5: share of the markers that nothing but already seen equations and numbers follow."""
    reasons: tuple[str, ...]

    @property
    def flagged(self) -> bool:
        """The tail or an 8-gram share or a computation repeats, or doubt keeps coming back without anything new."""
        return bool(self.reasons)


def doubt(response: str) -> Doubt:
    """Measure repetition and unproductive doubt in a response, its thinking included.

    One "Wait" that leads to something new does not flag a text; loops do.
    """
    text = CALCULATOR.sub("", response[-_MAX_CHARACTERS:])
    tokens = [token.lower() for token in _TOKEN.findall(text)]
    markers = [match.start() for match in _MARKER.finditer(text)]
    # An answer sums up its thinking: computations count apart in the two.
    computations = max(map(_max_same_computation, THOUGHT_END.split(text)))
    ngrams = _repeated_ngrams(text.lower().split())
    period = _tail_period(tokens) or _tail_period(tokens[:-1])  # a last word may be cut off
    null_doubt = _null_doubt(text, markers)
    stated = [match[1].replace(",", "") for match in _STATED.finditer(text)]
    is_short = len(text.split()) < _SHORT_NGRAMS + NGRAM - 1
    reasons = {
        "repeating tail": period is not None,
        "same computation again": computations >= MAX_COMPUTATIONS,
        "repeated phrases": ngrams > (_MAX_REPEATED_NGRAMS_SHORT if is_short else MAX_REPEATED_NGRAMS),
        "doubt without progress": len(markers) >= MIN_MARKERS and null_doubt >= MAX_NULL_DOUBT,
    }
    return Doubt(
        num_markers=len(markers),
        markers_per_1000_tokens=1000 * len(markers) / len(tokens) if tokens else 0.0,
        max_same_computation=computations,
        repeated_ngrams=ngrams,
        tail_period=period,
        answer_flips=sum(a != b for a, b in pairwise(stated)),
        null_doubt=null_doubt,
        reasons=tuple(reason for reason, holds in reasons.items() if holds),
    )


def _max_same_computation(text: str) -> int:
    """Most occurrences of one computation, `12 * 3 = 36` and `12 x 3 = 36` being the same."""
    counts = Counter(
        re.sub(r"[\s$,]", "", match[0]).replace("x", "*")
        for line in prepare(text).split("\n")
        if "=" in line
        for match in _COMPUTATION.finditer(re.sub(r"[ \t]+", " ", line[:20_000]))
    )
    return max(counts.values(), default=0)


def _repeated_ngrams(words: list[str]) -> float:
    num_ngrams = len(words) - NGRAM + 1
    if num_ngrams < _MIN_NGRAMS:
        return 0.0
    distinct = len({tuple(words[i : i + NGRAM]) for i in range(num_ngrams)})
    return 1 - distinct / num_ngrams


def _tail_period(tokens: list[str]) -> int | None:
    """The shortest period with which the last tokens repeat three times or more."""
    for period in range(1, min(MAX_PERIOD, len(tokens) // MIN_PERIODS) + 1):
        has_words = any(token.isalpha() for token in tokens[-period:])
        wanted = max(MIN_PERIODS * period, _MIN_TAIL_TOKENS if has_words else _MIN_TAIL_TOKENS_WITHOUT_WORDS)
        if wanted <= len(tokens) and tokens[-wanted:-period] == tokens[period - wanted :]:
            return period
    return None


def _null_doubt(text: str, markers: list[int]) -> float:
    """Share of markers up to whose successor no new equation and no new number appears."""
    if not markers:
        return 0.0
    num_null = 0
    seen = _content(text[: markers[0]])
    for start, end in zip(markers, [*markers[1:], len(text)], strict=True):
        fresh = _content(text[start:end]) - seen
        num_null += not fresh
        seen |= fresh
    return num_null / len(markers)


def _content(text: str) -> set[str]:
    """Numbers, and the sides of equations around their signs, as they stand."""
    around = (text[max(0, match.start() - 12) : match.end() + 8] for match in _FORMULA.finditer(text))
    return {number.replace(",", "") for number in _NUMBER.findall(text)} | {re.sub(r"\s+", "", side) for side in around}
