"""Fresh answers to rate: an evaluation, with what makes its answers differ."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlxmath.config.load import settings_from
from mlxmath.errors import InputError
from mlxmath.studio.evaluations import command, order
from mlxmath.studio.place import Studio

_RESULTS = "evaluation_results"
"""Where the command puts its folder."""
_OWN = ("samples", "temperature", "run_name")


def usual() -> dict[str, str]:
    """What the form begins with."""
    name = time.strftime("to-rate-%Y%m%d-%H%M%S", time.gmtime())
    return {"limit": "50", "samples": "2", "temperature": "0.8", "run_name": name}


def evaluation(studio: Studio, form: Mapping[str, str], adapters: Sequence[str]) -> list[str]:
    """The arguments of the command; see `mlxmath.studio.evaluations.order`.

    Raises:
        InputError: what is wrong with the form.
    """
    wanted = order(studio, form, adapters)
    values = {name: form.get(name, "").strip() for name in _OWN}
    if missing := [name for name, value in values.items() if not value]:
        raise InputError(f"{missing[0]}: expected a value.")
    settings_from(set=[f"evaluation.{name}={value}" for name, value in values.items()])
    return [*command(studio, wanted), *(f"--{name.replace('_', '-')}={value}" for name, value in values.items())]


def folder_of(form: Mapping[str, str]) -> str:
    """Where the answers will be."""
    return (Path(_RESULTS) / form["run_name"].strip()).as_posix()
