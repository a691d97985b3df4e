"""The programs that are shown run: docs/python.md, and the quick start as a script and as a notebook."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.helpers import ENVIRONMENT, REPOSITORY

EXAMPLES = REPOSITORY / "examples"


def printed(folder: Path, program: str) -> str:
    """What a program prints that is run in a folder as a user would, by itself; it must end well."""
    (folder / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "program.py"], cwd=folder, env=ENVIRONMENT, capture_output=True,
        text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def notebook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebook", REPOSITORY / "tools" / "notebook.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code(cells: list[dict[str, Any]]) -> list[str]:
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def shortened(program: str) -> str:
    """The quick start with fewer steps and problems."""
    short = program.replace("max_steps=300", "max_steps=3").replace("limit=40", "limit=2, max_tokens=16")
    assert len(short) == len(program) - 2 + 14
    return short


def test_the_pages_program_runs(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "python.md").read_text()
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    checks = """
assert error_text.startswith("lora_rnk=: unknown setting; did you mean 'lora_rank'?"), error_text
assert losses == again, (losses, again)
assert verdict.correct and verdict.extracted and len(answers) == 2 and found.accuracy.keys() == {"base", "tuned"}
assert preferred.steps == scorer.steps == 2 and plan.fits and folder.name == "small"
assert kept.paths["solutions.jsonl"].is_file()
"""
    program = program.replace("    print(error)", "    error_text = str(error)\n    print(error)")
    straight = "losses = [event"
    program = program.replace(
        straight, "again = [e['loss'] for e in first.events if e['event'] == 'step']\n" + straight
    )
    assert "finished 4" in printed(tmp_path, program.replace("result = ", "first = result = ", 1) + checks)


def test_the_quick_start_runs_as_a_script(tmp_path: Path) -> None:
    lines = printed(tmp_path, shortened((EXAMPLES / "quickstart.py").read_text())).splitlines()
    assert lines[0].startswith("3000 {'") and lines[1].startswith("finished after 3 steps") and lines[-1] == "True"


def test_the_quick_start_is_short_and_the_notebook_is_the_same_program(tmp_path: Path, notebook: ModuleType) -> None:
    script = (EXAMPLES / "quickstart.py").read_text()
    lines = [line for line in script.splitlines() if line.strip() and not line.startswith(("#", '"""'))]
    assert len(lines) < 25
    found = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    assert found == notebook.notebook_of(script), "run `python tools/notebook.py`"
    assert ast.dump(ast.parse("\n".join(code(found["cells"])))) == ast.dump(ast.parse(script.split('"""', 2)[2]))
    assert "finished after 3 steps" in printed(tmp_path, shortened("\n".join(code(found["cells"]))))


@pytest.mark.slow
def test_the_quick_start_makes_the_model_better(tmp_path: Path) -> None:
    script = (
        EXAMPLES / "quickstart.py"
    ).read_text() + "\nassert found.accuracy['tuned'] > found.accuracy['base'] + 0.1\n"
    printed(tmp_path, script)
