"""`mlxmath gkd`: on-policy distillation from a model on this machine; see `mlxmath.training.gkd.train`."""

from typing import Any

from mlxmath.commands import options
from mlxmath.config.load import TRAINED_FROM, settings_from


@options.command("gkd", shared=True, long=True)
@options.training_options("gkd")
def main(**values: Any) -> None:
    """Distil on-policy (generalized knowledge distillation): the student draws, a teacher scores every token of it.

    The teacher is a stronger model on this machine with the student's tokens; the problems need known answers, by
    which alone the run tells how many are right.
    """
    sections = (*TRAINED_FROM, "gkd")
    settings = settings_from(sections, origin="option", **values)
    options.run_with_ranks("mlxmath.training.gkd.train", "gkd", settings, sections, options.try_it)
