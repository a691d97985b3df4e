"""LaTeX as plain Unicode that people can read: `\\frac{1}{2} x^2` as `1/2 x²`. Of the MathML that the report shows."""

import re
from collections.abc import Iterable
from functools import lru_cache
from xml.etree.ElementTree import Element

from mlxmath.evaluation.latex import tree

_SUPERSCRIPTS = dict(
    zip(
        "0123456789+-−=()abcdefghijklmnoprstuvwxyzT∘°′",
        "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᵀ°°′",
        strict=True,
    )
)
_SUBSCRIPTS = dict(zip("0123456789+-−=()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ", strict=True))
_ACCENTS = {"^": "\u0302", "~": "\u0303", "¯": "\u0305", "―": "\u0305", "_": "\u0305", "˙": "\u0307", "¨": "\u0308",
            "→": "\u20d7"}  # fmt: skip
_ROOTS = {"3": "∛", "4": "∜"}
_SPACED = frozenset("=<>≤≥≠≈≡∼≅∝→⇒⇔↔←↦∈∉⊂⊆⊃∪∩∧∨+−-±∓×÷⋅·∗∣≪≫⟹⟺")
"""Operators with a space on both sides, unless they are signs."""
_ATOM = re.compile(r"\d[\d.,]*|[^\W\d]\W{0,2}")
"""What needs no parentheses in a fraction or as an exponent."""
_ENVIRONMENT = re.compile(r"\\begin\{(align|aligned|gather|equation)(\*?)\}(?P<body>.*)\\end\{\1\2\}", re.DOTALL)
_ROW = re.compile(r"\\\\(?:\[[^]\n]*\])?")


@lru_cache(maxsize=1024)
def to_text(source: str) -> str | None:
    """A formula's LaTeX, without the marks around it, as text; None if it cannot be read."""
    if found := _ENVIRONMENT.fullmatch(source.strip()):
        rows = [to_text(re.sub(r"(?<!\\)&", "", row)) for row in _ROW.split(found["body"]) if row.strip()]
        return None if None in rows else "\n".join(filter(None, rows))
    element = tree(source)
    return None if element is None else re.sub(" {2,}", " ", _text(element)).strip()


def _text(element: Element) -> str:
    """An element as text."""
    name, parts = element.tag, list(element)
    match name:
        case "mfrac":
            over, under = map(_text, parts)
            if element.get("linethickness") == "0":
                return f"{over} choose {under}"
            return f"{_grouped(over)}/{_grouped(under)}"
        case "msqrt":
            return f"√{_grouped(_row(parts))}"
        case "mroot":
            root = _text(parts[1])
            return f"{_ROOTS.get(root) or _script(root, _SUPERSCRIPTS, '') + '√'}{_grouped(_text(parts[0]))}"
        case "msup":
            return _base(parts[0]) + _script(_text(parts[1]), _SUPERSCRIPTS, "^")
        case "msub" | "munder":
            return _base(parts[0]) + _script(_text(parts[1]), _SUBSCRIPTS, "_")
        case "mover":
            return _accented(_text(parts[0]), _text(parts[1]).strip())
        case "msubsup" | "munderover":
            lower, upper = _script(_text(parts[1]), _SUBSCRIPTS, "_"), _script(_text(parts[2]), _SUPERSCRIPTS, "^")
            return f"{_base(parts[0])}{lower}{upper}"
        case "mtable":
            return "; ".join(", ".join(map(_text, row)) for row in parts)
        case "mspace":
            return " "
        case "mphantom":
            return ""
        case "mi" | "mn" | "mo" | "mtext" | "ms":
            return (element.text or "").replace("\xa0", " ")
    return f"[ {_row(parts).strip()} ]" if element.get("class") == "boxed" else (element.text or "") + _row(parts)


def _row(elements: Iterable[Element]) -> str:
    """Neighbours, with spaces where they would run together."""
    parts = list(elements)
    written, before = "", ""
    for number, element in enumerate(parts):
        text, name = _text(element), element.tag
        if name in ("mo", "mi") and text in _SPACED:
            is_sign = before in ("", "open") and text in "+−-±∓"
            written += text if is_sign else f" {text} "
            before = "open"
        elif text == ",":
            following = _text(parts[number + 1]) if number + 1 < len(parts) else ""
            is_of_a_number = before == "mn" and len(following) == 3 and following.isdigit()
            written += "," if is_of_a_number or not following else ", "
            before = "open"
        elif name == "mo" and text in ("(", "[", "{", ";"):
            written, before = written + text, "open"
        elif text:
            kind = _kind(element)
            apart = "word" in (kind, before) or "mfrac" in (kind, before) or kind == before == "mn"
            written += f" {text}" if apart and written[-1:].isalnum() and text[0].isalnum() else text
            before = kind
    return written


def _kind(element: Element) -> str:
    """The element's name; "word" of a function's name (`sin`, also with an index) and of sums and integrals."""
    while element.tag in ("mstyle", "mrow", "mpadded") and len(element) == 1:
        element = element[0]
    first = next((one for one in element.iter() if one.text), element)
    is_word = first.tag in ("mi", "mo") and len(first.text or "") > 1
    return "word" if is_word or (first.tag == "mo" and element.tag != "mo") else element.tag


def _base(element: Element) -> str:
    """What has an exponent or an index."""
    text = _text(element)
    return text if element.tag in ("mi", "mn", "mo", "mtext", "mover") else _grouped(text)


def _grouped(text: str) -> str:
    """In parentheses, unless it is a number, a name or a letter."""
    return text if not text or _ATOM.fullmatch(text) or _encloses(text) else f"({text})"


def _encloses(text: str) -> bool:
    """Whether one pair of parentheses goes around all of it."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place == len(text) - 1 and text[0] == "("
    return False


def _script(text: str, table: dict[str, str], mark: str) -> str:
    """Raised or lowered, where there are characters for it; else behind a mark."""
    tight = text.replace(" ", "")
    if all(character in table for character in tight):
        return "".join(table[character] for character in tight)
    return f"{mark}{_grouped(text.strip())}"


def _accented(text: str, accent: str) -> str:
    """Letters under an accent; others with what is over them as an exponent."""
    if accent in _ACCENTS and 0 < len(text) <= 3:
        return "".join(character + _ACCENTS[accent] for character in text)
    return text + _script(accent, _SUPERSCRIPTS, "^")
