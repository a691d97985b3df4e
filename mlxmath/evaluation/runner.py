"""An evaluation from its settings to the last answer, over all ranks; rank 0's folder holds everything."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlxmath import __version__
from mlxmath.config.methods import EvaluationConfig
from mlxmath.config.schema import RunConfig
from mlxmath.data.templates import get_template
from mlxmath.errors import InputError, MlxmathError
from mlxmath.evaluation.ask import Entry, Models, Share, ask_all, make_entry
from mlxmath.evaluation.benchmarks import LoadedBenchmark, load_benchmark
from mlxmath.evaluation.contestants import Contestant, with_templates, with_variations
from mlxmath.evaluation.prompts import Retriever
from mlxmath.evaluation.report import write_report
from mlxmath.evaluation.rounds import check_comparable, is_decided, rounds_of
from mlxmath.evaluation.samples import (
    SAMPLES,
    Sample,
    claim,
    fingerprint,
    fingerprints_of,
    identity,
    note_decoding,
    note_synthesis,
    read_samples,
    read_settings,
    save_samples,
)
from mlxmath.evaluation.score import ENSEMBLE, SYNTHESIZE
from mlxmath.evaluation.synthesis import asking, requests, synthesizer
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
    benchmarks: Sequence[LoadedBenchmark] | None = None,
) -> dict[str, Any] | None:
    """Evaluate contestants and write everything into the run's folder.

    Args:
        config: its model, evaluation and runtime sections count.
        contestants: each is compared with the one that it names, else with the first one, and asked in the template
            that it has, else see `mlxmath.evaluation.contestants.with_templates`.
        ranks: each answers a part; rank 0 reports.
        template: for all that nothing else names one for (None: each its own).
        template_file: the same out of a file of the user's own.
        seed: of the samples, and of the variations.
        resume: go on with the answers that are there.
        overwrite: remove them.
        sharding: how the models are spread over the ranks, which then all give the same answers (None: each rank holds
            whole models).
        benchmarks: what is asked (None: those that the settings name).

    Returns:
        What results.json holds, and its folder under "folder"; None on ranks other than 0.
    """
    with ExitStack() as opened:
        backend, device = opened.enter_context(opened_backend(config.runtime, seed, ranks.num_on_host))
        settings = config.evaluation
        benchmarks = benchmarks or load_benchmarks(settings, seed)
        if settings.perturb:
            contestants = with_variations(contestants, settings.perturb)
        if settings.until_decided:
            check_comparable(contestants)
        shared = get_template(template or "", template_file) if template or template_file else None
        usual = get_template(config.data.template, config.data.template_file)
        contestants = [contestant.with_own_tool(spread=sharding is not None) for contestant in contestants]
        contestants = with_templates(contestants, settings.template_for, shared, usual)
        retriever = Retriever.load(settings.retrieve, settings.retrieve_count) if settings.retrieve else None
        entries = [make_entry(c, benchmarks, settings, retriever, seed) for c in contestants]
        record = describe(entries, benchmarks, settings, seed=seed, device=device)
        if settings.vote == SYNTHESIZE:
            voters = [c for c in contestants if c.label in record["voters"]]
            reader = synthesizer(settings, voters, spread=sharding is not None)
            (reader,) = with_templates([reader], (), shared, usual)
        folder = folder_of(record, settings)
        agree(ranks, entries, record)
        if ranks.first:
            opened.enter_context(locked(folder, "--run-name", "mlxmath evaluate"))
            claim(folder, record, resume=resume, overwrite=overwrite)
        ranks.vote("claimed")

        def note(label: str, how: str) -> None:
            if ranks.first:
                note_decoding(folder, {label: how})

        models = opened.enter_context(closing(Models(device, sharding, config.runtime)))

        def have_answered(
            asked: Sequence[LoadedBenchmark], by: Sequence[Entry], drawn: EvaluationConfig, *, is_first: bool
        ) -> None:
            """Rank 0's folder has the answers of these afterwards."""

            def ask(done: Mapping[tuple[str, str, int], Sample], path: Path, share: Share) -> None:
                ask_all(by, asked, drawn, seed, done, path, note, backend, device, models, share)

            fingerprints = fingerprints_of(read_settings(folder) if ranks.first else record)
            fingerprints |= {entry.contestant.label: entry.fingerprint for entry in by}
            if answer(ask, folder, ranks, fingerprints, is_spread=sharding is not None, is_first=is_first):
                labels = [label for label in fingerprints if any(entry.contestant.label == label for entry in by)]
                ids, numbers = [item.id for benchmark in asked for item in benchmark.items], range(drawn.samples)
                put_together(folder, fingerprints, [(label, i, n) for label in labels for i in ids for n in numbers])

        for number, asked in enumerate(rounds_of(benchmarks, settings)):
            # the model that answered last is in memory
            have_answered(asked, entries[::-1] if number % 2 else entries, settings, is_first=not number)
            if asked != benchmarks and ranks.any("decided", ranks.first and is_decided(folder, record, asked)):
                break
        if settings.vote == SYNTHESIZE:
            texts = requests(read_samples(folder, fingerprints_of(record))[0], record["voters"]) if ranks.first else {}
            texts = ranks.gather("requests", texts)[0]
            read, greedy = asking(benchmarks, texts), settings.model_copy(update={"samples": 1, "temperature": 0.0})
            entry = make_entry(reader, read, greedy, None, seed)
            if ranks.first:
                note_synthesis(folder, {
                    "label": ENSEMBLE, "fingerprint": entry.fingerprint, "asked_in": entry.template.name,
                    "name": f"{reader.model.name}{f' + {reader.adapter.name}' if reader.adapter else ''}",
                })  # fmt: skip
            have_answered(read, [entry], greedy, is_first=False)
        return write_report(folder) | {"folder": str(folder)} if ranks.first else None


