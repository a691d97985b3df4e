"""One spelling for what can be written in several ways: LaTeX spacing and fonts, Unicode, markdown, delimiters."""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from itertools import accumulate

MAX_CHARACTERS = 2000
"""No final answer is longer; longer ones are compared as text alone."""

_UNICODE = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "\u2011": "-", "\u2012": "-", "﹣": "-", "－": "-",
    "＋": "+", "×": "\\times ", "÷": "\\div ", "·": "\\cdot ", "⋅": "\\cdot ",
    "∗": "*", "•": "\\cdot ", "∙": "\\cdot ", "⁄": "/", "∕": "/", "π": "\\pi ",
    "∞": "\\infty ", "∪": "\\cup ", "∩": "\\cap ",
    "∈": "\\in ", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "±": "\\pm ",
    "°": "^\\circ ", "º": "^\\circ ",
    "½": "\\frac{1}{2}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}",
    "⅕": "\\frac{1}{5}", "⅖": "\\frac{2}{5}", "⅗": "\\frac{3}{5}", "⅘": "\\frac{4}{5}", "⅙": "\\frac{1}{6}",
    "⅛": "\\frac{1}{8}", "⅜": "\\frac{3}{8}", "⅝": "\\frac{5}{8}", "⅞": "\\frac{7}{8}",
    "⅚": "\\frac{5}{6}", "⅐": "\\frac{1}{7}", "⅑": "\\frac{1}{9}", "⅒": "\\frac{1}{10}",
    "％": "%", "＄": "$", "，": ",", "．": ".", "：": ":", "（": "(", "）": ")", "［": "[", "］": "]", "＝": "=",
    "∅": "\\emptyset ", "٫": ".", "٬": ",", "、": ",",
    "‘": "'", "’": "'", "“": '"', "”": '"', "\u00a0": " ", "\u2009": " ", "\u202f": " ",
    **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
}  # fmt: skip
_CONTROL = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF))
_TRANSLATION = str.maketrans(_UNICODE) | _CONTROL
_ROOTS = {"√": "\\sqrt", "∛": "\\sqrt[3]", "∜": "\\sqrt[4]"}
_RAISED, _LOWERED, _PLAIN = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙᵢ", "0123456789+-()ni"

Match = re.Match[str]
Rule = tuple[re.Pattern[str], str | Callable[[Match], str]]


def as_count(match: Match) -> str:
    r"""Combinations as `\binom{n}{k}`, permutations as n!/(n-k)!."""
    n, k = match["n"], match["k"]
    return f"\\binom{{{n}}}{{{k}}}" if match["kind"] == "C" else f"\\frac{{{n}!}}{{({n}-{k})!}}"


def _root(match: Match) -> str:
    """`√16` as a root of all of 16, `√(x+1)` with its bracket."""
    return _ROOTS[match[1]] + (f"{{{match[2].replace(',', '.')}}}" if match[2] else " ")


def _script(mark: str, signs: str, match: Match) -> str:
    text = match[0].translate(str.maketrans(signs, _PLAIN))
    return mark + (text if len(text) == 1 else f"{{{text}}}")


def _system(match: Match) -> str:
    """A system of equations as a list."""
    return ", ".join(row.replace("&", "").strip(" ,;") for row in match[1].split("\\\\") if row.strip())


def _round_brackets(match: Match) -> str:
    """`]0, 1]`, as intervals are written in French and German, as `(0, 1]`."""
    return ("(" if match[1] == "]" else "[") + match[2] + (")" if match[3] == "[" else "]")


def rules(*pairs: tuple[str, str | Callable[[Match], str]]) -> list[Rule]:
    """Patterns, compiled, and what to put in their places."""
    return [(re.compile(pattern), plain) for pattern, plain in pairs]


def replaced(text: str, table: Iterable[Rule]) -> str:
    """The text after all rules, one after the other."""
    for pattern, plain in table:
        text = pattern.sub(plain, text)
    return text


