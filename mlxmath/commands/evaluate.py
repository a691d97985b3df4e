"""`mlxmath evaluate`: did the model get better, and are we sure?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxmath.commands import options
from mlxmath.config.schema import RunConfig
from mlxmath.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlxmath.evaluation.ask import Share
    from mlxmath.evaluation.contestants import Contestant
    from mlxmath.evaluation.samples import Sample
    from mlxmath.models.lora.sharding import Sharding
    from mlxmath.runtime.ranks import Ranks

    Key = tuple[str, str, int]


@options.command("evaluate", shared=True)
@options.configured
@options.setting_options("model.mlx_path")
@click.option("--adapter-path", multiple=True, metavar="FOLDER", help="Adapter; may be repeated.  [default: adapters]")
@click.option("--no-adapter", is_flag=True, help="Evaluate the base model alone.")
@click.option(
    "--compare",
    is_flag=True,
    help="Evaluate the base model too and compare the others with it; with --retrieve each one with itself without.",
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
@options.setting_options(*options.EVALUATION)
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, metavar="INTEGER", help="Seed of the samples.  [default: 0]"
)
@click.option("--resume", is_flag=True, help="Continue this evaluation where it was interrupted.")
@click.option("--overwrite", is_flag=True, help="Start this evaluation anew, whatever its folder holds.")
@options.shard
@options.setting_options(*options.RUNTIME)
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
    config = options.settings(values).config
    if template and template_file:
        raise InputError("--template and --template-file exclude each other; give one of them.")
    if no_adapter and (adapter_path or compare):
        raise InputError("--no-adapter excludes --adapter-path and --compare; give one of them.")
    adapters = () if no_adapter else tuple(Path(a).expanduser() for a in adapter_path or ("adapters",))

    from mlxmath.evaluation.contestants import choose_contestants, with_formulas
    from mlxmath.runtime.ranks import join

    with join() as ranks:
        options.check_shard(shard, ranks.size)
        chosen = choose_contestants(Path(config.model.mlx_path), adapters, against, base=compare or no_adapter)
        if config.evaluation.retrieve:
            chosen = with_formulas(chosen, beside=compare)
        found = evaluate(
            config, chosen, ranks, template=template, template_file=template_file, seed=seed, resume=resume,
            overwrite=overwrite, sharding=shard,
        )  # fmt: skip
    if found is not None:
        click.echo(json.dumps({name: f"{found['folder']}/{name}" for name in ("results.json", "report.html")}))


def evaluate(
    config: RunConfig,
    contestants: "list[Contestant]",
    ranks: "Ranks",
    *,
    template: str | None = None,
    template_file: str | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    sharding: "Sharding | None" = None,
) -> dict[str, Any] | None:
    """Evaluate contestants and write everything into the run's folder.

    Args:
        config: its model, evaluation and runtime sections count.
        contestants: each is compared with the one that it names, else with the first one, and asked in the template
            that it has, else see `mlxmath.evaluation.contestants.with_templates`.
        ranks: each answers a part; rank 0 reports.
        template: for all that nothing else names one for (None: each its own).
        template_file: the same out of a file of the user's own.
        seed: of the samples.
        resume: go on with the answers that are there.
        overwrite: remove them.
        sharding: how the models are spread over the ranks, which then all give the same answers (None: each rank holds
            whole models).

    Returns:
        What results.json holds, and its folder under "folder"; None on ranks other than 0.
    """
    from mlxmath.runtime.select import open_backend

    backend, device = open_backend(config.runtime, seed, ranks.num_on_host)

    from mlxmath.commands.report import write_report
    from mlxmath.data.templates import get_template
    from mlxmath.evaluation.ask import ask_all, make_entry
    from mlxmath.evaluation.contestants import with_templates
    from mlxmath.evaluation.formulas import Retriever
    from mlxmath.evaluation.running import agree, answer, describe, folder_of, load_benchmarks, put_together
    from mlxmath.evaluation.samples import claim, note_decoding

    settings = config.evaluation
    benchmarks = load_benchmarks(settings)
    shared = get_template(template or "", template_file) if template or template_file else None
    usual = get_template(config.data.template, config.data.template_file)
    contestants = with_templates(contestants, settings.template_for, shared, usual)
    retriever = Retriever.load(settings.retrieve, settings.retrieve_count) if settings.retrieve else None
    entries = [make_entry(c, benchmarks, settings, retriever, seed) for c in contestants]
    record = describe(entries, benchmarks, settings, seed=seed, device=device)
    folder = folder_of(record, settings)
    agree(ranks, entries, record)
    if ranks.first:
        claim(folder, record, resume=resume, overwrite=overwrite)
    ranks.vote("claimed")

    def ask(done: "Mapping[Key, Sample]", path: Path, share: "Share") -> None:
        decoding = ask_all(entries, benchmarks, settings, seed, done, path, backend, device, share, sharding)
        if ranks.first:
            note_decoding(folder, decoding)

    fingerprints = {entry.contestant.label: entry.fingerprint for entry in entries}
    if not answer(ask, folder, ranks, fingerprints, is_spread=sharding is not None):
        return None
    labels, numbers = list(fingerprints), range(settings.samples)
    put_together(
        folder, fingerprints, [(label, item.id, n) for label in labels for b in benchmarks for item in b.items
                               for n in numbers]
    )  # fmt: skip
    return write_report(folder) | {"folder": str(folder)}
