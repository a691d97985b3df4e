"""Text and tables in LaTeX. Whatever a name holds, it is text there: no command, no formula, no comment."""

import re
import unicodedata
from collections.abc import Sequence

from mlxmath.runtime.console import printable

_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
    "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "→": r"$\rightarrow$", "≤": r"$\leq$", "≥": r"$\geq$",
    "–": r"\textendash{}", "—": r"\textemdash{}", "…": r"\dots{}", "·": r"\textperiodcentered{}", "÷": r"$\div$",
    "“": r"\textquotedblleft{}", "”": r"\textquotedblright{}",
    "‘": r"\textquoteleft{}", "’": r"\textquoteright{}", "€": r"\texteuro{}",
    "°": r"\textdegree{}", "²": "$^2$", "µ": r"\textmu{}", "√": r"$\surd$", "α": r"$\alpha$", "β": r"$\beta$",
}  # fmt: skip
_LIGATURES = re.compile(r"([-!?,<>])(?=[-`'!?,<>])")
"""Pairs that TeX's fonts make one sign of."""
_BREAKS = re.compile(r"([/=,.:-]|\\_)(?=[^\s{}]{3})")
COMMANDS = frozenset(re.findall(r"\\[A-Za-z]+", "".join(_ESCAPES.values())))
"""What escaped text may hold."""


def escaped(value: object) -> str:
    """A value as LaTeX shows it, on one line. What pdflatex's fonts lack is named by its number, as [U+4E2D]."""
    text = " ".join(printable(str(value)).split())
    return "".join(map(_sign, _LIGATURES.sub("\\1\0", text)))


def _sign(sign: str) -> str:
    if sign == "\0":
        return "{}"
    if sign in _ESCAPES:
        return _ESCAPES[sign]
    if sign.isascii() or "À" <= sign <= "ÿ":
        return sign
    plain = "".join(one for one in unicodedata.normalize("NFKD", sign) if not unicodedata.combining(one))
    if plain.isascii() and plain.isprintable() and plain:
        return "".join(_ESCAPES.get(one, one) for one in plain)
    return rf"[U+{ord(sign):04X}]\allowbreak{{}}"


def code(value: object) -> str:
    """A command or a path, which may break at its separators."""
    text = _BREAKS.sub(r"\1\\allowbreak{}", escaped(value)).replace("-{}-", r"\mbox{-{}-}")
    return rf"\texttt{{{text}}}"


def table(
    heads: Sequence[str], rows: Sequence[Sequence[object]], caption: str, label: str, *, columns: str = ""
) -> str:
    """A floating table with booktabs: text on the left, figures on the right.

    Args:
        heads: of the columns.
        rows: values, which are escaped.
        caption: likewise.
        label: ours, for references.
        columns: LaTeX's column types (empty: the first one text, the others figures).
    """
    columns = columns or "l" + "r" * (len(heads) - 1)
    lines = [
        r"\begin{table}[htbp]", r"  \centering\small", rf"  \caption{{{escaped(caption)}}}",
        rf"  \label{{tab:{label}}}",
        rf"  \begin{{tabular}}{{@{{}}{columns}@{{}}}}", r"    \toprule", f"    {_line(heads)}", r"    \midrule",
        *(f"    {_line(row)}" for row in rows), r"    \bottomrule", r"  \end{tabular}", r"\end{table}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _line(values: Sequence[object]) -> str:
    return " & ".join(map(escaped, values)) + r" \\"


def figure(file: str, caption: str, label: str) -> str:
    """A floating picture; `file` is a name of ours."""
    return (
        f"\\begin{{figure}}[htbp]\n  \\centering\n  \\includegraphics[width=\\linewidth]{{{file}}}\n"
        f"  \\caption{{{escaped(caption)}}}\n  \\label{{fig:{label}}}\n\\end{{figure}}\n"
    )


def document(title: str, parts: Sequence[str]) -> str:
    """A whole document that takes in files of ours; each can be \\input from another one with the same packages."""
    return "\n".join([
        r"\documentclass[11pt]{article}", r"\usepackage[T1]{fontenc}", r"\usepackage[utf8]{inputenc}",
        r"\usepackage{textcomp}",
        r"\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}",r"\usepackage[margin=2.2cm]{geometry}",
        r"\usepackage{booktabs}", r"\usepackage{array}", r"\usepackage{graphicx}",
        r"\setlength{\emergencystretch}{4em}", r"\setlength{\belowcaptionskip}{5pt}",
        rf"\title{{{escaped(title)}}}", r"\date{}", r"\begin{document}", r"\maketitle",
        *(rf"\input{{{name}}}" for name in parts), r"\end{document}", "",
    ])  # fmt: skip
