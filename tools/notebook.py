"""Makes examples/quickstart.ipynb out of examples/quickstart.py: `python tools/notebook.py`.

The docstring and the comments that begin a part become text, the parts cells, without output.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
SCRIPT, NOTEBOOK = (REPOSITORY / "examples" / f"quickstart.{ending}" for ending in ("py", "ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook_of(script: str) -> dict[str, Any]:
    """The notebook with the text and code cells of a script."""
    docstring = ast.get_docstring(ast.parse(script))
    assert docstring
    parts = [part.strip("\n") for part in re.split(r"\n(?=# )", script.split('"""', 2)[2])]
    cells = [_text(f"# Quick start\n\n{docstring}\n\n`pip install mlxmath` first; README.md says more.")]
    for part in parts:
        comment, code = re.fullmatch(r"((?:# [^\n]*\n)*)(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
        if comment:
            cells.append(_text(comment.replace("# ", "").strip()))
        cells.append(
            {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": _lines(code)}
        )
    numbered = [{"id": f"cell-{i}", **cell} for i, cell in enumerate(cells)]
    return {"cells": numbered, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def _text(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": _lines(source)}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    made = notebook_of(SCRIPT.read_text(encoding="utf-8"))
    NOTEBOOK.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
