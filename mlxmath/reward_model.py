"""`mlxmath reward-model`: a scorer of completions, trained on pairs of a chosen and a rejected one."""

from functools import partial
from typing import TYPE_CHECKING, Any

from mlxmath import options
from mlxmath.config.load import TRAINED_FROM, Resolved
from mlxmath.console import say

if TYPE_CHECKING:
    from mlxmath.backends.ranks import Ranks


@options.command("reward-model", shared=True)
@options.configured
@options.setting_options(
    *options.MODEL, *options.MODEL_WRITE, *options.PAIRS, *options.LORA, *options.TRAINING, *options.REWARD_MODEL,
    *options.RUNTIME, *options.SCHEDULING,
)  # fmt: skip
def main(**values: Any) -> None:
    """Train a model that scores completions, on pairs of a preferred and a rejected one (Bradley-Terry).

    The dataset is as for `mlxmath dpo`. With --validation-split or --validation-dataset its accuracy on held-out pairs
    is told. Use it with `mlxmath grpo --reward model:FOLDER`.
    """
    resolved = options.settings(values)
    options.run_with_ranks(train_reward_model, resolved, (*TRAINED_FROM, "reward_model"))


def train_reward_model(resolved: Resolved, ranks: "Ranks") -> int:
    """Run it; the adapter and the score head are in `training.adapter_path` of rank 0 afterwards.

    Returns:
        0; 1 if it diverged; 128 + the signal's number if a signal ended the run (saved, to be resumed).

    Raises:
        InputError: a setting is wrong, or has no use here.
        MlxmathError: see the parts.
    """
    from mlxmath.lora.adapter import REWARD_MODEL
    from mlxmath.material import check_pairs, read_pairs
    from mlxmath.models.score import add_score_head
    from mlxmath.objectives.pair_sums import REWARDS
    from mlxmath.session import Session
    from mlxmath.training.scoring import RewardGradients
    from mlxmath.training.watching import CURVES, plot_pairs

    check_pairs(resolved, "reward_model")
    config = resolved.config
    session = Session(resolved, ranks, partial(read_pairs, scored=True), "reward_model", **{REWARD_MODEL: True})
    add_score_head(session.model)
    ending = session.train(
        lambda model: RewardGradients(
            model, config.reward_model, session.kernels, compiled=session.backend.supports("compile"),
            checkpoint_every=config.training.grad_checkpoint,
        ),
        plot_pairs,
        CURVES,
        metrics=REWARDS,
        shown=REWARDS,
    )  # fmt: skip
    if ending in ("finished", "early_stopped"):
        say(f"use it: python -m mlxmath.grpo --reward model:{config.training.adapter_path}")
    return session.exit_code(ending)


if __name__ == "__main__":
    main(prog_name="python -m mlxmath.reward_model")
