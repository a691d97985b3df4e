"""An evaluation from its settings to the last answer, over all ranks; rank 0's folder holds everything."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlxmath import __version__
from mlxmath.config.methods import EvaluationConfig
from mlxmath.config.schema import RunConfig
from mlxmath.data.templates import get_template
from mlxmath.errors import InputError, MlxmathError
from mlxmath.evaluation.ask import Entry, Share, ask_all, make_entry
from mlxmath.evaluation.benchmarks import LoadedBenchmark, load_benchmark
from mlxmath.evaluation.contestants import Contestant, with_templates
from mlxmath.evaluation.prompts import Retriever
from mlxmath.evaluation.report import write_report
from mlxmath.evaluation.samples import (
    SAMPLES,
    Sample,
    claim,
    fingerprint,
    identity,
    note_decoding,
    read_samples,
    save_samples,
)
from mlxmath.models.lora.sharding import Sharding
from mlxmath.runtime.console import say
from mlxmath.runtime.device import DeviceInfo, opened_backend
from mlxmath.runtime.files import atomic_write
from mlxmath.runtime.locks import locked
from mlxmath.runtime.ranks import Ranks

Ask = Callable[[Mapping[tuple[str, str, int], Sample], Path, Share], None]
"""Answer what is not there already, and append it to a file; see `mlxmath.evaluation.ask.ask_all`."""


def evaluate(
    config: RunConfig,
    contestants: list[Contestant],
    ranks: Ranks,
    *,
    template: str | None = None,
    template_file: str | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    sharding: Sharding | None = None,
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
    with ExitStack() as opened:
        backend, device = opened.enter_context(opened_backend(config.runtime, seed, ranks.num_on_host))
        settings = config.evaluation
        benchmarks = load_benchmarks(settings)
        shared = get_template(template or "", template_file) if template or template_file else None
        usual = get_template(config.data.template, config.data.template_file)
        contestants = [contestant.with_own_tool(spread=sharding is not None) for contestant in contestants]
        contestants = with_templates(contestants, settings.template_for, shared, usual)
        retriever = Retriever.load(settings.retrieve, settings.retrieve_count) if settings.retrieve else None
        entries = [make_entry(c, benchmarks, settings, retriever, seed) for c in contestants]
        record = describe(entries, benchmarks, settings, seed=seed, device=device)
        folder = folder_of(record, settings)
        agree(ranks, entries, record)
        if ranks.first:
            opened.enter_context(locked(folder, "--run-name", "mlxmath evaluate"))
            claim(folder, record, resume=resume, overwrite=overwrite)
        ranks.vote("claimed")

        def note(label: str, how: str) -> None:
            if ranks.first:
                note_decoding(folder, {label: how})

        def ask(done: Mapping[tuple[str, str, int], Sample], path: Path, share: Share) -> None:
            ask_all(
                entries, benchmarks, settings, seed, done, path, note, backend, device, share, sharding, config.runtime
            )

        fingerprints = {entry.contestant.label: entry.fingerprint for entry in entries}
        if not answer(ask, folder, ranks, fingerprints, is_spread=sharding is not None):
            return None
        ids, numbers = [item.id for benchmark in benchmarks for item in benchmark.items], range(settings.samples)
        put_together(folder, fingerprints, [(label, i, n) for label in fingerprints for i in ids for n in numbers])
        return write_report(folder) | {"folder": str(folder)}


def load_benchmarks(settings: EvaluationConfig) -> list[LoadedBenchmark]:
    """The benchmarks that the settings name.

    Raises:
        InputError: there is no such benchmark, or two have the same name.
    """
    benchmarks = [load_benchmark(spec, settings.limit) for spec in settings.benchmark]
    if len({benchmark.name for benchmark in benchmarks}) < len(benchmarks):
        raise InputError("--benchmark: two of them have the same name; rename a file.")
    for benchmark in benchmarks:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in benchmark.left_out.items())
        skipped = f" (left out: {left_out})" if left_out else ""
        say(f"benchmark {benchmark.name}: {len(benchmark.items):,} problems{skipped}")
    return benchmarks


def describe(
    entries: Sequence[Entry],
    benchmarks: Sequence[LoadedBenchmark],
    settings: EvaluationConfig,
    *,
    seed: int,
    device: DeviceInfo,
) -> dict[str, Any]:
    """What settings.json is to hold.

    Raises:
        InputError: those that are to vote are too few, or have no weight each.
    """
    first = entries[0].contestant.label
    return {
        "contestants": [
            {"label": e.contestant.label, "against": e.contestant.against or (first if i else None),
             "fingerprint": e.fingerprint, "folder": str(e.contestant.model),
             "adapter_folder": str(e.contestant.adapter) if e.contestant.adapter else None,
             "asked_in": e.template.name, **e.identity}
            for i, e in enumerate(entries)
        ],
        "benchmarks": [
            {"name": b.name, "revision": b.revision, "problems": fingerprint([asdict(item) for item in b.items]),
             "num_problems": len(b.items), "samples": settings.samples,
             "max_tokens": settings.max_tokens or b.max_tokens}
            for b in benchmarks
        ],
        "samples": settings.samples, "shots": settings.shots, "temperature": settings.temperature,
        "top_p": settings.top_p, "seed": seed,
        "template": ", ".join(dict.fromkeys(e.template.name for e in entries)), "retrieve": settings.retrieve,
        "vote": settings.vote, "weights": list(settings.weights),
        "voters": _voters(settings, [entry.contestant for entry in entries]),
        "device": {"backend": device.backend, "name": device.device, "dtype": device.compute_dtype},
        "mlxmath": __version__,
    }  # fmt: skip


def folder_of(record: Mapping[str, Any], settings: EvaluationConfig) -> Path:
    """The run's folder, of a name that its settings decide if none is given."""
    usual = f"{'-'.join(b['name'] for b in record['benchmarks'])}-{fingerprint(identity(record))[:8]}"
    return Path(settings.results_path) / (settings.run_name or usual)


