"""One spelling for what can be written in several ways: LaTeX spacing and fonts, Unicode, markdown, delimiters."""

import re
from functools import partial

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
_RAISED, _LOWERED, _PLAIN = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙᵢ", "0123456789+-()ni"
_SCRIPTS = (
    (re.compile(rf"[{_RAISED}]+"), "^", str.maketrans(_RAISED, _PLAIN)),
    (re.compile(rf"[{_LOWERED}]+"), "_", str.maketrans(_LOWERED, _PLAIN)),
)
_RAISED_SIGN = re.compile(r"(?<![\w)\]}])⁻(?=[\d⁰¹²³⁴⁵⁶⁷⁸⁹])")
_ROOT = re.compile(r"([√∛∜])\s*(?:(\d+(?:[.,]\d+)?|[A-Za-z]|\([^()]*\))|(?=[\\({])|(?=\S))")
_ROOTS = {"√": "\\sqrt", "∛": "\\sqrt[3]", "∜": "\\sqrt[4]"}
_CONTROL = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF))
_TRANSLATION = str.maketrans(_UNICODE) | _CONTROL

_TEXT_MACRO = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|tt|sf)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|operatorname\*?|emph|boldsymbol|bm)"
    r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_SIZES = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|scriptstyle|limits|bigl?|bigr|Bigl?|Bigr|biggl?|biggr|Biggl?|Biggr)(?![A-Za-z])\s*"
)
_NEGATIVE_SPACE = re.compile(r"\\!\s*")
_SPACES = re.compile(r"(?<!\\)\\(?:[,;: ]|q?quad|hspace\*?\{[^{}]*\})|~")
_DOUBLED = re.compile(
    r"\\\\(?=(?:frac|dfrac|tfrac|sqrt|left|right|text|pi|cdot|times|boxed|in|le|ge|infty|cup|circ|%)\b)"
)
_DEGREE = re.compile(
    r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|(?<=\d)\s*\^\s*(?:\{\s*(?:\\(?:text|mathrm)\s*\{\s*o\s*\}|o)\s*\}|o(?![A-Za-z]))"
    r"|\\(?:text)?degree(?![A-Za-z])|(?<=[\d ])\\deg(?![A-Za-z])"
)
_FRACTION = re.compile(r"\\(?:[dtcsx]|nice)frac(?![A-Za-z])")
_PLUS_OR_MINUS = re.compile(r"\+\s?/\s?-")
_NUM = re.compile(r"\\num\s*\{([^{}]*)\}")
_MONEY_MACROS = ((re.compile(r"\\pounds(?![A-Za-z])\s*"), "£"), (re.compile(r"\\euro(?![A-Za-z])(?:\{\})?\s*"), "€"))
_LG = re.compile(r"\\lg(?![A-Za-z])")
_BINOMIAL = re.compile(r"\\[dt]binom(?![A-Za-z])")
_BRACED_MARK = re.compile(r"\{\s*([,:=])\s*\}")
_ABOUT = re.compile(r"^\s*(?:\\approx|\\sim|\\simeq)(?![A-Za-z])\s*")
_DOLLARS = re.compile(r"^\s*(-?)\\?\$\s*(-?[\d.,]*\d)\s*$")
_SYSTEM = re.compile(
    r"^\\begin\{(?:cases|aligned|array)\}(?:\{[lcr|]*\})?"
    r"(.*?)\\end\{(?:cases|aligned|array)\}$",
    re.DOTALL,
)
_COUNTS = (  # {}_5C_2, C_5^2, C(5,2); the same with P
    re.compile(r"(?<![\w}])(?:\{\s*\}\s*)?[_^]\s*\{?\s*(?P<n>\w+)\s*\}?\s*(?P<kind>[CP])\s*_\s*\{?\s*(?P<k>\w+)\s*\}?"),
    re.compile(r"(?<![\\\w])(?P<kind>[CP])\s*_\s*\{?\s*(?P<n>\d+)\s*\}?\s*\^\s*\{?\s*(?P<k>\d+)\s*\}?"),
    re.compile(r"(?<![\\\w])(?P<kind>[CP])\s*\^\s*\{?\s*(?P<k>\d+)\s*\}?\s*_\s*\{?\s*(?P<n>\d+)\s*\}?"),
)
_COLOR = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}|\\underline(?![A-Za-z])")
_EMPTY_SET = re.compile(r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}|^(?:the )?(?:empty|null) set$", re.IGNORECASE)
_DOLLAR_OF = re.compile(r"\b(?:US|CA?|AU?|HK|NZ)(?=\\?\$\s?\d)")
_GOES_ON = re.compile(r"(?<=\d)\s?…\.?$")
_TURNED_BRACKETS = re.compile(
    r"([\[\]])(\s*[^\s\[\](),;][^\[\](),;]{0,60}[,;]\s*[^\s\[\](),;][^\[\](),;]{0,60})([\[\]])"
)
_UNIT_VECTOR = re.compile(
    r"\\(?:hat|widehat|vec|mathbf|boldsymbol|bm|bf)\s*(?:\{\s*(?:\\(?:mathbf|boldsymbol|bm|hat|vec)\s*\{\s*\\?(?P<a>[ijk])(?:math)?\s*\}"
    r"|\\?(?P<b>[ijk])(?:math)?)\s*\}|\\?(?P<c>[ijk])(?:math)?(?![A-Za-z]))"
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
_DOTS = re.compile(r"\\[lcd]?dots[a-z]?(?![A-Za-z])|\.{3,}")
_BOXED = re.compile(r"\\(?:f?boxed|fbox)\s*(?=\{)")
_RELATIONS = (
    (re.compile(r"\\leq?slant|\\leq(?![A-Za-z])|<="), r"\\le "),
    (re.compile(r"\\geq?slant|\\geq(?![A-Za-z])|>="), r"\\ge "),
    (re.compile(r"\\neq(?![A-Za-z])|!="), r"\\ne "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
)
_BLANKS = re.compile(r"\s+")


def clean(text: str) -> str:
    """Unicode signs as ASCII or LaTeX, control characters gone. For text of any length."""
    if text.isascii():
        return text.translate(_CONTROL)
    text = _ROOT.sub(_root, _RAISED_SIGN.sub("-", text))
    for pattern, mark, digits in _SCRIPTS:
        text = pattern.sub(partial(_script, mark, digits), text)
    return text.translate(_TRANSLATION)


def _root(match: re.Match[str]) -> str:
    """`√16` as a root of all of 16, `√(x+1)` with its bracket."""
    return _ROOTS[match[1]] + (f"{{{match[2].replace(',', '.')}}}" if match[2] else " ")


def _script(mark: str, digits: dict[int, int], match: re.Match[str]) -> str:
    text = match[0].translate(digits)
    return mark + (text if len(text) == 1 else f"{{{text}}}")


def normalize(answer: str) -> str:
    """An answer without delimiters, fonts, spacing commands, markdown and final full stop."""
    text = clean(answer[: MAX_CHARACTERS + 1]).strip()
    text = _DOUBLED.sub(r"\\", text)
    text = _NEGATIVE_SPACE.sub("", text)
    text = _DOTS.sub("…", _UNIT_VECTOR.sub(_unit_vector, text))
    text = _DOLLARS.sub(r"\1\2 dollars", _DOLLAR_OF.sub("", text))
    text = text.replace("\\$", "").replace("$", "").replace("\\(", "").replace("\\)", "")
    text = text.replace("\\[", "").replace("\\]", "") if "\\\\[" not in text else text
    text = _BRACED_MARK.sub(r"\1", text).replace("**", "^" if re.search(r"\d\s*\*\*\s*\d", text) else "")
    text = text.replace("`", "").replace("\\%", "%").replace("\\#", "#").replace("\\&", "&")
    if system := _SYSTEM.match(text):
        text = ", ".join(row.replace("&", "").strip(" ,;") for row in system[1].split("\\\\") if row.strip())
    text = _COLOR.sub("", _BOXED.sub("", text))
    text = _SIZES.sub("", text)
    text = _SPACES.sub(" ", text)
    text = _DEGREE.sub("°", text)
    for _ in range(3):
        replaced = _TEXT_MACRO.sub(r" \1 ", text)
        if replaced == text:
            break
        text = replaced
    text = _BINOMIAL.sub(r"\\binom", _FRACTION.sub(r"\\frac", text))
    text = _PLUS_OR_MINUS.sub(r"\\pm ", _NUM.sub(r"\1", text))
    for pattern, sign in _MONEY_MACROS:
        text = pattern.sub(sign, text)
    text = _LG.sub(r"\\log_{10}", text)
    for notation in _COUNTS:
        text = notation.sub(as_count, text)
    for pattern, sign in _RELATIONS:
        text = pattern.sub(sign, text)
    text = _TURNED_BRACKETS.sub(_round_brackets, _BLANKS.sub(" ", text).strip(" \t\n\"'"))
    text = _GOES_ON.sub("…", _ABOUT.sub("", text))
    while text.endswith((".", ",", ";", ":")) and not re.search(r"\b[ap]\.\s?m\.$", text, re.IGNORECASE):
        text = text[:-1].rstrip()
    if shorter := _FOR_ALL.sub("", text):
        text = shorter
    return _EMPTY_SET.sub(r"\\emptyset", _without_outer_braces(text))


def squeeze(text: str) -> str:
    """Normalized text without blanks (but those between digits) and without braces around single signs."""
    return re.sub(r"\{(\w)\}", r"\1", re.sub(r"(?<!\d) | (?!\d)", "", text))


def _unit_vector(match: re.Match[str]) -> str:
    r"""`\mathbf{i}`, `\hat{\imath}` as `\hat{i}`."""
    return f"\\hat{{{match['a'] or match['b'] or match['c']}}}"


def as_count(match: re.Match[str]) -> str:
    r"""Combinations as `\binom{n}{k}`, permutations as n!/(n-k)!."""
    n, k = match["n"], match["k"]
    return f"\\binom{{{n}}}{{{k}}}" if match["kind"] == "C" else f"\\frac{{{n}!}}{{({n}-{k})!}}"


def _round_brackets(match: re.Match[str]) -> str:
    """`]0, 1]`, as intervals are written in French and German, as `(0, 1]`."""
    opening, items, closing = match.groups()
    return ("(" if opening == "]" else "[") + items + (")" if closing == "[" else "]")


def _without_outer_braces(text: str) -> str:
    r"""`{1,2}` as `1,2`: braces only group in LaTeX (a set is `\{1,2\}`)."""
    for _ in range(3):
        if not (text.startswith("{") and text.endswith("}") and not text.endswith("\\}") and _closes_at_end(text)):
            break
        text = text[1:-1].strip()
    return text


def _closes_at_end(text: str) -> bool:
    depth = 0
    for position, sign in enumerate(text):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth == 0:
            return position == len(text) - 1
    return False
