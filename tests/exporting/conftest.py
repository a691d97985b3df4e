"""What tests of exporting share."""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mlxmath.exporting.go_template import Message


@pytest.fixture(scope="session")
def go(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Sequence[Sequence[Message]]], list[str]]:
    """Renders with Go's text/template."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    program = tmp_path_factory.mktemp("go") / "render"
    source = Path(__file__).with_name("ollama_render.go")
    subprocess.run(["go", "build", "-o", program, source], check=True, timeout=300)

    def render(template: str, conversations: Sequence[Sequence[Message]]) -> list[str]:
        given = json.dumps({"Template": template, "Conversations": conversations})
        done = subprocess.run([program], input=given, capture_output=True, text=True, timeout=60, check=True)
        found: list[str] = json.loads(done.stdout)
        return found

    return render
