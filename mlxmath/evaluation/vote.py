"""Self-consistency: the answer that most samples agree on (Wang et al. 2022), and votes across several models."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlxmath.evaluation.samples import Sample
from mlxmath.grading import equal


@dataclass
class Group:
    """Samples whose final answers are equal."""

    answer: str
    samples: list[Sample]
    weight: float


def tally(samples: Sequence[Sample], weights: Sequence[float] | None = None) -> list[Group]:
    """Groups of equal answers, heaviest first; among equals, the one that came first. Samples without answer abstain."""
    groups: list[Group] = []
    for sample, weight in zip(samples, weights or [1.0] * len(samples), strict=True):
        if sample.extracted is None or sample.truncated:
            continue
        for group in groups:
            if _same(group, sample):
                group.samples.append(sample)
                group.weight += weight
                break
        else:
            groups.append(Group(sample.extracted, [sample], weight))
    return sorted(groups, key=lambda group: -group.weight)


def _same(group: Group, sample: Sample) -> bool:
    assert sample.extracted is not None
    if group.answer.strip() == sample.extracted.strip():
        return True
    if group.samples[0].correct or sample.correct:  # both against the same gold: equal answers are graded alike
        return group.samples[0].correct and sample.correct
    return equal(sample.extracted, group.answer)


def elected(samples: Sequence[Sample], weights: Sequence[float] | None = None) -> Sample | None:
    """A sample of the winning group; None if nobody answered."""
    groups = tally(samples, weights)
    return groups[0].samples[0] if groups else None
