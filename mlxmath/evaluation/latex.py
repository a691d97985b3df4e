"""Text with LaTeX in it as HTML with MathML, which browsers show by themselves.

A model's text is hostile: everything is escaped, and of MathML only known elements and attributes come through.
"""

import html
import re
from functools import lru_cache
from xml.etree import ElementTree

from mlxmath.runtime.console import harmless

MATH = re.compile(  # 2000 is LONGEST: else each beginning without an end would be followed through the whole text
    r"\$\$(?P<display>.{1,2000}?)\$\$"
    r"|\\\[(?P<bracket>.{1,2000}?)\\\]"
    r"|\\\((?P<paren>.{1,2000}?)\\\)"
    r"|(?P<environment>\\begin\{(?P<name>align\*?|aligned|equation\*?|gather\*?|cases|[pbvV]?matrix)\}.{1,2000}?\\end\{(?P=name)\})"
    # one line, no blank inside the marks, no digit behind them: "$5 and $6" is money
    r"|(?<![\\$])\$(?!\s)(?P<inline>[^$\n]{1,2000}?)(?<![\s\\])\$(?![\d$])"
    r"|(?P<boxed>\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})",
    re.DOTALL,
)
LONGEST = 2000
_ELEMENTS = frozenset(
    re.findall(
        r"\w+",
        "math mrow mi mo mn mtext mspace msup msub msubsup mfrac msqrt mroot mover munder munderover mtable mtr mtd "
        "mstyle mpadded mphantom mmultiscripts mprescripts none merror ms",
    )
)
_ATTRIBUTES = frozenset(
    re.findall(
        r"\w+",
        "display displaystyle scriptlevel mathvariant stretchy fence separator form accent accentunder linethickness "
        "width height depth lspace rspace minsize maxsize symmetric largeop movablelimits columnspan rowspan",
    )
)
_VALUE = re.compile(r"[-\w.%# ]{0,40}")


def to_html(text: str) -> str:
    """Escaped text with its formulas as MathML; a formula that cannot be read stays as its source."""
    text = harmless(text)
    parts, end = [], 0
    for match in MATH.finditer(text):
        kind, source = next((k, found) for k, found in match.groupdict().items() if found is not None)
        made = formula(source, kind in ("display", "bracket", "environment"))
        parts += [html.escape(text[end : match.start()]), made or f'<code class="tex">{html.escape(match[0])}</code>']
        end = match.end()
    return "".join([*parts, html.escape(text[end:])])


def answer_to_html(text: str) -> str:
    """A final answer: a formula if it looks like one, else text."""
    text = harmless(text)
    return (formula(text.strip().strip("$")) if set(text) & set("\\^_") else None) or html.escape(text)


@lru_cache(maxsize=4096)
def formula(source: str, display: bool = False) -> str | None:
    """LaTeX as MathML; None if it cannot be read."""
    element = tree(source, display)
    return None if element is None else ElementTree.tostring(element, encoding="unicode")


def tree(source: str, display: bool = False) -> ElementTree.Element | None:
    """LaTeX as a tree of MathML's known elements; None if it cannot be read."""
    if len(source) > LONGEST or source.count("{") > 200:
        return None
    from latex2mathml.converter import convert_to_element

    try:
        return _clean(convert_to_element(source.strip(), display="block" if display else "inline"))
    except Exception:  # a converter of untrusted text fails in its own ways; the source is shown then
        return None


def _clean(element: ElementTree.Element) -> ElementTree.Element:
    """A copy of known elements and attributes only; an unknown element becomes a row of its children."""
    name = element.tag.rpartition("}")[2]
    found = ElementTree.Element(name if name in _ELEMENTS else "mrow")
    found.attrib |= {k: v for k, v in element.attrib.items() if k in _ATTRIBUTES and _VALUE.fullmatch(v)}
    if name == "menclose":
        found.set("class", "boxed")
    if name == "math":
        found.set("xmlns", "http://www.w3.org/1998/Math/MathML")
    if name == "mtd" and element.get("columnalign") in ("left", "right"):
        found.set("class", element.attrib["columnalign"])
    found.text = harmless(html.unescape(element.text)) if element.text else None  # an entity may be anything
    found.extend(map(_clean, element))
    return found