def load_benchmarks(settings: EvaluationConfig, seed: int = 0) -> list[LoadedBenchmark]:
    """The benchmarks that the settings name; `seed`: of their variations.

    Raises:
        InputError: there is no such benchmark, or two have the same name.
    """
    benchmarks = [
        load_benchmark(spec, settings.limit, perturb=settings.perturb, seed=seed) for spec in settings.benchmark
    ]
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
             "varied": settings.perturb if e.contestant.varied else None, "asked_in": e.template.name, **e.identity}
            for i, e in enumerate(entries)
        ],
        "benchmarks": [
            {"name": b.name, "revision": b.revision, "num_problems": len(b.items), "samples": settings.samples,
             "problems": fingerprint([asdict(item) for item in (*b.items, *b.varied.values())]),
             "max_tokens": settings.max_tokens or b.max_tokens}
            for b in benchmarks
        ],
        "samples": settings.samples, "shots": settings.shots, "few_shot": settings.few_shot,
        "perturb": settings.perturb, "temperature": settings.temperature, "top_p": settings.top_p, "seed": seed,
        "template": ", ".join(dict.fromkeys(e.template.name for e in entries)), "retrieve": settings.retrieve,
        "vote": settings.vote, "weights": list(settings.weights),
        "voters": _voters(settings, [entry.contestant for entry in entries]),
        "until_decided": settings.smallest_difference if settings.until_decided else None,
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


def answer(
    ask: Ask, folder: Path, ranks: Ranks, fingerprints: Mapping[str, str], *, is_spread: bool, is_first: bool
) -> bool:
    """Get the answers that are not there yet; each rank answers a part.

    Args:
        ask: answers.
        folder: of the run.
        ranks: all of them.
        fingerprints: of the contestants, by their label.
        is_spread: the models are spread over the ranks, which then all give the same answers.
        is_first: nothing of this run was asked before.

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
    if is_first and (found or left_out):
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
    """Make one samples.jsonl of the ranks' ones, in the order of `keys`, after any other answers.

    Raises:
        MlxmathError: answers are missing.
    """
    found, _ = read_samples(folder, fingerprints)
    order = {key: i for i, key in enumerate(keys)}
    if missing := len(order.keys() - {sample.key for sample in found}):
        raise MlxmathError(f"{folder}: {missing:,} answers are missing; run the same command with --resume.")
    save_samples(folder / SAMPLES, sorted(found, key=lambda sample: order.get(sample.key, -1)))
    for part in folder.glob("samples.rank-*.jsonl"):
        part.unlink()


def _voters(settings: EvaluationConfig, contestants: Sequence[Contestant]) -> list[str]:
    """The labels of those that vote: the tuned models, or all if none is tuned; of two that differ in formulas one.

    A model that reads answers may read several of the same voter.
    """
    if settings.vote is None:
        return []
    own = [c for c in contestants if c.against is None]
    voters = [c.label for c in own if c.adapter] or [c.label for c in own]
    if settings.vote == SYNTHESIZE and ENSEMBLE in (one.label for one in contestants):
        raise InputError(f"--vote synthesize: no model may be called {ENSEMBLE!r}; rename the folder.")
    if settings.vote == SYNTHESIZE and len(voters) * settings.samples < 2:
        raise InputError(
            "--vote synthesize: there is one answer to a problem; repeat --adapter-path, or give --samples."
        )
    if len(voters) < 2 and settings.vote != SYNTHESIZE:
        raise InputError(f"--vote: expected at least two tuned models, found {len(voters)}; repeat --adapter-path.")
    if settings.weights and len(settings.weights) != len(voters):
        raise InputError(f"--weights: expected one for each of {', '.join(voters)}, found {len(settings.weights)}.")
    return voters
