"""A minimal reader of our LaTeX: what it would have TeX do, without TeX."""

import re

COMMANDS = {
    "documentclass", "usepackage", "IfFileExists", "setlength", "emergencystretch", "belowcaptionskip", "title", "date",
    "begin", "end", "maketitle", "input", "centering", "small", "caption", "label", "toprule", "midrule", "bottomrule",
    "includegraphics", "linewidth", "clearpage", "section", "textbf", "texttt", "allowbreak", "medskip", "mbox",
    "textbackslash", "textasciicircum", "textasciitilde", "textless", "textgreater", "textbar", "textquotedbl",
    "textasciigrave", "textquotesingle", "pm", "times", "rightarrow", "leq", "geq", "textendash", "textemdash", "dots",
    "textperiodcentered", "textquotedblleft", "textquotedblright", "textquoteleft", "textquoteright", "texteuro",
    "div", "textdegree", "textmu", "surd", "alpha", "beta",
}  # fmt: skip
"""All that our files may ask of TeX; `input` is checked by its argument."""
ENVIRONMENTS = {"document", "table", "tabular", "figure", "flushleft"}


def check(text: str) -> None:
    """Refuse what TeX would stumble over, or what is no command of ours.

    Raises:
        AssertionError: braces or environments do not pair, a row has another number of cells than its table has
            columns, a special sign stands by itself, a command is none of ours.
    """
    signs = re.findall(r"\\[A-Za-z]+|\\[^A-Za-z]|[{}%#$&^~]", text)
    names = {sign[1:] for sign in signs if re.fullmatch(r"\\[A-Za-z]+", sign)}
    assert names <= COMMANDS, names - COMMANDS
    assert not {"%", "#", "~"} & set(signs) and signs.count("^") == text.count("$^2$")
    depth = 0
    for sign in signs:
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0 and signs.count("$") % 2 == 0
    for name in re.findall(r"\\input\{([^}]*)\}", text):
        assert re.fullmatch(r"[a-z0-9/-]+\.tex", name), name
    open_ones: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        assert name in ENVIRONMENTS
        if kind == "begin":
            open_ones.append(name)
        else:
            assert open_ones.pop() == name
    assert not open_ones
    for columns, body in re.findall(r"\\begin\{tabular\}\{@\{\}(.*?)@\{\}\}\n(.*?)\\end\{tabular\}", text, re.DOTALL):
        count = len(re.sub(r"p\{[^}]*\}", "p", columns))
        rows = [row for row in re.sub(r"\\(top|mid|bottom)rule", "", body).split(r"\\") if row.strip()]
        assert rows and all(len(re.findall(r"(?<!\\)&", row)) == count - 1 for row in rows)
