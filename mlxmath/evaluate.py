"""`mlxmath evaluate`: did the model get better, and are we sure?"""

import json
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from mlxmath import __version__, options
from mlxmath.config.answering import EvaluationConfig
from mlxmath.config.schema import RunConfig
from mlxmath.console import say
from mlxmath.errors import InputError, MlxmathError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlxmath.backends.ranks import Ranks
    from mlxmath.evaluation.contestants import Contestant
    from mlxmath.evaluation.samples import Sample
    from mlxmath.lora.sharding import Sharding

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
    help="Prompt template, the same for all; 'chat' is the model's own (unset: the adapter's training one).",
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

    from mlxmath.backends.ranks import join
    from mlxmath.evaluation.contestants import choose_contestants, with_formulas

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
        contestants: each is compared with the one that it names, else with the first one.
        ranks: each answers a part; rank 0 reports.
        template: for all of them (None: the one that the first tuned model was trained with).
        template_file: the same out of a file of the user's own.
        seed: of the samples.
        resume: go on with the answers that are there.
        overwrite: remove them.
        sharding: how the models are spread over the ranks, which then all give the same answers (None: each rank holds
            whole models).

    Returns:
        What results.json holds, and its folder under "folder"; None on ranks other than 0.
    """
    from mlxmath.backends.select import open_backend

    backend, device = open_backend(config.runtime, seed, ranks.num_on_host)

    from mlxmath.evaluation.ask import Share, ask_all, make_entry
    from mlxmath.evaluation.benchmarks import load_benchmark
    from mlxmath.evaluation.formulas import Retriever
    from mlxmath.evaluation.samples import SAMPLES, claim, fingerprint, read_samples, save_samples
    from mlxmath.problems.prompts import get_template
    from mlxmath.report import write_report

    settings = config.evaluation
    benchmarks = [load_benchmark(spec, settings.limit) for spec in settings.benchmark]
    if len({benchmark.name for benchmark in benchmarks}) < len(benchmarks):
        raise InputError("--benchmark: two of them have the same name; rename a file.")
    for benchmark in benchmarks:
        skipped = f" ({benchmark.num_skipped:,} rows without a gold answer left out)" if benchmark.num_skipped else ""
        say(f"benchmark {benchmark.name}: {len(benchmark.items):,} problems{skipped}")
    recorded = next(filter(None, (contestant.recorded_template() for contestant in contestants)), None)
    own = get_template(template or "", template_file) if template or template_file else None
    chosen = own or recorded or get_template(config.data.template, config.data.template_file)
    retriever = Retriever.load(settings.retrieve, settings.retrieve_count) if settings.retrieve else None
    entries = [make_entry(c, chosen, benchmarks, settings, retriever, seed) for c in contestants]
    voters = _voters(settings, contestants)

    problems = {b.name: fingerprint([asdict(item) for item in b.items]) for b in benchmarks}
    record = {
        "contestants": [
            {"label": e.contestant.label, "model": str(e.contestant.model),
             "adapter": str(e.contestant.adapter) if e.contestant.adapter else None,
             "against": e.contestant.against or (contestants[0].label if i else None),
             "fingerprint": e.fingerprint, **e.identity}
            for i, e in enumerate(entries)
        ],
        "benchmarks": [
            {"name": b.name, "revision": b.revision, "problems": problems[b.name],
             "num_problems": len(b.items), "samples": settings.samples}
            for b in benchmarks
        ],
        "samples": settings.samples, "shots": settings.shots, "temperature": settings.temperature,
        "top_p": settings.top_p, "seed": seed, "template": chosen.name, "retrieve": settings.retrieve,
        "vote": settings.vote, "weights": list(settings.weights), "voters": voters,
        "device": {"backend": device.backend, "name": device.device, "dtype": device.compute_dtype},
        "mlxmath": __version__,
    }  # fmt: skip
    whole = fingerprint({"contestants": record["contestants"], "benchmarks": record["benchmarks"]})[:8]
    name = settings.run_name or f"{'-'.join(b.name for b in benchmarks)}-{whole}"
    folder = Path(settings.results_path) / name
    facts = {f"{part} of {e.contestant.label}": e.identity[part] for e in entries for part in ("model", "adapter")}
    facts |= {f"prompts of {e.contestant.label}": e.fingerprint for e in entries}
    facts |= {f"benchmark {name}": content for name, content in problems.items()}
    ranks.agree("evaluation", facts | {name: record[name] for name in ("samples", "seed", "device")})
    if ranks.first:
        claim(folder, record, resume=resume, overwrite=overwrite)
    ranks.vote("claimed")
    fingerprints = {entry.contestant.label: entry.fingerprint for entry in entries}
    if sharding and not ranks.first:
        with _scratch_of(ranks, fingerprints) as (done, path):
            ask_all(entries, benchmarks, settings, seed, done, path, backend, device, sharding=sharding)
        return None
    folder.mkdir(parents=True, exist_ok=True)
    found, left_out = read_samples(folder, fingerprints)
    if found or left_out:
        say(
            f"{folder}: {len(found):,} answers are there already" + (f"; {left_out} lines left out" if left_out else "")
        )
    share = Share() if sharding else Share(ranks.rank, ranks.size)
    path = folder / (SAMPLES if share.world == 1 else f"samples.rank-{share.rank}.jsonl")
    if share.world == 1:
        save_samples(path, found)  # without what was left out
    done = {sample.key: sample for sample in found}
    if sharding:
        ranks.gather("answers so far", path.read_text())
    ranks.begin()
    ask_all(entries, benchmarks, settings, seed, done, path, backend, device, share, sharding)

    if share.world > 1:
        for rank, content in enumerate(ranks.gather("samples", path.read_text() if path.exists() else "")):
            if ranks.first:
                (folder / f"samples.rank-{rank}.jsonl").write_text(content)
        if not ranks.first:
            return None
    found, _ = read_samples(folder, fingerprints)
    order = {key: i for i, key in enumerate(
        (e.contestant.label, item.id, n)
        for e in entries for b in benchmarks for item in b.items for n in range(settings.samples)
    )}  # fmt: skip
    missing = len(order) - len(found)
    if missing:
        raise MlxmathError(f"{folder}: {missing:,} answers are missing; run the same command with --resume.")
    save_samples(folder / SAMPLES, sorted(found, key=lambda sample: order[sample.key]))
    for part in folder.glob("samples.rank-*.jsonl"):
        part.unlink()
    results = write_report(folder)
    return results | {"folder": str(folder)}


@contextmanager
def _scratch_of(ranks: "Ranks", fingerprints: dict[str, str]) -> "Iterator[tuple[dict[Key, Sample], Path]]":
    """For the other ranks of a model that is spread: rank 0's answers so far, and a file for those that it keeps."""
    from mlxmath.evaluation.samples import SAMPLES, read_samples

    with TemporaryDirectory() as place:
        path = Path(place) / SAMPLES
        path.write_text(ranks.gather("answers so far", "")[0])
        done = {sample.key: sample for sample in read_samples(Path(place), fingerprints)[0]}
        ranks.begin()
        yield done, path


def _voters(settings: EvaluationConfig, contestants: "list[Contestant]") -> list[str]:
    """The labels of those that vote: the tuned models, or all if none is tuned; of two that differ in formulas one."""
    if settings.vote is None:
        return []
    own = [c for c in contestants if c.against is None]
    voters = [c.label for c in own if c.adapter] or [c.label for c in own]
    if len(voters) < 2:
        raise InputError(f"--vote: expected at least two tuned models, found {len(voters)}; repeat --adapter-path.")
    if settings.weights and len(settings.weights) != len(voters):
        raise InputError(f"--weights: expected one for each of {', '.join(voters)}, found {len(settings.weights)}.")
    return voters


if __name__ == "__main__":
    main(prog_name="python -m mlxmath.evaluate")
