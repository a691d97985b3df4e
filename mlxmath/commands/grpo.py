"""`mlxmath grpo`: reinforcement learning with graded answers, from the base or from an adapter.

Completions are drawn, scored and compared within groups by `mlxmath.training.rollouts`; all else is as in
`mlxmath train`.
"""

from typing import TYPE_CHECKING, Any

import click

from mlxmath.commands import options
from mlxmath.config.load import TRAINED_FROM, Resolved
from mlxmath.errors import InputError
from mlxmath.runtime.console import say

if TYPE_CHECKING:
    from mlxmath.runtime.ranks import Ranks


@options.command("grpo", shared=True)
@click.option(
    "--reward", "rewards", multiple=True, metavar="NAME[=WEIGHT]",
    help="A reward that counts: correctness, format, tag_count, reasoning_steps, cosine_length, repetition, "
    "soft_overlong, faithfulness, doubt, model:FOLDER (a reward model), or your own MODULE:FUNCTION; may be repeated.",
)  # fmt: skip
@options.training_options(options.PROMPTS, options.GRPO)
def main(rewards: tuple[str, ...], **values: Any) -> None:
    """Improve an adapter by group-relative policy optimization (GRPO) on problems with known answers."""
    if rewards:
        pairs = dict(map(_weighted, rewards))
        entries = ", ".join(f'"{name}" = {weight!r}' for name, weight in pairs.items())
        values["set"] = (*(values.get("set") or ()), f"grpo.reward_weights={{ {entries} }}")
    options.run_with_ranks(grpo, options.settings(values), (*TRAINED_FROM, "grpo"))


def _weighted(text: str) -> tuple[str, float]:
    name, separator, weight = text.partition("=")
    try:
        return name.strip(), float(weight) if separator else 1.0
    except ValueError:
        raise InputError(f"--reward {text}: expected NAME=WEIGHT with a number, found {weight!r}.") from None


def grpo(resolved: Resolved, ranks: "Ranks") -> int:
    """Run it; the adapters are in `training.adapter_path` of rank 0 afterwards.

    Returns:
        See `mlxmath.session.training.Outcome`.

    Raises:
        InputError: a setting is wrong.
        MlxmathError: see the parts; a reward function failed.
    """
    from mlxmath.models.lora.adapter import WEIGHTS, read_reward_model
    from mlxmath.objectives.grpo import Logprobs, PolicyGradient
    from mlxmath.objectives.rewards import MODEL, Rewards
    from mlxmath.runtime.files import sha256
    from mlxmath.session.opening import Session, add_adapters
    from mlxmath.session.prompts import read_prompts
    from mlxmath.session.rollouts import over_prompts
    from mlxmath.session.training import train, try_it
    from mlxmath.training.checkpoint import ENDS
    from mlxmath.training.gradients import choose_gradients
    from mlxmath.training.reference import Reference
    from mlxmath.training.scoring import Scorer
    from mlxmath.training.workers import replica

    _check(resolved)
    settings = resolved.config.grpo
    rewards = Rewards(settings.reward_weights)
    for path in rewards.models.values():
        read_reward_model(path)
    models = {name: MODEL + sha256(path / WEIGHTS)[:16] for name, path in rewards.models.items()}  # wherever they lie
    fixed = {"grpo.reward_weights": {models.get(name, name): value for name, value in settings.reward_weights.items()}}
    session = Session(resolved, ranks, read_prompts, "grpo", fixed, keep_start=True)
    session.fixed[ENDS] = session.material.ends
    bases = {name: replica(session.model) for name in rewards.models}
    adapters = add_adapters(session)
    for name, path in rewards.models.items():
        scorer = Scorer(
            bases[name], path, session.manifest.identity, session.material.tokenizer, session.config.training,
            max_tokens=session.batching.tokens, shape=session.shape, kernels=session.kernels,
            num_workers=session.batching.num_workers,
        )  # fmt: skip
        rewards.use(name, scorer)
    reference = None
    if settings.beta:
        logprobs = choose_gradients(session.model, Logprobs(settings.temperature), session.kernels, compiled=False)
        reference = Reference(session.model, logprobs, ranks)
    course_of = over_prompts(session, rewards, reference)
    outcome = train(session, adapters, session.gradients(PolicyGradient(settings)), course_of)
    if outcome.exit_code == 0:
        say(try_it(session.config))
    return outcome.exit_code


def _check(resolved: Resolved) -> None:
    """Refuse settings that do not go together."""
    from mlxmath.training.run import check_initial_adapter

    config, training, size = resolved.config, resolved.config.training, resolved.config.grpo.num_generations
    if training.batch_size * training.grad_accumulation_steps % size:
        raise InputError(
            f"--batch-size {training.batch_size} times --grad-accumulation-steps {training.grad_accumulation_steps} "
            f"completions a step are no multiple of --num-generations {size}."
        )
    check_initial_adapter(training)
    if config.lora.dropout:
        raise InputError(
            f"{resolved.where('lora.dropout')}: expected 0 with GRPO, found {config.lora.dropout:g}; completions are "
            "drawn without dropout, and the policy that is scored must be the one that drew them."
        )
