"""Makes examples/quickstart.ipynb out of examples/quickstart.py, with what it prints: `python tools/notebook.py`.

The docstring and the comments that begin a part become text, the parts cells. They run here in a folder of their own.
"""

import ast
import contextlib
import io
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
SCRIPT, NOTEBOOK = (REPOSITORY / "examples" / f"quickstart.{ending}" for ending in ("py", "ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cells_of(script: str) -> list[dict[str, Any]]:
    """Text and code cells, not run yet."""
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
    return [{"id": f"cell-{i}", **cell} for i, cell in enumerate(cells)]


def run(cells: list[dict[str, Any]]) -> None:
    """Execute the code cells one after the other, and put what they print into them."""
    names: dict[str, Any] = {"__name__": "__main__"}
    code_cells = [cell for cell in cells if cell["cell_type"] == "code"]
    for number, cell in enumerate(code_cells, 1):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)  # noqa: S102
        cell["execution_count"] = number
        if text := printed.getvalue():
            cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": _lines(text)}]


def _text(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": _lines(source)}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    made = cells_of(SCRIPT.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run(made)
    notebook = {"cells": made, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