_SIGNS = rules(
    (r"(?<![\w)\]}])⁻(?=[\d⁰¹²³⁴⁵⁶⁷⁸⁹])", "-"),
    (r"([√∛∜])\s*(?:(\d+(?:[.,]\d+)?|[A-Za-z]|\([^()]*\))|(?=[\\({])|(?=\S))", _root),
    (rf"[{_RAISED}]+", partial(_script, "^", _RAISED)),
    (rf"[{_LOWERED}]+", partial(_script, "_", _LOWERED)),
)
_TEXT_MACRO = (
    r"\\(?:text(?:bf|it|rm|normal|tt|sf)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|operatorname\*?|emph|boldsymbol|bm)"
    r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}",
    r" \1 ",
)
_SPELLINGS = rules(
    (r"\\\\(?=(?:frac|dfrac|tfrac|sqrt|left|right|text|pi|cdot|times|boxed|in|le|ge|infty|cup|circ|%)\b)", r"\\"),
    (r"\\!\s*", ""),
    (
        r"\\(?:hat|widehat|vec|mathbf|boldsymbol|bm|bf)\s*"
        r"(?:\{\s*(?:\\(?:mathbf|boldsymbol|bm|hat|vec)\s*\{\s*\\?(?P<a>[ijk])(?:math)?\s*\}"
        r"|\\?(?P<b>[ijk])(?:math)?)\s*\}|\\?(?P<c>[ijk])(?:math)?(?![A-Za-z]))",
        r"\\hat{\g<a>\g<b>\g<c>}",
    ),
    (r"\\[lcd]?dots[a-z]?(?![A-Za-z])|\.{3,}", "…"),
    # delimiters, money, markdown
    (r"\b(?:US|CA?|AU?|HK|NZ)(?=\\?\$\s?\d)", ""),
    (r"^\s*(-?)\\?\$\s*(-?[\d.,]*\d)\s*$", r"\1\2 dollars"),
    (r"\\\$", ""),
    (r"\$", ""),
    (r"\\[()]", ""),
    (r"\\[\[\]]", lambda match: match[0] if "\\\\[" in match.string else ""),  # a row's end and its bracket
    (r"\{\s*([,:=])\s*\}", r"\1"),
    (r"\*\*", lambda match: "^" if re.search(r"\d\s*\*\*\s*\d", match.string) else ""),
    (r"`", ""),
    (r"\\([%#&])", r"\1"),
    (r"(?s)^\\begin\{(?:cases|aligned|array)\}(?:\{[lcr|]*\})?(.*?)\\end\{(?:cases|aligned|array)\}$", _system),
    # fonts, sizes, spaces
    (r"\\(?:f?boxed|fbox)\s*(?=\{)", ""),
    (r"\\(?:text)?color\s*\{[^{}]*\}|\\underline(?![A-Za-z])", ""),
    (
        r"\\(?:left|right|displaystyle|textstyle|scriptstyle|limits|bigl?|bigr|Bigl?|Bigr|biggl?|biggr|Biggl?|Biggr)"
        r"(?![A-Za-z])\s*",
        "",
    ),
    (r"(?<!\\)\\(?:[,;: ]|q?quad|hspace\*?\{[^{}]*\})|~", " "),
    (
        r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|(?<=\d)\s*\^\s*(?:\{\s*(?:\\(?:text|mathrm)\s*\{\s*o\s*\}|o)\s*\}|o(?![A-Za-z]))"
        r"|\\(?:text)?degree(?![A-Za-z])|(?<=[\d ])\\deg(?![A-Za-z])",
        "°",
    ),
    *[_TEXT_MACRO] * 3,
    # one command for each meaning
    (r"\\(?:[dtcsx]|nice)frac(?![A-Za-z])", r"\\frac"),
    (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
    (r"\\num\s*\{([^{}]*)\}", r"\1"),
    (r"\+\s?/\s?-", r"\\pm "),
    (r"\\pounds(?![A-Za-z])\s*", "£"),
    (r"\\euro(?![A-Za-z])(?:\{\})?\s*", "€"),
    (r"\\lg(?![A-Za-z])", r"\\log_{10}"),
    # {}_5C_2, C_5^2, C^2_5; the same with P
    (r"(?<![\w}])(?:\{\s*\}\s*)?[_^]\s*\{?\s*(?P<n>\w+)\s*\}?\s*(?P<kind>[CP])\s*_\s*\{?\s*(?P<k>\w+)\s*\}?", as_count),
    (r"(?<![\\\w])(?P<kind>[CP])\s*_\s*\{?\s*(?P<n>\d+)\s*\}?\s*\^\s*\{?\s*(?P<k>\d+)\s*\}?", as_count),
    (r"(?<![\\\w])(?P<kind>[CP])\s*\^\s*\{?\s*(?P<k>\d+)\s*\}?\s*_\s*\{?\s*(?P<n>\d+)\s*\}?", as_count),
    (r"\\leq?slant|\\leq(?![A-Za-z])|<=", r"\\le "),
    (r"\\geq?slant|\\geq(?![A-Za-z])|>=", r"\\ge "),
    (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\s+", " "),
)
_AROUND = rules(
    (r"([\[\]])(\s*[^\s\[\](),;][^\[\](),;]{0,60}[,;]\s*[^\s\[\](),;][^\[\](),;]{0,60})([\[\]])", _round_brackets),
    (r"^\s*(?:\\approx|\\sim|\\simeq)(?![A-Za-z])\s*", ""),
    (r"(?<=\d)\s?…\.?$", "…"),
)
_PARAMETER_WORDS = (
    r"any|all|every|each|some|an?|arbitrary|real|rational|complex|constants?|numbers?|integers?|values?|of"
)
_FOR_ALL = re.compile(  # "for any constant c", "where k is an integer", "k \\in \\mathbb{Z}"
    rf"\s*[,;]?\s*\(?\s*(?:(?:for|where|with)\s+(?:(?:{_PARAMETER_WORDS})\s+){{1,5}}[A-Za-z](?:\s*(?:,|and)\s*[A-Za-z])*"
    rf"|where\s+[A-Za-z]\s+is\s+(?:(?:{_PARAMETER_WORDS})\s*){{1,5}}"
    r"|(?<=[,;(\s])(?:(?:for|where)\s+)?[A-Za-z](?=\s*\\in\s*\\mathbb))"
    r"(?:\s*\\in\s*\\mathbb\s*\{?\s*[A-Z]\s*\}?)?\s*\)?$"
)
_EMPTY_SET = re.compile(r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}|^(?:the )?(?:empty|null) set$", re.IGNORECASE)


def clean(text: str) -> str:
    """Unicode signs as ASCII or LaTeX, control characters gone. For text of any length."""
    return text.translate(_CONTROL) if text.isascii() else replaced(text, _SIGNS).translate(_TRANSLATION)


@lru_cache(maxsize=4096)
def normalize(answer: str) -> str:
    """An answer without delimiters, fonts, spacing commands, markdown and final full stop."""
    text = replaced(clean(answer[: MAX_CHARACTERS + 1]).strip(), _SPELLINGS)
    text = replaced(text.strip(" \"'"), _AROUND)
    while text.endswith((".", ",", ";", ":")) and not re.search(r"\b[ap]\.\s?m\.$", text, re.IGNORECASE):
        text = text[:-1].rstrip()
    text = _FOR_ALL.sub("", text) or text
    for _ in range(3):  # `{1,2}` is `1,2`: braces only group in LaTeX (a set is `\\{1,2\\}`)
        if text.startswith("{") and text.endswith("}") and not text.endswith("\\}") and is_enclosed(text, "{", "}"):
            text = text[1:-1].strip()
    return _EMPTY_SET.sub(r"\\emptyset", text)


def squeeze(text: str) -> str:
    """Normalized text without blanks (but those between digits) and without braces around single signs."""
    return re.sub(r"\{(\w)\}", r"\1", re.sub(r"(?<!\d) | (?!\d)", "", text))


def is_enclosed(text: str, opening: str, closing: str) -> bool:
    """Whether the bracket that begins a text closes with its last sign."""
    depths = list(accumulate((sign in opening) - (sign in closing) for sign in text))
    return depths[-1:] == [0] and 0 not in depths[:-1]
