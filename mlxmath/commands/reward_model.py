"""`mlxmath reward-model`: a scorer of completions, trained on pairs of a chosen and a rejected one."""

import shlex
from typing import Any

from mlxmath.commands import options
from mlxmath.config.load import TRAINED_FROM, settings_from
from mlxmath.config.schema import RunConfig


@options.command("reward-model", shared=True, long=True)
@options.training_options("reward-model")
def main(**values: Any) -> None:
    """Train a model that scores completions, on pairs of a preferred and a rejected one (Bradley-Terry).

    The dataset is as for `mlxmath dpo`. With --validation-split or --validation-dataset its accuracy on held-out pairs
    is told. Use it with `mlxmath grpo --reward model:FOLDER`.
    """
    sections = (*TRAINED_FROM, "reward_model")
    settings = settings_from(sections, origin="option", **values)
    options.run_with_ranks("mlxmath.training.reward_model", "reward_model", settings, sections, use_it)


def use_it(config: RunConfig) -> str:
    """A command that uses the reward model."""
    reward = shlex.quote(f"model:{config.training.adapter_path}")
    model = shlex.quote(config.model.model)
    return f"use it: python -m mlxmath grpo --reward {reward} --model {model}{options.at_mlx_path(config)} ..."
