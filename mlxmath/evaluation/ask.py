"""Puts the problems to a contestant, grades the answers and writes each as it comes."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxmath.config.methods import EvaluationConfig
from mlxmath.config.schema import RuntimeConfig
from mlxmath.data.codec import load_tokenizer
from mlxmath.data.templates import Template
from mlxmath.errors import InputError
from mlxmath.evaluation.benchmarks import Item, LoadedBenchmark
from mlxmath.evaluation.contestants import Contestant
from mlxmath.evaluation.few_shot import examples
from mlxmath.evaluation.progress import Progress
from mlxmath.evaluation.prompts import Prompts, Retriever
from mlxmath.evaluation.samples import Sample, fingerprint, write_sample
from mlxmath.generation.engine import Completion, Sampling, generate_batch, seed_of
from mlxmath.generation.model import context_of, load_generation_tokenizer
from mlxmath.generation.neighbours import way_of
from mlxmath.generation.placing import serve, stays_on_disk
from mlxmath.generation.slots import choose_slots
from mlxmath.grading import grade
from mlxmath.models.load import Loaded, load_model
from mlxmath.models.lora.adapter import load_adapter
from mlxmath.models.lora.sharding import Sharding, load_sharded
from mlxmath.models.offload import bytes_at_hand
from mlxmath.models.served import Served
from mlxmath.runtime.console import counted, say, warn
from mlxmath.runtime.device import Backend, DeviceInfo
from mlxmath.runtime.files import disk_errors, own_file
from mlxmath.weights.manifest import read_fingerprint

_MOST_CONTEXTS = 8
"""A prompt that is longer than so many of the model's contexts is a mistake; of a shorter one people are warned."""


@dataclass(frozen=True)
class Entry:
    """A contestant and what it is given."""

    contestant: Contestant
    template: Template
    tokenizer: TokenizerWrapper
    """Knows where an answer in the template ends."""
    prompts: Mapping[str, list[int]]
    """Token ids by the problem's id."""
    num_formulas: Mapping[str, int]
    """Formulas in the prompt, by the problem's id."""
    identity: Mapping[str, Any]
    """Everything that its answers depend on, by content."""

    @property
    def fingerprint(self) -> str:
        """Of the identity: samples of another one are never counted as this one's."""
        return fingerprint(dict(self.identity))


def make_entry(
    contestant: Contestant,
    benchmarks: Sequence[LoadedBenchmark],
    settings: EvaluationConfig,
    retriever: Retriever | None,
    seed: int,
) -> Entry:
    """Write the prompts of a contestant that has its template; see `mlxmath.evaluation.contestants.with_templates`.

    Raises:
        InputError: a prompt is many times as long as the model's context.
        MlxmathError: its model or adapter is missing, or its tokenizer does not load.
    """
    assert contestant.template is not None
    identity, retriever = contestant.identity(), retriever if contestant.formulas else None
    shots = examples(settings.few_shot, {b.name: b.kind for b in benchmarks}) if settings.few_shot else ()
    prompts = Prompts(load_tokenizer(contestant.model), contestant.template, settings.shots, retriever, shots)
    tokenizer = load_generation_tokenizer(contestant.model, contestant.template)
    varied = contestant.varied
    asked = [(b.asked(item, varied=varied), b.kind) for b in benchmarks for item in b.items]
    ids = {item.id: prompts.encode(item.question, kind) for item, kind in asked}
    limit = context_of(contestant.model)
    if limit is not None and (longest := max(map(len, ids.values()), default=0)) > _MOST_CONTEXTS * limit:
        raise InputError(f"--benchmark: a prompt has {longest:,} tokens, where the model's context ends at {limit:,}")
    if limit is not None and (num_long := sum(len(each) >= limit for each in ids.values())):
        warn(f"{counted(num_long, 'prompt')} of {contestant.label} exceed the model's context ({limit:,} tokens)")
    seeded = {"seed": seed} if settings.temperature > 0 else {}
    settled = {
        "template": prompts.template.definition,
        "end_tokens": sorted(tokenizer.eos_token_ids),
        "shots": settings.shots,
        **({"few_shot": settings.few_shot} if settings.few_shot else {}),
        "retrieve": settings.retrieve if contestant.formulas else None,
        "max_tokens": settings.max_tokens,
        "sampling": {"temperature": settings.temperature, "top_p": settings.top_p, **seeded},
        "prompts": fingerprint(ids),
        **({"tools": contestant.called} if contestant.called else {}),
    }
    num_formulas = {item.id: len(retriever.find(item.question)) if retriever else 0 for item, _ in asked}
    return Entry(contestant, prompts.template, tokenizer, ids, num_formulas, identity | settled)


