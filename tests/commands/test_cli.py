"""The command line as a whole: help and what it imports, one entry for each command, errors without tracebacks."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from mlxmath.cli import COMMANDS, main
from mlxmath.commands.options import command
from mlxmath.errors import InputError, MlxmathError
from tests.helpers import ENVIRONMENT, REPOSITORY, invoke, run, spawn

HEAVY = (
    "mlx", "mlx_lm", "transformers", "datasets", "torch", "matplotlib", "numpy", "pyarrow", "huggingface_hub",
)  # fmt: skip


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_imports_nothing_heavy(name: str) -> None:
    code = (
        "import sys\nfrom mlxmath.cli import main\n"
        f"try: main({[name, '--help'] if name else ['--help']})\nexcept SystemExit as end: assert not end.code\n"
        f"found = [m for m in {HEAVY} if sys.modules.get(m)]\nassert not found, found"
    )
    result = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Usage:" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_group_and_the_module_are_the_same_command(name: str) -> None:
    one = spawn(REPOSITORY, "mlxmath.__main__", name, "--help")
    other = spawn(REPOSITORY, name, "--help")
    assert one.returncode == other.returncode == 0
    assert one.stdout.split("Options:")[1] == other.stdout.split("Options:")[1]


def test_every_command_and_option_has_help() -> None:
    context = click.Context(main)
    for name in COMMANDS:
        found = main.get_command(context, name)
        assert found is not None and found.help
        for option in found.params:
            if isinstance(option, click.Argument):  # told in the command's own help
                assert option.human_readable_name in found.help
                continue
            assert getattr(option, "help", None), f"{name} {option.name}"


@pytest.mark.parametrize(
    ("error", "code"), [(MlxmathError("it broke"), 1), (InputError("you erred"), 2), (ZeroDivisionError("a bug"), 1)]
)
def test_errors_are_one_line_unless_verbose(error: Exception, code: int) -> None:
    @command("fail")
    def fail() -> None:
        """Fail."""
        raise error

    quiet = invoke(fail, code=code)
    assert str(error) in quiet.output and "Traceback" not in quiet.output and quiet.output.count("\n") == 1
    assert "Traceback" in invoke(fail, "--verbose", code=code).output


def test_unknown_option_and_bad_type_are_usage_errors(tmp_path: Path) -> None:
    for arguments in (["--lora-rnk", "4"], ["--lora-rank", "four"], ["--overflow", "wrap"]):
        result = run(tmp_path, "train", *arguments)
        assert result.returncode == 2 and "Traceback" not in result.stderr
        assert arguments[0] in result.stderr
    assert list(tmp_path.iterdir()) == []
