"""`mlxmath recipes`: the published set-ups that `--recipe` knows."""

import tomllib
from pathlib import Path

import click

from mlxmath.commands import options
from mlxmath.config.load import RECIPES, recipe_path
from mlxmath.errors import InputError
from mlxmath.runtime.console import put, say
from mlxmath.runtime.files import atomic_write


@click.group("recipes", cls=options.Group, invoke_without_command=True, context_settings=options.CONTEXT)
@click.pass_context
def main(context: click.Context) -> None:
    """List the set-ups that --recipe knows, show one, or copy one to change it."""
    if context.invoked_subcommand is None:
        width = max(map(len, RECIPES))
        for name in RECIPES:
            description = tomllib.loads(recipe_path(name).read_text(encoding="utf-8"))["description"]
            put(f"{name:{width}}  {description}")


@main.command("show", cls=options.Command)
@click.argument("name")
def show(name: str) -> None:
    """Print a recipe's file."""
    put(recipe_path(name).read_text(encoding="utf-8"), end="")


@main.command("copy", cls=options.Command)
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def copy(name: str, file: Path, overwrite: bool) -> None:
    """Copy a recipe to FILE, for `mlxmath train --config FILE`."""
    source = recipe_path(name)
    if file.is_dir():
        raise InputError(f"{file} is a folder; name a file, for example {file / source.name}.")
    if file.exists() and not overwrite:
        raise InputError(f"{file} exists; choose another name, or replace it with --overwrite.")
    atomic_write(file, source.read_bytes())
    say(f"train with it: mlxmath train --config {file}")
