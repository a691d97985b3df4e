"""`mlxmath reward-model`: a scorer of completions, trained on pairs of a chosen and a rejected one."""

from pathlib import Path
from typing import Any

from mlxmath import options
from mlxmath.config.load import TRAINED_FROM, Resolved
from mlxmath.console import say


@options.command("reward-model")
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
    say("settings:")
    for line in resolved.lines((*TRAINED_FROM, "reward_model")):
        say(line)
    if exit_code := train_reward_model(resolved):
        raise SystemExit(exit_code)


def train_reward_model(resolved: Resolved) -> int:
    """Run it; the adapter and the score head are in `training.adapter_path` afterwards.

    Returns:
        0, or 128 + the signal's number if a signal ended the run (saved, to be resumed).

    Raises:
        InputError: a setting is wrong, or has no use here.
        MlxmathError: see the parts.
    """
    from mlxmath.lora.adapter import REWARD_MODEL
    from mlxmath.models.score import add_score_head
    from mlxmath.objectives.pair_sums import REWARDS
    from mlxmath.session import Session
    from mlxmath.training.scoring import RewardGradients

    session = Session(resolved, "reward_model", scored=True, **{REWARD_MODEL: True})
    add_score_head(session.model)
    exit_code = session.train(
        lambda model: RewardGradients(
            model, resolved.config.reward_model, session.kernels, compiled=session.backend.supports("compile"),
            checkpoint_every=resolved.config.training.grad_checkpoint,
        ),
        REWARDS,
    )  # fmt: skip
    if not exit_code:
        say(f"use it: python -m mlxmath.grpo --reward model:{Path(resolved.config.training.adapter_path)}")
    return exit_code


if __name__ == "__main__":
    main(prog_name="python -m mlxmath.reward_model")
