"""Self-consistency: the answer that most samples agree on (Wang et al. 2022), and votes across several models."""

from collections.abc import Sequence

from mlxmath.evaluation.samples import Sample
from mlxmath.evaluation.stats import vote
from mlxmath.grading import cluster


def ballots(samples: Sequence[Sample]) -> list[int | None]:
    """For each sample a number that those with an equal final answer share; None abstains: no answer, or cut off."""
    return cluster([None if sample.truncated else sample.extracted for sample in samples])


def elected(samples: Sequence[Sample], weights: Sequence[float] | None = None) -> Sample | None:
    """The first sample with the winning answer; None if nobody answered."""
    winner = vote(ballots(samples), weights)
    return None if winner is None else samples[int(str(winner))]
