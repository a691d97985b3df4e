"""`mlxmath dpo`: preference tuning on pairs of a chosen and a rejected completion, without a reward model."""

from typing import Any

from mlxmath import options
from mlxmath.config.load import TRAINED_FROM, Resolved
from mlxmath.console import say


@options.command("dpo")
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
    say("settings:")
    for line in resolved.lines((*TRAINED_FROM, "dpo")):
        say(line)
    if exit_code := dpo(resolved):
        raise SystemExit(exit_code)


def dpo(resolved: Resolved) -> int:
    """Run it; the adapters are in `training.adapter_path` afterwards.

    The reference is the model at the start: the base without adapters, or that of `training.init_adapter`.

    Returns:
        0, or 128 + the signal's number if a signal ended the run (saved, to be resumed).

    Raises:
        InputError: a setting is wrong, or has no use here.
        MlxmathError: see the parts.
    """
    from mlxmath.objectives.dpo import METRICS, PreferenceOptimization, RowLogprobs
    from mlxmath.session import Session
    from mlxmath.training.gradients import Gradients, choose_gradients
    from mlxmath.training.preferences import PreferenceGradients, ReferenceLogprobs, frozen
    from mlxmath.training.workers import replica

    session = Session(resolved, "dpo")
    config, kernels = resolved.config, session.kernels
    needs_reference = config.dpo.loss_type != "orpo"
    reference = frozen(session.model if config.training.init_adapter else session.base) if needs_reference else None
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

    return session.train(gradients_of, METRICS, parts=[kept])


if __name__ == "__main__":
    main(prog_name="python -m mlxmath.dpo")
