"""README.md, docs/ and examples/: what they mention exists, and what they measure is what was measured."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import click
import pytest

from mlxmath.cli import COMMANDS
from mlxmath.cli import main as group
from tests.helpers import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = [
    REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")),
    *sorted((REPOSITORY / "examples").glob("*.md")),
]  # fmt: skip
OF_OTHERS = {
    "--adapter-path", "--apply_chat_template", "--chat-template", "--dequantize", "--gpus", "--lora", "--hostfile",
    "--model",
    "--model_args", "--nccl-port", "--only", "--part", "--plan",
    "--prompt", "--save-path", "--starting-port", "--strict",
    "--tasks", "--work",
}  # fmt: skip
"""Options of mlx.launch, mlx_lm, lm_eval, docker, mypy and the benchmarks that pages mention."""
MODULES = {"train": "train", "infer": "infer"}
HOSTS = {"127.0.0.1", "api.deepseek.com", "arxiv.org", "github.com", "ml-explore.github.io"}
"""That pages may send people to: machines of this network, papers, projects. None from which packages are installed."""


def ids(path: Path) -> str:
    return path.name


@cache
def command(name: str) -> click.Command:
    found = group.get_command(click.Context(group), name)
    assert found is not None, f"there is no command {name}"
    return found


def blocks(text: str, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def command_lines() -> list[tuple[str, str, list[str]]]:
    """Page, command and arguments of every command line in a code block, without what only stands for something."""
    found = []
    for page in PAGES:
        for block in blocks(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                if not line.startswith(("python -m mlxmath", "mlxmath", "mlx.launch")):
                    continue
                words = shlex.split(line.replace("…", "..."), comments=True)
                words = words[words.index("--") + 1 :] if words[:1] == ["mlx.launch"] else words
                if words[:2] == ["python", "-m"] and words[2].partition(".")[0] == "mlxmath":
                    name = MODULES.get(words[2].partition(".")[2])
                    words = [name, *words[3:]] if name else words[3:]
                else:
                    words = words[1:]
                found.append((page.name, words[0], [word for word in words[1:] if word != "..."]))
    return found


LINES = command_lines()


@pytest.mark.parametrize(
    ("page", "name", "arguments"), LINES, ids=[" ".join(line[1:2] + tuple(line[2])) for line in LINES]
)
def test_command_lines_are_understood(page: str, name: str, arguments: list[str]) -> None:
    """Unknown options, missing arguments, wrong kinds of values and unknown recipes are errors here."""
    found = command(name)
    if isinstance(found, click.Group) and arguments:  # `recipes show`
        inner = found.get_command(click.Context(found), arguments[0])
        assert inner is not None
        found, arguments = inner, arguments[1:]
    with found.make_context(name, [*arguments]) as context:
        if recipe := context.params.get("recipe"):
            from mlxmath.config.load import recipe_layer

            recipe_layer(recipe)


def test_command_lines_of_every_kind_were_found() -> None:
    assert len(LINES) > 40 and {name for _, name, _ in LINES} == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_options_exist(page: Path) -> None:
    known = {option for name in COMMANDS for one in command(name).params for option in (*one.opts, *one.secondary_opts)}
    text = re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
    assert not mentioned - known - OF_OTHERS - {"--help"}


def test_every_command_is_in_the_index_and_every_page_too() -> None:
    index = (DOCS / "README.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \|", index, re.MULTILINE)
    assert rows == list(COMMANDS)
    assert {path.name for path in DOCS.glob("*.md")} - {"README.md"} <= set(re.findall(r"\]\(([\w-]+\.md)\)", index))


def anchors(path: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "CHANGELOG.md"], ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "CHANGELOG.md"], ids=ids)
def test_no_registry_is_named(page: Path) -> None:
    text = page.read_text()
    assert {host.lower() for host in re.findall(r"\w+://(?:[^/\s@]+@)?([\w.-]+)", text)} <= HOSTS
    assert not re.search(r"--(?:extra-)?index-url|--registry", text)


def test_files_of_the_map_exist() -> None:
    """CONTRIBUTING.md says where things are, in mlxmath/ where no other folder is named."""
    names = re.findall(r"`([\w/.-]+\.(?:py|toml))`", (REPOSITORY / "CONTRIBUTING.md").read_text())
    files = [str(path.relative_to(REPOSITORY)) for path in REPOSITORY.rglob("*.py") if ".venv" not in path.parts]
    files.append("pyproject.toml")
    assert len(names) > 60
    assert [name for name in names if not any(file == name or file.endswith(f"/{name}") for file in files)] == []


def test_lists_of_names_are_whole() -> None:
    """What is written out by hand, on pages and in help, names everything that can be chosen."""
    from mlxmath.config.schema import SETTINGS
    from mlxmath.data.datasets import BENCHMARKS, DATASETS
    from mlxmath.training.grpo.rewards import REGISTERED

    (reward,) = (one for one in command("grpo").params if one.name == "rewards")
    assert isinstance(reward, click.Option) and reward.help
    losses = {name: get_args(SETTINGS[f"{name}.loss_type"].annotation) for name in ("dpo", "grpo")}
    lists: dict[str, tuple[str, Iterable[str]]] = {
        "data.md": ((DOCS / "data.md").read_text(), DATASETS),
        "evaluation.md": ((DOCS / "evaluation.md").read_text(), BENCHMARKS),
        "--benchmark": (SETTINGS["evaluation.benchmark"].description or "", BENCHMARKS),
        "reinforcement.md": ((DOCS / "reinforcement.md").read_text(), [*REGISTERED, *losses["grpo"]]),
        "--reward": (reward.help, REGISTERED),
        "preferences.md": ((DOCS / "preferences.md").read_text(), losses["dpo"]),
    }
    missing = {
        (place, name)
        for place, (text, names) in lists.items()
        for name in names
        if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)
    }
    assert not missing and all(len(losses[name]) > 2 for name in losses)


@cache
def texts_of_the_program() -> list[str]:
    """All texts in mlxmath's source, with … for what is put in."""
    found = []
    for path in (REPOSITORY / "mlxmath").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (one.value if isinstance(one, ast.Constant) else "…" for one in node.values)
                found.append("".join(map(str, parts)))
    return found