@dataclass(frozen=True)
class Share:
    """The part of the work that this process does: every `world`-th answer, beginning with `rank`."""

    rank: int = 0
    world: int = 1


def ask_all(
    entries: Sequence[Entry],
    benchmarks: Sequence[LoadedBenchmark],
    settings: EvaluationConfig,
    seed: int,
    done: Mapping[tuple[str, str, int], Sample],
    path: Path,
    note: Callable[[str, str], None],
    backend: Backend,
    device: DeviceInfo,
    models: "Models",
    share: Share = Share(),
) -> None:
    """Answer what is not in `done`, and append it to `path`.

    Args:
        entries: the contestants; one model is in memory at a time.
        benchmarks: what they are asked.
        settings: how many samples, how they are drawn, how many decoded together.
        seed: of the samples; each answer's own is made from this, the problem and the sample's number.
        done: samples of an earlier process, by `Sample.key`.
        path: of samples.jsonl.
        note: told a contestant's label and how its answers are decoded, in words, before the first of them is there:
            a run that is killed after the last one has nothing to ask that contestant when it goes on.
        backend: tells the memory in use.
        device: to compute on.
        models: loads them.
        share: this process's part.
    """
    everything = ((b, item, n) for b in benchmarks for item in b.items for n in range(settings.samples))
    tasks = list(islice(everything, share.rank, None, share.world))
    with ExitStack() as opened:
        file = opened.enter_context(own_file(path))
        for entry in entries:
            label = entry.contestant.label
            there = [done.get((label, item.id, n)) for _, item, n in tasks]
            waiting = [task for task, sample in zip(tasks, there, strict=True) if sample is None]
            if not waiting:
                continue
            loaded = models.load(entry.contestant)
            right = [sample.correct for sample in there if sample]
            progress = Progress(label, len(tasks), len(right), sum(right))
            try:
                for benchmark in benchmarks:
                    if chosen := [(item, n) for owner, item, n in waiting if owner is benchmark]:
                        _ask(
                            entry, loaded, benchmark, chosen, settings, seed, file, note, backend, device, progress,
                            models.sharding is not None,
                        )  # fmt: skip
            finally:
                progress.close()
            del loaded  # else it would be in memory beside the next one


class Models:
    """Loads contestants' models, one at a time; what is in memory is used again, and a base takes the next adapter.

    Args:
        device: to load them for.
        sharding: how they are spread over the processes, which then all answer the same (None: each has whole ones).
        runtime: whether their blocks stay on the disk.
    """

    def __init__(self, device: DeviceInfo, sharding: Sharding | None, runtime: RuntimeConfig) -> None:
        self._device, self._dtype, self.sharding, self._runtime = device, device.compute_dtype, sharding, runtime
        self._held: tuple[Path, Path | None, Loaded | Served] | None = None

    def close(self) -> None:
        """Free the memory of what is held."""
        if self._held and isinstance(self._held[2], Served):
            self._held[2].close()
        self._held = None

    def load(self, contestant: Contestant) -> Loaded | Served:
        """The model of a contestant, with its adapter."""
        model, adapter = contestant.model, contestant.adapter
        on_disk = stays_on_disk(self._runtime, model, self._device, adapter, spread=self.sharding is not None)
        if self.sharding:
            group = mx.distributed.init()
            return load_sharded(model, self._dtype, self.sharding, group, adapter, read_fingerprint(model))[0]
        held = self._held
        if held is None or held[0] != model or held[1] not in (None, adapter) or isinstance(held[2], Served) != on_disk:
            del held
            self.close()  # before the next model is loaded
            self._held = model, None, serve(model, self._dtype) if on_disk else load_model(model, self._dtype)
        assert self._held
        _, there, loaded = self._held
        if adapter is not None and adapter != there:
            load_adapter(loaded.model, adapter, read_fingerprint(model))
            self._held = model, adapter, loaded
        return loaded


