"""What is imported is declared in pyproject.toml, and what is declared is imported; tests do not import each other."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READ_BY_OTHERS = {"sentencepiece"}
"""Not imported here: transformers needs it for some tokenizers."""
STUDIO = {"starlette", "uvicorn"}
TOOLS = {"mlxmath/demo": {"torch"}, "mlxmath/studio": STUDIO}
"""What needs an extra: the scripts that make the bundled base model, and the studio."""
TRACKERS = {"tensorboard", "wandb", "trackio"}
"""What `--report-to` names: each the extra of its name, imported by one file."""


def imported() -> dict[str, set[str]]:
    """Top-level module -> the files that import it, anywhere in them."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "mlxmath").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                found.setdefault(name.partition(".")[0], set()).add(path.relative_to(ROOT).as_posix())
    return {name: files for name, files in found.items() if name not in {*sys.stdlib_module_names, "mlxmath"}}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_imports_are_the_declared_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {plain(re.split(r"[\s<>=!~;\[]", entry, maxsplit=1)[0]) for entry in project["dependencies"]}
    distributions = metadata.packages_distributions()
    used = set()
    for module, files in imported().items():
        if any(module in names and all(file.startswith(f"{part}/") for file in files) for part, names in TOOLS.items()):
            continue
        if module in TRACKERS:
            assert files == {"mlxmath/runtime/tracker_services.py"}
            continue
        names = {plain(name) for name in distributions.get(module, [module])}
        assert names & declared, f"{sorted(files)[0]} imports {module}, which is not declared"
        used |= names & declared
    assert declared - used == READ_BY_OTHERS


def test_each_tracker_is_an_extra() -> None:
    from mlxmath.config.training import TRACKERS as NAMES
    from mlxmath.runtime.tracker_services import TRACKERS as BY_NAME

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(NAMES) == set(BY_NAME) == TRACKERS
    assert all(re.split("[<>=]", extras[name][0])[0] == name for name in TRACKERS)


def test_mlx_on_a_mac_is_new_enough() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "mlx>=0.32.4; sys_platform == 'darwin'" in project["dependencies"]


def test_no_test_imports_from_another_test() -> None:
    """What they share stands in conftest.py, or in modules that are no tests."""
    found = []
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module or ''}.{name}" for name in names]
            for name in names:
                parts = name.split(".")
                if parts[0] == "tests" and any(part.startswith("test_") for part in parts[1:]):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert not found


def test_the_studio_is_an_extra_and_the_command_names_what_is_missing() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    declared = {re.split("[<>=]", entry)[0].replace("-", "_") for entry in extras["studio"]}
    assert declared == STUDIO | {"python_multipart"}  # which starlette reads forms with
    command = (ROOT / "mlxmath/commands/studio.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in command for name in declared)
