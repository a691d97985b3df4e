"""`mlxmath grpo`: reinforcement learning with graded answers, from the base or from an adapter.

Completions are drawn, scored and compared within groups by `mlxmath.training.rollouts`; the loop, the checkpoints and
the adapter folder are those of `mlxmath train`.
"""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxmath import __version__, options
from mlxmath.config.load import RUN_FILE, TRAINED_FROM, Resolved
from mlxmath.config.schema import DataConfig, RunConfig
from mlxmath.console import duration, fail, say, size
from mlxmath.errors import InputError

if TYPE_CHECKING:
    from mlxmath.backends.ranks import Ranks
    from mlxmath.objectives.rollout import Prompt
    from mlxmath.problems.prompts import Template

SECTIONS = (*TRAINED_FROM, "grpo")


@options.command("grpo", shared=True)
@click.option(
    "--reward", "rewards", multiple=True, metavar="NAME[=WEIGHT]",
    help="A reward that counts: correctness, format, tag_count, reasoning_steps, cosine_length, repetition, "
    "soft_overlong, faithfulness, doubt, model:FOLDER (a reward model), or your own MODULE:FUNCTION; may be repeated.",
)  # fmt: skip
@options.configured
@options.setting_options(
    *options.MODEL, *options.MODEL_WRITE, *options.PROMPTS, *options.LORA, *options.TRAINING, *options.GRPO,
    *options.RUNTIME, *options.SCHEDULING,
)  # fmt: skip
def main(rewards: tuple[str, ...], **values: Any) -> None:
    """Improve an adapter by group-relative policy optimization (GRPO) on problems with known answers."""
    if rewards:
        pairs = dict(map(_weighted, rewards))
        entries = ", ".join(f'"{name}" = {weight!r}' for name, weight in pairs.items())
        values["set"] = (*(values.get("set") or ()), f"grpo.reward_weights={{ {entries} }}")
    resolved = options.settings(values)
    options.run_with_ranks(grpo, resolved, SECTIONS)


def _weighted(text: str) -> tuple[str, float]:
    name, separator, weight = text.partition("=")
    try:
        return name.strip(), float(weight) if separator else 1.0
    except ValueError:
        raise InputError(f"--reward {text}: expected NAME=WEIGHT with a number, found {weight!r}.") from None


