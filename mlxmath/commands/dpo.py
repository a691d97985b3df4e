"""`mlxmath dpo`: preference tuning on pairs of a chosen and a rejected completion, without a reward model."""

from typing import TYPE_CHECKING, Any

from mlxmath.commands import options
from mlxmath.config.load import TRAINED_FROM, Resolved
from mlxmath.runtime.console import say

if TYPE_CHECKING:
    from mlxmath.runtime.ranks import Ranks


@options.command("dpo", shared=True)
@options.training_options(options.PAIRS, options.DPO)
def main(**values: Any) -> None:
    """Tune an adapter on pairs of a preferred and a rejected completion (DPO, IPO or ORPO).

    The dataset has the columns prompt (or question, problem …), chosen and rejected, as text or as messages;
    `mlxmath distill` makes such pairs. Batch sizes count pairs.
    """
    options.run_with_ranks(dpo, options.settings(values), (*TRAINED_FROM, "dpo"))


def dpo(resolved: Resolved, ranks: "Ranks") -> int:
    """Run it; the adapters are in `training.adapter_path` of rank 0 afterwards.

    The reference is the model at the start: the base without adapters, or that of `training.init_adapter`.

    Returns:
        See `mlxmath.session.training.Outcome`.

    Raises:
        InputError: a setting is wrong, or has no use here.
        MlxmathError: see the parts.
    """
    from mlxmath.objectives.dpo import METRICS, PreferenceOptimization, RowLogprobs
    from mlxmath.session.course import over_rows
    from mlxmath.session.material import check_pairs, read_pairs
    from mlxmath.session.opening import Session, add_adapters
    from mlxmath.session.training import train, try_it
    from mlxmath.training.gradients import Gradients, choose_gradients
    from mlxmath.training.preferences import PreferenceGradients, ReferenceLogprobs, frozen
    from mlxmath.training.watching import pair_rewards
    from mlxmath.training.workers import replica

    check_pairs(resolved)
    config = resolved.config
    needs_reference, from_base = config.dpo.loss_type != "orpo", not config.training.init_adapter
    session = Session(resolved, ranks, read_pairs, "dpo", keep_start=needs_reference)
    reference = frozen(session.model) if needs_reference and from_base else None
    adapters = add_adapters(session)
    if needs_reference and not from_base:
        reference = frozen(session.model)
    policy_of, kept = session.gradients(PreferenceOptimization(config.dpo)), ReferenceLogprobs(ranks)

    def gradients_of(model: Any) -> Gradients:
        policy = policy_of(model)
        if reference is None:
            return policy
        logprobs = choose_gradients(replica(reference), RowLogprobs(), session.kernels, compiled=False)
        return PreferenceGradients(policy, logprobs, kept)

    course_of = over_rows(session, pair_rewards(METRICS), [kept], [kept.on_step])
    outcome = train(session, adapters, gradients_of, course_of)
    if outcome.exit_code == 0:
        say(try_it(config))
    return outcome.exit_code
