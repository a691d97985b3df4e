"""`mlxmath export`: the tuned model for PEFT, mlx_lm, transformers, llama.cpp or Ollama."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mlxmath.commands import options
from mlxmath.config.load import settings_from
from mlxmath.config.offered import EXPORT, MODEL_WRITE, RUNTIME
from mlxmath.errors import InputError


@options.command("export", long=True)
@options.configured
@options.setting_options("model.mlx_path", "training.adapter_path")
@click.option("--no-adapter", is_flag=True, help="Export the base model.")
@options.setting_options(*EXPORT, *MODEL_WRITE, *RUNTIME)
def main(no_adapter: bool, **values: Any) -> None:
    """Write the tuned model for another program.

    The folder is whole or absent, and an earlier export stays unless --overwrite is given. --check asks the original
    and what was written the same problems.
    """
    config = settings_from(("model", "training", "export", "runtime"), origin="option", **values).config
    if no_adapter and values["adapter_path"]:
        raise InputError("--no-adapter excludes --adapter-path; give one of them.")

    from mlxmath.exporting.export import export

    adapter = None if no_adapter else Path(config.training.adapter_path)
    found = export(config, adapter, overwrite=config.model.overwrite)
    checked = asdict(found.checked) if found.checked else None
    click.echo(json.dumps({"to": found.to, "folder": str(found.folder), "bytes": found.num_bytes, "check": checked}))
