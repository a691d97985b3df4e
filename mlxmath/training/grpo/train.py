"""Reinforcement learning with graded answers: group-relative policy optimization, from the base or from an adapter."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mlxmath.config.load import Resolved
from mlxmath.models.lora.adapter import read_reward_model
from mlxmath.runtime.console import say
from mlxmath.runtime.ranks import Ranks
from mlxmath.tools.run import check as check_tool
from mlxmath.training.accumulate import replica
from mlxmath.training.checkpoint import ENDS
from mlxmath.training.events import Callback, TrainResult
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.grpo.logging import RolloutLogger
from mlxmath.training.grpo.loss import Entropies, Reference, grpo_loss, target_entropies, target_logprobs
from mlxmath.training.grpo.prompts import Prompts, load_prompts
from mlxmath.training.grpo.rewards import Rewards
from mlxmath.training.grpo.rollouts import Rollouts
from mlxmath.training.grpo.sampling import CompletionSampler, check_drawing, choose_concurrency, held_out_problems
from mlxmath.training.held_out import HeldOut
from mlxmath.training.judge import judged
from mlxmath.training.reward_model import RewardModel
from mlxmath.training.setup import Run
from mlxmath.training.trainer import Trainer


@judged
def grpo(
    settings: Resolved, ranks: Ranks | None = None, callback: Callback | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> TrainResult:  # fmt: skip
    """Draw completions of problems, reward them, and make the better ones of each group more likely.

    The adapters are in the folder `training.adapter_path` of rank 0 afterwards.

    Args:
        settings: of the sections model, data, lora, training, grpo and runtime.
        ranks: the processes that train together (None: this one alone).
        callback: given each event of the run as it happens, on rank 0.
        functions: rewards of the caller's own, by the names under which `grpo.reward_weights` has them.

    Raises:
        InputError: a setting is wrong, or has no use here.
        MlxmathError: the model or the data cannot be had, do not fit into the memory, or are damaged; a reward failed.
    """
    check_tool(settings.config.data.tools)
    config = settings.config.grpo
    check_drawing(settings, config)
    rewards = Rewards(config.reward_weights, functions or {})
    for path in rewards.models.values():
        read_reward_model(path)
    with Run("grpo", settings, ranks or Ranks(), keep_start=True) as run:
        tools = {"data.tools": run.config.data.tools} if run.config.data.tools else {}
        data = run.read(load_prompts, fixed={"grpo.reward_weights": rewards.identity, **tools})
        run.fixed[ENDS] = data.ends
        run.load_base()
        bases = {name: replica(run.model) for name in rewards.models}
        run.add_adapters()
        for name, path in rewards.models.items():
            scorer = RewardModel(
                bases[name], path, run.manifest.identity, data.tokenizer, settings.config.training,
                max_tokens=run.batching.tokens, shape=run.shape, kernels=run.kernels,
                num_workers=run.batching.num_workers,
            )  # fmt: skip
            run.closing.callback(scorer.workers.close)
            rewards.use(name, scorer)
        reference = None
        if config.beta:
            logprobs = partial(target_logprobs, temperature=config.temperature)
            reference = Reference(
                run.model, choose_gradients(run.model, logprobs, run.kernels, compiled=False), run.ranks
            )
        entropies = None
        if config.top_entropy_quantile < 1:
            of_targets = partial(target_entropies, temperature=config.temperature)
            found = choose_gradients(run.model, of_targets, run.kernels, compiled=False)
            entropies = Entropies(run.model, found, config.top_entropy_quantile, run.ranks)

        trainer = Trainer(run, run.gradients(partial(grpo_loss, config=config)))
        log = RolloutLogger(callback)
        rollouts, held_out = sample(trainer, data, rewards, reference, entropies, log)
        with trainer.running(rollouts, held_out, log, parts=[rollouts]):
            for batch in trainer.steps():  # of each rollout one or more: drawn, rewarded, compared within groups
                sums = trainer.loss_and_grads(batch)
                if sums is None:
                    break
                step = trainer.update(sums)
                rollouts.step_done()
                log.step(step)
                trainer.validate_if_due()
                trainer.save_if_due()
        return trainer.result


def sample(
    trainer: Trainer, data: Prompts, rewards: Rewards, reference: Reference | None, entropies: Entropies | None,
    log: RolloutLogger,
) -> tuple[Rollouts, HeldOut | None]:  # fmt: skip
    """The rollouts of the prompts to learn from, and the problems to measure on, which the workers' model answers."""
    run, workers, training, config = trainer.run, trainer.workers, trainer.config, trainer.run.config.grpo
    slots, reason = choose_concurrency(run, config, data.longest)
    sampler = CompletionSampler(
        workers, data.tokenizer, config, rewards, seed=training.seed, concurrency=slots, deadline=trainer.deadline,
        stop=trainer.stop, tool=run.config.data.tools,
    )  # fmt: skip
    rollouts = Rollouts(
        workers, sampler, data.prompts, config, training, run.max_tokens, run.shape,
        slots=run.ranks.gather("slots", slots), reference=reference, entropies=entropies, deadline=trainer.deadline,
        stop=trainer.stop, end=trainer.end, listener=log.rollout,
    )  # fmt: skip
    total_steps = trainer.planned_steps(rollouts.steps_per_epoch)
    rollouts.num_epochs = max(training.num_epochs, -(-total_steps // rollouts.steps_per_epoch))
    say(
        f"{len(data.prompts):,} problems; at most {total_steps:,} steps of {rollouts.prompts_per_step} problems x "
        f"{config.num_generations} completions, drawn {slots} at a time ({reason}); {workers.how}"
    )
    tool = run.config.data.tools
    return rollouts, held_out_problems(
        workers, data.tokenizer, data.held_out, config.max_completion_length, training, slots, tool
    )
