"""`mlxmath dpo`: preference tuning on pairs of a chosen and a rejected completion, without a reward model."""

from typing import Any

from mlxmath.commands import options
from mlxmath.config.load import TRAINED_FROM, settings_from


@options.command("dpo", shared=True, long=True)
@options.training_options("dpo")
def main(**values: Any) -> None:
    """Tune an adapter on pairs of a preferred and a rejected completion (DPO, IPO, ORPO, SimPO, CPO, KTO).

    The dataset has the columns prompt (or question, problem …), chosen and rejected, as text or as messages;
    `mlxmath distill` makes such pairs. For KTO it may have prompt, completion and label. Batch sizes count pairs, for
    KTO completions.
    """
    sections = (*TRAINED_FROM, "dpo")
    settings = settings_from(sections, origin="option", **values)
    options.run_with_ranks("mlxmath.training.dpo", "dpo", settings, sections, options.try_it)