def messages() -> list[str]:
    """What the page on errors quotes from the program."""
    text = re.sub(r"\s*\n\s*", " ", (DOCS / "troubleshooting.md").read_text())
    return re.findall(r"\*\*`(.+?)`\*\*", text)


@pytest.mark.parametrize("message", messages())
def test_quoted_errors_are_the_programs_own(message: str) -> None:
    parts = [part.strip() for part in message.split("…") if part.strip(" :;,.()") and part.strip()]
    assert parts
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    assert any(pattern.search(text) for text in texts_of_the_program()), message


def test_settings_and_templates_in_pages_are_valid(tmp_path: Path) -> None:
    from mlxmath.commands.pipeline import read_stages
    from mlxmath.config.load import settings_from
    from mlxmath.data.templates import read_definition

    mixture, template = blocks((DOCS / "data.md").read_text(), "toml")
    (tmp_path / "mixture.toml").write_text(mixture)
    sources = settings_from(("data",), config=str(tmp_path / "mixture.toml")).config.data.sources
    assert [source.dataset for source in sources] == ["openai/gsm8k", "more.jsonl"]
    (tmp_path / "template.toml").write_text(template)
    assert read_definition(tmp_path / "template.toml").prompt == "Problem: {question}\nSolution:\n"
    (pipeline,) = blocks((DOCS / "distillation.md").read_text(), "toml")
    (tmp_path / "pipeline.toml").write_text(pipeline)
    assert list(read_stages(tmp_path / "pipeline.toml")) == ["distill", "train", "grpo", "evaluate"]


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", REPOSITORY / "tools" / "figures.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_say_what_was_measured(figures: ModuleType) -> None:
    """Else: `python tools/figures.py`."""
    assert [path.name for path, text in figures.pages() if text != path.read_text()] == []
    shown = sum(len(figures.FIGURE.findall(page.read_text())) for page in PAGES)
    tables = {name for page in PAGES for _, name, *_ in figures.TABLE.findall(page.read_text())}
    assert shown > 40 and tables == set(figures.TABLES)


def test_pictures_show_what_was_measured(figures: ModuleType) -> None:
    """Else: `python tools/figures.py`."""
    assert figures.stale_pictures() == []
    used = {
        (page.parent / found).resolve()
        for page in PAGES
        for found in re.findall(r"!\[[^]]*\]\(([^)]+\.png)\)", page.read_text())
    }
    assert used == set(DOCS.rglob("*.png"))
    assert set(figures.PICTURES) == {path.name for path in DOCS.glob("*.png")}  # those of studio/: tools/screenshots.py


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        (0.16, ".1f %", "16.0 %"), (7473, ",d", "7,473"), (0.3251, "+.1f points", "+32.5 points"),
        (43569152, ".0f MB", "44 MB"), ({"low": -0.02, "high": 0.0894}, "+.1f interval", "-2.0 to +8.9"),
    ],
)  # fmt: skip
def test_formats_of_figures(figures: ModuleType, value: Any, form: str, expected: str) -> None:
    assert figures.shown(value, form) == expected


def test_a_figure_that_is_not_there_is_an_error(figures: ModuleType) -> None:
    assert figures.look_up("train.json", "shapes/small/runs/contestant=ours/batch_size") == 8
    for path in ("shapes/tiny", "shapes/small/runs/contestant=mlx_lm/batch_size", "shapes/small/runs/99"):
        with pytest.raises(LookupError, match=path.split("/")[0]):
            figures.look_up("train.json", path)