def agree(ranks: Ranks, entries: Sequence[Entry], record: Mapping[str, Any]) -> None:
    """Make sure that all ranks are about to ask the same.

    Raises:
        MlxmathError: one is not; it and every difference are named.
    """
    facts = {f"{part} of {e.contestant.label}": e.identity[part] for e in entries for part in ("model", "adapter")}
    facts |= {f"prompts of {e.contestant.label}": e.fingerprint for e in entries}
    facts |= {f"benchmark {b['name']}": b["problems"] for b in record["benchmarks"]}
    ranks.agree("evaluation", facts | {name: record[name] for name in ("samples", "seed", "device")})


def answer(ask: Ask, folder: Path, ranks: Ranks, fingerprints: Mapping[str, str], *, is_spread: bool) -> bool:
    """Get the answers that are not there yet; each rank answers a part.

    Args:
        ask: answers.
        folder: of the run.
        ranks: all of them.
        fingerprints: of the contestants, by their label.
        is_spread: the models are spread over the ranks, which then all give the same answers.

    Returns:
        Whether this rank has all answers in `folder`: rank 0 has.
    """
    if is_spread and not ranks.first:
        with TemporaryDirectory() as place:  # rank 0's answers so far, and a file for those that it keeps
            path = Path(place) / SAMPLES
            path.write_text(ranks.gather("answers so far", "")[0])
            found, _ = read_samples(Path(place), fingerprints)
            ranks.begin()
            ask({sample.key: sample for sample in found}, path, Share())
        return False
    folder.mkdir(parents=True, exist_ok=True)
    found, left_out = read_samples(folder, fingerprints)
    if found or left_out:
        damaged = f"; {left_out} lines left out" if left_out else ""
        say(f"{folder}: {len(found):,} answers are there already{damaged}")
    share = Share() if is_spread else Share(ranks.rank, ranks.size)
    path = folder / (SAMPLES if share.world == 1 else f"samples.rank-{share.rank}.jsonl")
    if share.world == 1:
        save_samples(path, found)  # without what was left out
    if is_spread:
        ranks.gather("answers so far", path.read_text())
    ranks.begin()
    ask({sample.key: sample for sample in found}, path, share)
    if share.world > 1:
        for rank, content in enumerate(ranks.gather("samples", path.read_text() if path.exists() else "")):
            if ranks.first and rank:
                atomic_write(folder / f"samples.rank-{rank}.jsonl", content)
    return ranks.first


def put_together(folder: Path, fingerprints: Mapping[str, str], keys: Sequence[tuple[str, str, int]]) -> None:
    """Make one samples.jsonl of the ranks' ones, in the order of `keys`.

    Raises:
        MlxmathError: answers are missing.
    """
    found, _ = read_samples(folder, fingerprints)
    order = {key: i for i, key in enumerate(keys)}
    if missing := len(order) - len(found):
        raise MlxmathError(f"{folder}: {missing:,} answers are missing; run the same command with --resume.")
    save_samples(folder / SAMPLES, sorted(found, key=lambda sample: order[sample.key]))
    for part in folder.glob("samples.rank-*.jsonl"):
        part.unlink()


def _voters(settings: EvaluationConfig, contestants: Sequence[Contestant]) -> list[str]:
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
