"""`mlxmath train`: fine-tune LoRA adapters. How a run goes is told in `mlxmath.session`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxmath.commands import options
from mlxmath.config.load import TRAINED_FROM, Resolved
from mlxmath.config.schema import RunConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import say

if TYPE_CHECKING:
    from mlxmath.runtime.ranks import Ranks


@options.command("train", shared=True)
@options.training_options(options.DATA)
@click.option("--debug", is_flag=True, help="The bundled model, ten problems, a few seconds.")
@click.option("--dry-run", is_flag=True, help="Print the settings and the memory that the run takes; start nothing.")
def main(debug: bool, dry_run: bool, **values: Any) -> None:
    """Fine-tune LoRA adapters on a dataset of problems and solutions."""
    resolved = options.settings(values, debug=debug)
    if dry_run:
        show(resolved)
        return
    options.run_with_ranks(train, resolved, TRAINED_FROM)


def show(resolved: Resolved) -> None:
    """Print what a run would use, to standard output: every setting with its origin, and the memory plan."""
    from mlxmath.commands.plan import describe
    from mlxmath.data.templates import get_template
    from mlxmath.runtime.select import open_backend

    config = resolved.config
    get_template(config.data.template, config.data.template_file)
    for line in resolved.lines((*TRAINED_FROM, *resolved.others(TRAINED_FROM))):
        click.echo(line)
    _, device = open_backend(config.runtime, config.training.seed)
    try:
        model_config = _model_config(config)
        lines, _ = describe(config, model_config, device)
    except InputError:
        raise
    except MlxmathError as error:
        click.echo(f"memory plan: not available: {error}")
        return
    for line in lines:
        click.echo(line)


def _model_config(config: RunConfig) -> dict[str, Any]:
    """The model's config.json: of the converted model if it is there, else of its source."""
    from mlxmath.runtime.files import read_json
    from mlxmath.weights.hub import fetch, is_source
    from mlxmath.weights.manifest import FILE_NAME, read_manifest

    folder = Path(config.model.mlx_path)
    if not ((folder / FILE_NAME).exists() and is_source(config.model.model, read_manifest(folder).source)):
        folder = fetch(config.model.model, config.model.revision, config_only=True).folder
    return dict(read_json(folder / "config.json"))


def train(resolved: Resolved, ranks: "Ranks") -> int:
    """Run a whole fine-tuning; the adapters are in `training.adapter_path` of rank 0 afterwards.

    Returns:
        See `mlxmath.session.training.Outcome`.

    Raises:
        InputError: a setting is wrong, or has no use here.
        MlxmathError: see the parts.
    """
    from mlxmath.objectives.sft import SupervisedFineTuning
    from mlxmath.session.course import over_rows
    from mlxmath.session.material import read_sequences
    from mlxmath.session.opening import Session, add_adapters
    from mlxmath.session.training import train as train_session
    from mlxmath.session.training import try_it

    session = Session(resolved, ranks, read_sequences)
    adapters = add_adapters(session)
    outcome = train_session(session, adapters, session.gradients(SupervisedFineTuning()), over_rows(session))
    if outcome.exit_code == 0:
        say(try_it(session.config))
    return outcome.exit_code
