"""`mlxmath train`: fine-tune LoRA adapters; see `mlxmath.training.sft`."""

from pathlib import Path
from typing import Any

import click

from mlxmath.commands import options
from mlxmath.config.load import TRAINED_FROM, Resolved, settings_from
from mlxmath.config.schema import RunConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import put


@options.command("train", shared=True, long=True)
@options.training_options("train")
@click.option("--debug", is_flag=True, help="The bundled model, ten problems, a few seconds.")
@click.option("--dry-run", is_flag=True, help="Print the settings and the memory that the run takes; start nothing.")
def main(dry_run: bool, **values: Any) -> None:
    """Fine-tune LoRA adapters on a dataset of problems and solutions."""
    sections = (*TRAINED_FROM, "sft")
    resolved = settings_from(sections, origin="option", **values)
    if dry_run:
        show(resolved)
        return
    options.run_with_ranks("mlxmath.training.sft", "sft", resolved, sections, options.try_it)


def show(resolved: Resolved) -> None:
    """Print what a run would use, to standard output: every setting with its origin, and the memory plan."""
    from mlxmath.data.templates import get_template
    from mlxmath.runtime.device import open_backend
    from mlxmath.training.plan import describe
    from mlxmath.weights.held import with_held_model

    resolved = with_held_model(resolved)
    config = resolved.config
    get_template(config.data.template, config.data.template_file)
    used = (*TRAINED_FROM, "sft")
    for line in resolved.lines((*used, *resolved.others(used))):
        put(line)
    _, device = open_backend(config.runtime, config.training.seed)
    try:
        model_config = _model_config(config)
        lines, _ = describe(config, model_config, device)
    except InputError:
        raise
    except MlxmathError as error:
        put(f"memory plan: not available: {error}")
        return
    for line in lines:
        put(line)


def _model_config(config: RunConfig) -> dict[str, Any]:
    """The model's config.json: of the converted model if it is there, else of its source."""
    from mlxmath.runtime.files import read_json
    from mlxmath.weights.hub import fetch, is_source
    from mlxmath.weights.manifest import FILE_NAME, read_manifest
    from mlxmath.weights.opened import source_config

    folder = Path(config.model.mlx_path)
    if not ((folder / FILE_NAME).exists() and is_source(config.model.model, read_manifest(folder).source)):
        return source_config(fetch(config.model.model, config.model.revision, config_only=True))
    return dict(read_json(folder / "config.json"))