def _ask(
    entry: Entry,
    loaded: Loaded | Served,
    benchmark: LoadedBenchmark,
    chosen: Sequence[tuple[Item, int]],
    settings: EvaluationConfig,
    seed: int,
    file: IO[bytes],
    note: Callable[[str, str], None],
    backend: Backend,
    device: DeviceInfo,
    progress: Progress,
    is_sharded: bool,
) -> None:
    ids = [entry.prompts[item.id] for item, _ in chosen]
    max_tokens = settings.max_tokens or benchmark.max_tokens
    longest = max(map(len, ids)) + max_tokens
    held_bytes, on_disk = backend.memory().active_bytes, isinstance(loaded, Served)
    if on_disk:
        held_bytes = max(held_bytes, bytes_at_hand(loaded.model))
    slots, reason = choose_slots(
        loaded.config, device, held_bytes=held_bytes, longest=longest, asked=settings.concurrency, on_disk=on_disk
    )
    if is_sharded:  # all processes decode the same batches
        slots = int(mx.distributed.all_min(mx.array(slots)).item())
    loaded.model.eval()
    way = way_of(loaded.model)
    if way == "alone":
        slots, reason = 1, "this model bears no batch"
    how = f"{slots} at a time" + (" in groups of equally long prompts" if way == "in equal lengths" else "")
    say(
        f"{entry.contestant.label}: {len(chosen):,} answers to {benchmark.name}, {how} ({reason}), at most "
        f"{max_tokens:,} tokens each, template {entry.template.name}"
        + (f", with {entry.contestant.called}" if entry.contestant.called else "")
    )
    note(entry.contestant.label, how)
    progress.limit(max_tokens)
    last = time.perf_counter()

    def finish(index: int, completion: Completion, seconds: float) -> None:
        """Grade and write an answer; runs beside the generation, in order."""
        item, number = chosen[index]
        item = benchmark.asked(item, varied=entry.contestant.varied)
        truncated = completion.finish_reason == "length"
        verdict = grade(completion.text, item.gold, truncated=truncated)
        sample = Sample(
            entry.contestant.label, entry.fingerprint, benchmark.name, item.id, number, item.level, item.subject,
            item.question, item.gold, item.solution,
            entry.num_formulas[item.id],
            completion.text, verdict.extracted, verdict.rule, verdict.correct, completion.finish_reason,
            verdict.truncated, completion.num_prompt_tokens, len(completion.tokens), round(seconds, 4),
        )  # fmt: skip
        with disk_errors(Path(file.name)):
            write_sample(file, sample)
        progress.answered(verdict.correct)

    with ThreadPoolExecutor(max_workers=1) as grader:
        pending: list[Future[None]] = []

        def on_done(index: int, completion: Completion) -> None:
            nonlocal last
            now = time.perf_counter()
            progress.ended(len(completion.tokens) + (completion.finish_reason == "stop"))
            while pending and pending[0].done():
                pending.pop(0).result()
            pending.append(grader.submit(finish, index, completion, now - last))
            last = now

        generate_batch(
            loaded.model,
            entry.tokenizer,
            ids,
            Sampling(max_tokens, settings.temperature, settings.top_p, seed),
            seeds=[seed_of(seed, item.id, number) for item, number in chosen],
            concurrency=slots,
            tool=entry.contestant.called,
            on_done=on_done,
            on_step=progress.step,
        )
        for future in pending:
            future.result()
    mx.clear_cache()
