"""`mlxmath dpo`: preference tuning on pairs of a chosen and a rejected completion, without a reward model."""

from typing import TYPE_CHECKING, Any

from mlxmath import options
from mlxmath.config.load import TRAINED_FROM, Resolved

if TYPE_CHECKING:
    from mlxmath.backends.ranks import Ranks


@options.command("dpo", shared=True)
@options.configured
@options.setting_options(
    *options.MODEL, *options.MODEL_WRITE, *options.PAIRS, *options.LORA, *options.TRAINING, *options.DPO,
    *options.RUNTIME, *options.SCHEDULING,
)  # fmt: skip
def main(**values: Any) -> None:
    """Tune an adapter on pairs of a preferred and a rejected completion (DPO, IPO or ORPO).

    The dataset has the columns prompt (or question, problem …), chosen and rejected, as text or as messages;
    `mlxmath distill` makes such pairs. Batch sizes count pairs.
    """
    resolved = options.settings(values)
    options.run_with_ranks(dpo, resolved, (*TRAINED_FROM, "dpo"))


def dpo(resolved: Resolved, ranks: "Ranks") -> int:
    """Run it; the adapters are in `training.adapter_path` of rank 0 afterwards.

    The reference is the model at the start: the base without adapters, or that of `training.init_adapter`.

    Returns:
        0; 1 if it diverged; 128 + the signal's number if a signal ended the run (saved, to be resumed).

    Raises:
        InputError: a setting is wrong, or has no use here.
        MlxmathError: see the parts.
    """
    from mlxmath.material import check_pairs, read_pairs
    from mlxmath.objectives.dpo import METRICS, PreferenceOptimization, RowLogprobs
    from mlxmath.objectives.pair_sums import REWARDS
    from mlxmath.session import Session
    from mlxmath.training.gradients import Gradients, choose_gradients
    from mlxmath.training.preferences import PreferenceGradients, ReferenceLogprobs, frozen
    from mlxmath.training.watching import CURVES, plot_pairs
    from mlxmath.training.workers import replica

    check_pairs(resolved, "dpo")
    config = resolved.config
    needs_reference = config.dpo.loss_type != "orpo"
    from_base = needs_reference and not config.training.init_adapter
    session = Session(resolved, ranks, read_pairs, "dpo", keep_base=from_base, reference=needs_reference)
    kernels = session.kernels
    reference = frozen(session.base or session.model) if needs_reference else None
    kept = ReferenceLogprobs()

    def gradients_of(model: Any) -> Gradients:
        policy = choose_gradients(
            model, PreferenceOptimization(config.dpo), kernels, compiled=session.backend.supports("compile"),
            checkpoint_every=config.training.grad_checkpoint,
        )  # fmt: skip
        if reference is None:
            return policy
        return PreferenceGradients(
            policy, choose_gradients(replica(reference), RowLogprobs(), kernels, compiled=False), kept
        )

    ending = session.train(gradients_of, plot_pairs, CURVES, metrics=METRICS, shown=REWARDS, parts=[kept])
    return session.exit_code(ending)


if __name__ == "__main__":
    main(prog_name="python -m mlxmath.dpo")