def grpo(resolved: Resolved, ranks: "Ranks") -> int:
    """Run it; the adapters are in `training.adapter_path` of rank 0 afterwards.

    Returns:
        0, or 128 + the signal's number if a signal ended the run (saved, to be resumed).

    Raises:
        InputError: a setting is wrong.
        MlxmathError: see the parts; a reward function failed.
    """
    from mlxmath.backends.select import open_backend

    config, training, settings = resolved.config, resolved.config.training, resolved.config.grpo
    per_step = training.batch_size * training.grad_accumulation_steps
    if per_step % settings.num_generations:
        raise InputError(
            f"--batch-size {training.batch_size} times --grad-accumulation-steps {training.grad_accumulation_steps} "
            f"completions a step are no multiple of --num-generations {settings.num_generations}."
        )
    if training.init_adapter and Path(training.init_adapter).resolve() == Path(training.adapter_path).resolve():
        raise InputError(
            f"--init-adapter and --adapter-path are both {training.adapter_path}; write the result to another folder."
        )
    if config.lora.dropout:
        raise InputError(
            f"{resolved.where('lora.dropout')}: expected 0 with GRPO, found {config.lora.dropout:g}; completions are "
            "drawn without dropout, and the policy that is scored must be the one that drew them."
        )
    backend, device = open_backend(config.runtime, training.seed, ranks.num_on_host)

    import mlx.core as mx

    from mlxmath.data.batches import Shape
    from mlxmath.data.render import adds_bos
    from mlxmath.evaluation.samples import fingerprint
    from mlxmath.files import atomic_write, read_json, sha256
    from mlxmath.generation.engine import load_generation_tokenizer
    from mlxmath.generation.slots import choose_slots
    from mlxmath.kernels.select import kernels_for
    from mlxmath.lora.adapter import WEIGHTS, adapter_config, load_initial, read_reward_model
    from mlxmath.lora.inject import inject, open_blocks
    from mlxmath.models.load import load_model
    from mlxmath.models.memory import Batching, choose_batching
    from mlxmath.models.tuning import tune_for_training
    from mlxmath.objectives.grpo import Logprobs, PolicyGradient
    from mlxmath.objectives.rewards import Rewards
    from mlxmath.plan import check_fits
    from mlxmath.problems.prompts import get_template
    from mlxmath.training import run
    from mlxmath.training.checkpoint import Saver, check_settings, restore, share_checkpoint, share_state
    from mlxmath.training.deadline import Deadline, StopRequest
    from mlxmath.training.drawing import Drawing, wrong_answers
    from mlxmath.training.events import EVENTS, EventLog
    from mlxmath.training.fit import MAX_BAD_WINDOWS, Ending, Hook, Position, fit
    from mlxmath.training.gradients import choose_gradients
    from mlxmath.training.live import terminal
    from mlxmath.training.optimizers import make_optimizer
    from mlxmath.training.reference import Reference
    from mlxmath.training.rollouts import RolloutSource
    from mlxmath.training.schedule import learning_rates
    from mlxmath.training.scoring import Scorer
    from mlxmath.training.validation import BEST, Validation
    from mlxmath.training.watching import CURVES, Watch, plot_curves
    from mlxmath.training.workers import Workers, replica
    from mlxmath.weights.convert import ensure_model

    rewards = Rewards(settings.reward_weights)
    for path in rewards.models.values():
        read_reward_model(path)
    template = get_template(config.data.template, config.data.template_file)
    folder, model_folder = Path(training.adapter_path), Path(config.model.mlx_path)
    checkpoint = share_checkpoint(run.claim(config) if ranks.first else None, ranks)
    with ranks.in_turn("preparing"):
        manifest = ensure_model(config.model)
        tokenizer = load_generation_tokenizer(model_folder)
        prompts, held_out = _prompts(config, tokenizer, template)
    prompts_fingerprint, held_out_fingerprint = (fingerprint([(p.tokens, p.gold) for p in each]) for each in
                                                 (prompts, held_out))  # fmt: skip
    fixed = run.fixed_settings(config, manifest.fingerprint, prompts_fingerprint, held_out_fingerprint)
    fixed |= {f"grpo.{name}": value for name, value in settings.model_dump(mode="json").items()}
    fixed |= {f"reward {name}": sha256(path / WEIGHTS) for name, path in rewards.models.items()}
    run.agree(ranks, config, device, fixed)
    fixed["initial adapter"] = None

    shape = Shape(backend.bucket_multiple, target_steps=16 if backend.supports("compile") else 0)
    most = max(len(prompt.tokens) for prompt in [*prompts, *held_out]) + settings.max_completion_length
    planned_bytes = check_fits(config, model_folder, read_json(model_folder / "config.json"), device, shape.width(most))
    loaded = load_model(model_folder, device.compute_dtype)
    model = loaded.model
    bases = {name: replica(model) for name in rewards.models}
    mx.random.seed(training.seed)
    injected = open_blocks(model, config.lora.num_layers) if training.full else inject(model, config.lora)
    say(str(injected))
    adapter = adapter_config(
        config.lora, injected.keys, full=training.full, base_model=config.model.model,
        base_fingerprint=manifest.fingerprint, template=template.name, template_definition=template.definition,
        mlxmath_version=__version__,
    )  # fmt: skip
    if training.init_adapter and ranks.first:
        fixed["initial adapter"] = sha256(Path(training.init_adapter) / WEIGHTS)
        load_initial(model, Path(training.init_adapter), adapter)
        say(f"starting from the adapter in {training.init_adapter}")
    optimizer = make_optimizer(training, model, config.lora.plus_ratio)
    share_state(model, optimizer, ranks)

    batching = choose_batching(loaded.config, config, device, shape.width(most))
    kernels = kernels_for(device, batching.num_workers)
    tune_for_training(model, batching.tokens)
    for name, path in rewards.models.items():
        rewards.use(
            name,
            Scorer(
                bases[name], path, manifest.fingerprint, tokenizer, training, max_tokens=batching.tokens,
                shape=shape, kernels=kernels, num_workers=batching.num_workers,
            ),
        )  # fmt: skip
    reference = None
    if settings.beta:
        scorer = choose_gradients(model, Logprobs(settings.temperature), kernels, compiled=False)
        reference = Reference(model, scorer, ranks)
    position = Position()
    if checkpoint:
        if ranks.first:
            check_settings(checkpoint, fixed)
            restore(checkpoint, model, optimizer)
        position = checkpoint.position
        share_state(model, optimizer, ranks)
    workers = Workers(
        model,
        lambda replica: choose_gradients(
            replica, PolicyGradient(settings), kernels, compiled=backend.supports("compile"),
            checkpoint_every=training.grad_checkpoint,
        ),
        batching.num_workers,
        ranks,
    )  # fmt: skip
    batching = Batching(workers.num_in_all, min(ranks.gather("batching", batching.tokens)))
    slots, reason = choose_slots(loaded.config, device, held_bytes=backend.memory().active_bytes, longest=most)
    total = training.num_epochs * -(-len(prompts) * settings.num_generations // per_step) * settings.num_iterations
    total = min(total, training.max_steps or total)
    say(
        f"{len(prompts):,} problems; at most {total:,} steps of {per_step // settings.num_generations} problems x "
        f"{settings.num_generations} completions, drawn {slots} at a time ({reason}); {workers.how}"
    )

    stop, deadline = StopRequest(), Deadline(training.max_training_time_hours * 3600)
    drawing = Drawing(
        workers, tokenizer, settings, rewards, seed=training.seed, concurrency=slots, deadline=deadline, stop=stop
    )
    source = RolloutSource(
        workers,
        drawing,
        prompts,
        settings,
        training,
        batching,
        shape,
        reference=reference,
        deadline=deadline,
        stop=stop,
    )
    validation = Validation(
        workers, [], folder, training,
        windows_per_epoch=source.rollouts_per_epoch * settings.num_iterations, total_steps=total,
        deadline=deadline, stop=stop,
        measure=(
            lambda stopped: wrong_answers(workers, tokenizer, held_out, settings.max_completion_length, slots, stopped)
        )
        if held_out
        else None,
    )  # fmt: skip

    def loop(*hooks: Hook) -> tuple[Ending, Position]:
        if checkpoint:
            source.restore(checkpoint)
            validation.restore(checkpoint)
        backend.reset_peak()
        ranks.begin()
        if early := validation.catch_up(position):
            return early, position
        ending, reached = fit(
            workers,
            islice(source.windows(position.step), max(0, total - position.step)),
            optimizer,
            learning_rates(training, total),
            max_grad_norm=training.max_grad_norm,
            deadline=deadline,
            stop=stop,
            hooks=hooks,
            position=position,
        )
        return (source.ending or ending) if ending == "finished" else ending, reached

    if not ranks.first:
        with stop.listening():
            ending, _ = loop(source.on_step, validation.on_step)
            return run.exit_code(ending, stop)

    chat = template.for_tokenizer(tokenizer).chat_template(bos=adds_bos(tokenizer))
    run.start(folder, adapter, chat, anew=checkpoint is None)
    commit = {"model.revision": manifest.revision} if manifest.revision else {}
    atomic_write(folder / RUN_FILE, resolved.as_toml(SECTIONS, commit))
    facts = {"fingerprint": prompts_fingerprint, "problems": len(prompts), "held_out": len(held_out)}
    record = run.Record(folder, resolved, device, facts, injected)
    events = EventLog(folder / EVENTS, from_step=position.step)
    events.write("resume" if checkpoint else "start", step=position.step, total_steps=total)
    watch = Watch(events, total, position.step, deadline, terminal())
    source.listener = watch.on_rollout
    validation.listeners = (watch.on_validation, lambda _: record.update(validation=validation.summary()))
    saver = Saver(folder, model, optimizer, fixed, training, deadline, parts=[source, validation])
    with stop.listening(), watch:
        ending, position = loop(source.on_step, watch.on_step, validation.on_step, saver.on_step)
        saver.save(position)
    memory, seconds = backend.memory(), deadline.elapsed_s
    events.write("end", step=position.step, status=ending, seconds=seconds, peak_bytes=memory.peak_bytes)
    plot_curves(folder / EVENTS, folder / CURVES)
    record.write(
        status=ending, steps=position.step, seconds=seconds, validation=validation.summary(),
        answers_timed_out=watch.num_timed_out, planned_bytes=planned_bytes, ranks=ranks.summary(),
        **vars(memory),
    )  # fmt: skip
    say(
        f"{ending} at step {position.step} of {total} after {duration(seconds)}; peak memory "
        f"{size(memory.peak_bytes)}; adapters, curves and checkpoints are in {folder}"
    )
    if ending == "diverged":
        fail(
            f"the last {MAX_BAD_WINDOWS} steps were not finite; {folder} holds the last good adapters. Lower "
            "--learning-rate."
        )
        return run.exit_code(ending, stop)
    if best := validation.best:
        say(f"the best, {1 - best.loss:.1%} of the held-out problems, was at step {best.step}: {folder / BEST}")
    if ending not in ("finished", "early_stopped"):
        say("continue with the same command and --resume")
    return run.exit_code(ending, stop)


def _prompts(config: RunConfig, tokenizer: Any, template: "Template") -> "tuple[list[Prompt], list[Prompt]]":
    """The problems to learn from, and those to measure on if any are asked for."""
    import numpy as np

    from mlxmath.prepare import held_out_config

    training = config.training
    prompts = _read(config, config.data, tokenizer, template)
    if training.validation_dataset is not None:
        other, _ = held_out_config(config.data, training.validation_dataset)
        return prompts, _read(config, other, tokenizer, template)
    if training.validation_split is None:
        return prompts, []
    share = training.validation_split
    count = int(share if share >= 1 else max(1, round(share * len(prompts))))
    if count >= len(prompts):
        raise InputError(f"--validation-split {share:g}: there are only {len(prompts):,} problems.")
    chosen = set(np.random.default_rng(training.seed).permutation(len(prompts))[:count].tolist())
    return (
        [prompt for i, prompt in enumerate(prompts) if i not in chosen],
        [prompt for i, prompt in enumerate(prompts) if i in chosen],
    )


def _read(config: RunConfig, data: DataConfig, tokenizer: Any, template: "Template") -> "list[Prompt]":
    """The problems of `data` that have an answer and leave room for a completion."""
    from mlxmath.data.render import encode_prompt
    from mlxmath.grading.extract import extract
    from mlxmath.objectives.rollout import Prompt
    from mlxmath.problems.mixture import Mixture

    own = template.for_tokenizer(tokenizer)
    if own.stop:
        tokenizer.add_eos_token(own.stop)
    mixture = Mixture(data)
    mixture.choose()
    prompts: list[Prompt] = []
    num_unanswered = num_long = 0
    room = data.max_seq_len - config.grpo.max_completion_length
    for problem in mixture:
        found = None if problem.answer or not problem.solution else extract(problem.solution)
        gold = problem.answer or (found.text if found else None)
        tokens = tuple(encode_prompt(tokenizer, own.prompt(problem.question)))
        num_unanswered += not gold
        num_long += bool(gold) and len(tokens) > room
        if gold and len(tokens) <= room:
            prompts.append(Prompt(len(prompts), problem.question, gold, tokens))
    names = ", ".join(str(source) for source in mixture.sources)
    left_out = f"{num_unanswered:,} without an answer and {num_long:,} too long left out"
    say(f"{names}: {len(prompts):,} problems ({left_out})")
    if not prompts:
        raise InputError(
            f"{names}: no problem is left ({left_out}; --max-seq-len {data.max_seq_len} leaves {room} tokens to a "
            "prompt)."
        )
    return prompts


if __name__ == "__main__":
    main(prog_name="python -m mlxmath.grpo")
