"""`--to mlx`."""

from mlxmath.exporting.check import Answers, ModelAnswers
from mlxmath.exporting.original import Job


def write(job: Job) -> list[str]:
    """Write the files."""
    raise NotImplementedError


def reopened(job: Job) -> Answers:
    """The written model."""
    return ModelAnswers(job.original.open())
