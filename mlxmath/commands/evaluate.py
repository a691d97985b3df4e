"""`mlxmath evaluate`: did the model get better, and are we sure?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxmath.commands import options
from mlxmath.config.load import settings_from
from mlxmath.config.offered import EVALUATION, RUNTIME
from mlxmath.errors import InputError

if TYPE_CHECKING:
    from mlxmath.models.lora.sharding import Sharding


@options.command("evaluate", shared=True, long=True)
@options.configured
@options.setting_options("model.mlx_path")
@click.option("--adapter-path", multiple=True, metavar="FOLDER", help="Adapter; may be repeated.  [default: adapters]")
@click.option("--no-adapter", is_flag=True, help="Evaluate the base model alone.")
@click.option(
    "--compare",
    is_flag=True,
    help="Evaluate the base model too and compare the others with it; with --retrieve or --tools each one with itself "
    "without.",
)
@click.option(
    "--against",
    multiple=True,
    metavar="MODEL[:ADAPTER]",
    help="Compare with another MLX model folder; may be repeated.",
)
@click.option(
    "--template",
    help="Prompt template of all that --template-for does not name; 'chat' is a model's own (unset: each one's own).",
)
@click.option("--template-file", metavar="FILE", help="File with a prompt template of your own.")
@options.setting_options(*EVALUATION)
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, metavar="INTEGER", help="Seed of the samples.  [default: 0]"
)
@click.option("--resume", is_flag=True, help="Continue this evaluation where it was interrupted.")
@click.option("--overwrite", is_flag=True, help="Start this evaluation anew, whatever its folder holds.")
@options.shard
@options.setting_options(*RUNTIME, "runtime.offload")
def main(
    adapter_path: tuple[str, ...],
    no_adapter: bool,
    compare: bool,
    against: tuple[str, ...],
    template: str | None,
    template_file: str | None,
    seed: int,
    resume: bool,
    overwrite: bool,
    shard: "Sharding | None",
    **values: Any,
) -> None:
    """Ask benchmarks, grade the answers, compare models, write a report.

    Writes results.json, samples.jsonl, report.html, charts and a table for a model card.
    """
    config = settings_from(("model", "evaluation", "runtime"), origin="option", **values).config
    if template and template_file:
        raise InputError("--template and --template-file exclude each other; give one of them.")
    if no_adapter and (adapter_path or compare):
        raise InputError("--no-adapter excludes --adapter-path and --compare; give one of them.")
    folders = adapter_path or (config.training.adapter_path,)
    adapters = () if no_adapter else tuple(Path(folder).expanduser() for folder in folders)

    from mlxmath.runtime.ranks import join

    with join() as ranks:
        from mlxmath.evaluation.contestants import choose_contestants, equipped
        from mlxmath.evaluation.runner import evaluate

        options.check_shard(shard, ranks.size)
        chosen = choose_contestants(Path(config.model.mlx_path), adapters, against, base=compare or no_adapter)
        chosen = equipped(chosen, config.evaluation, beside=compare)
        found = evaluate(
            config, chosen, ranks, template=template, template_file=template_file, seed=seed, resume=resume,
            overwrite=overwrite, sharding=shard,
        )  # fmt: skip
    if found is not None:
        click.echo(json.dumps({name: f"{found['folder']}/{name}" for name in ("results.json", "report.html")}))
