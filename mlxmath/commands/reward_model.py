"""`mlxmath reward-model`: a scorer of completions, trained on pairs of a chosen and a rejected one."""

import shlex
from functools import partial
from typing import TYPE_CHECKING, Any

from mlxmath.commands import options
from mlxmath.config.load import TRAINED_FROM, Resolved
from mlxmath.runtime.console import say

if TYPE_CHECKING:
    from mlxmath.runtime.ranks import Ranks


@options.command("reward-model", shared=True)
@options.training_options(options.PAIRS, options.REWARD_MODEL)
def main(**values: Any) -> None:
    """Train a model that scores completions, on pairs of a preferred and a rejected one (Bradley-Terry).

    The dataset is as for `mlxmath dpo`. With --validation-split or --validation-dataset its accuracy on held-out pairs
    is told. Use it with `mlxmath grpo --reward model:FOLDER`.
    """
    options.run_with_ranks(train_reward_model, options.settings(values), (*TRAINED_FROM, "reward_model"))


def train_reward_model(resolved: Resolved, ranks: "Ranks") -> int:
    """Run it; the adapter and the score head are in `training.adapter_path` of rank 0 afterwards.

    Returns:
        See `mlxmath.session.training.Outcome`.

    Raises:
        InputError: a setting is wrong, or has no use here.
        MlxmathError: see the parts.
    """
    from mlxmath.models.lora.adapter import REWARD_MODEL
    from mlxmath.models.score import add_score_head
    from mlxmath.objectives.pair_sums import REWARDS
    from mlxmath.objectives.reward_model import BradleyTerry
    from mlxmath.session.course import over_rows
    from mlxmath.session.material import check_pairs, read_pairs
    from mlxmath.session.opening import Session, add_adapters
    from mlxmath.session.training import at_mlx_path, train
    from mlxmath.training.scoring import RewardGradients
    from mlxmath.training.watching import pair_rewards

    check_pairs(resolved)
    session = Session(resolved, ranks, partial(read_pairs, scored=True), "reward_model")
    adapters = add_adapters(session, **{REWARD_MODEL: True})
    add_score_head(session.model)
    scores_of = session.gradients(BradleyTerry(resolved.config.reward_model))
    course_of = over_rows(session, pair_rewards(REWARDS))
    outcome = train(session, adapters, lambda model: RewardGradients(model, scores_of), course_of)
    if outcome.exit_code == 0:
        reward, model = shlex.quote(f"model:{session.folder}"), shlex.quote(session.config.model.model)
        say(f"use it: python -m mlxmath grpo --reward {reward} --model {model}{at_mlx_path(session.config)} ...")
    return outcome.exit_code
