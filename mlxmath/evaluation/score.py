"""Out of samples, the figures: accuracy with its uncertainty, what was fixed and what broke, by every group.

A problem with several samples counts with the fraction that is right; its verdict (fixed, broken, McNemar) is that of
the majority's answer. Intervals are 95 %.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from mlxmath.evaluation.paired import OUTCOMES, outcome, paired
from mlxmath.evaluation.samples import Sample
from mlxmath.evaluation.stats import (
    adjusted_difference,
    adjusted_mean,
    maj_at_k,
    pass_at_k,
    vote,
    wilson_interval,
)
from mlxmath.grading import Faithfulness, cluster, doubt, faithfulness

CATEGORIES = {
    "right": "right", "wrong": "wrong answer", "slip": "arithmetic slip", "none": "no answer", "truncated": "cut off",
    "loop": "doubt loop",
}  # fmt: skip
"""How an answer ended. A wrong one is a slip if an equation in it is false; a loop ends in recursive doubt."""
FAITHFULNESS = ("validity", "provenance", "support", "liveness")
"""F1 to F4 of `mlxmath.grading.faithfulness`."""
ENSEMBLE, SYNTHESIZE = "ensemble", "synthesize"
_FEW = 12
"""A grouping with more values than this is not shown."""
_DRAWS = 200
"""Subsets of a problem's samples over which maj@k is averaged."""


@dataclass(frozen=True)
class Answers:
    """All samples of a contestant to one problem, and the verdict on them."""

    samples: tuple[Sample, ...]
    right: bool
    """Of the majority's answer (of the only one, where there is one)."""
    shown: Sample
    """The sample that the report shows: one with that answer."""

    @property
    def fraction(self) -> float:
        """Of the samples that are right."""
        return fmean(sample.correct for sample in self.samples)

    @property
    def most_said(self) -> list[tuple[str, int]]:
        """The commonest final answers, each with its number."""
        return Counter("no answer" if s.extracted is None else s.extracted for s in self.samples).most_common(6)


@dataclass(frozen=True)
class Measures:
    """What kind of answer it is, one of `CATEGORIES`, and how soundly it was reached."""

    category: str
    found: Faithfulness
    doubt: bool


def measure(sample: Sample) -> Measures:
    """Measure a graded response."""
    found = faithfulness(sample.response, sample.question, sample.extracted)
    loops = doubt(sample.response).flagged
    kinds = {
        "right": sample.correct, "loop": loops, "truncated": sample.truncated, "none": sample.extracted is None,
        "slip": found.num_false > 0,
    }  # fmt: skip
    return Measures(next((kind for kind, applies in kinds.items() if applies), "wrong"), found, loops)


@dataclass(frozen=True)
class Scored:
    """A run's answers by contestant and problem, with their measures."""

    answers: dict[str, dict[str, Answers]]
    measures: dict[tuple[str, str, int], Measures]
    problems: list[str]
    """Ids that every contestant has answered completely, in the benchmarks' order."""
    synthesis: dict[str, Answers]
    """What the model says that has read the others' answers; empty where there is none."""


def collect(samples: Sequence[Sample], labels: Sequence[str], num_samples: int) -> Scored:
    """Sort samples by contestant and problem; problems that a contestant has not finished are left out for all."""
    answers, synthesis, problems = elect(samples, labels, num_samples)
    measures = {
        sample.key: measure(sample) for own in answers.values() for answer in own.values() for sample in answer.samples
    }
    return Scored(answers, measures, problems, synthesis)


def elect(
    samples: Iterable[Sample], labels: Sequence[str], num_samples: int
) -> tuple[dict[str, dict[str, Answers]], dict[str, Answers], list[str]]:
    """The answers, the synthesis and the problems of `Scored`: who was right on what, before anything is measured."""
    by_problem: dict[str, dict[str, list[Sample]]] = {label: defaultdict(list) for label in labels}
    synthesis: dict[str, Answers] = {}
    for sample in samples:
        if sample.contestant in by_problem:
            by_problem[sample.contestant][sample.id].append(sample)
        else:
            synthesis[sample.id] = Answers((sample,), sample.correct, sample)
    complete = set.intersection(
        *({i for i, found in own.items() if len(found) == num_samples} for own in by_problem.values()),
        *([set(synthesis)] if synthesis else []),
    )
    problems = sorted(complete, key=lambda i: (i.rpartition("/")[0], int(i.rpartition("/")[2])))
    answers = {
        label: {i: _elected(sorted(own[i], key=lambda sample: sample.sample)) for i in problems}
        for label, own in by_problem.items()
    }
    return answers, synthesis, problems


def ballots(samples: Sequence[Sample]) -> list[int | None]:
    """For each sample a number that those with an equal final answer share; None abstains: no answer, or cut off."""
    return cluster([None if sample.truncated else sample.extracted for sample in samples])


def _elected(samples: Sequence[Sample], weights: Sequence[float] | None = None) -> Answers:
    """The verdict on samples: that on the answer that most agree on (Wang et al. 2022), wrong if nobody answered."""
    if len(samples) == 1:
        return Answers(tuple(samples), samples[0].correct, samples[0])
    winner = vote(ballots(samples), weights)
    shown = samples[winner if isinstance(winner, int) else 0]
    return Answers(tuple(samples), winner is not None and shown.correct, shown)


def results(scored: Scored, settings: Mapping[str, Any]) -> dict[str, Any]:
    """results.json: settings, each contestant's figures, comparisons of two of them each, what voting brings."""
    answers, groups = scored.answers, groupings(scored)
    against = {contestant["label"]: contestant["against"] for contestant in settings["contestants"]}
    varied = {contestant["label"]: contestant.get("varied") for contestant in settings["contestants"]}
    several, smallest = settings["samples"] > 1, settings.get("until_decided")
    found: dict[str, Any] = {
        "settings": dict(settings),
        "num_problems": len(scored.problems),
        "contestants": {label: figures(scored, label, groups) for label in answers},
        "comparisons": [
            compare(answers, against[x], x, groups, smallest) | {"varied": varied.get(x)} for x in answers if against[x]
        ],
        "votes": [compare(*alone_and_agreed(x, answers[x]), groups) for x in answers if several],
    }
    if settings.get("vote") and (scored.synthesis or settings["vote"] != SYNTHESIZE):
        weights, voted = ensemble(scored, settings)
        best = max((x for x in answers if x in weights), key=lambda x: found["contestants"][x]["accuracy"]["value"])
        accuracy = proportion([voted[i].right for i in scored.problems])
        found["ensemble"] = {"vote": settings["vote"], "weights": weights, "accuracy": accuracy}
        found["votes"].append(compare(answers | {ENSEMBLE: voted}, best, ENSEMBLE, groups))
    return found


def alone_and_agreed(label: str, answers: Mapping[str, Answers]) -> tuple[dict[str, dict[str, Answers]], str, str]:
    """A contestant's single samples and its majority, to be compared.

    The difference is from the mean of the samples; fixed, broken and McNemar are counted from each problem's first one.
    """
    k = len(next(iter(answers.values())).samples)
    alone = {i: Answers(a.samples, a.samples[0].correct, a.samples[0]) for i, a in answers.items()}
    agreed = {i: Answers((a.shown,), a.right, a.shown) for i, a in answers.items()}
    majority = f"{label}, majority of {k}"
    return {label: alone, majority: agreed}, label, majority


def proportion(scores: Sequence[float]) -> dict[str, float]:
    """The mean of problems' scores with its interval: Wilson's where each is right or wrong, else adjusted."""
    total, right = len(scores), sum(scores)
    is_plain = all(score in (0, 1) for score in scores)
    interval = wilson_interval(round(right), total) if is_plain else adjusted_mean(scores)
    return {"value": right / total, "low": interval.low, "high": interval.high, "right": right, "total": total}


def figures(scored: Scored, label: str, groups: Mapping[str, Mapping[str, list[str]]]) -> dict[str, Any]:
    """What one contestant achieved."""
    answers = scored.answers[label]
    samples = [sample for answer in answers.values() for sample in answer.samples]
    measures = [scored.measures[sample.key] for sample in samples]
    tokens = [sample.completion_tokens for sample in samples]
    seconds = sum(sample.seconds for sample in samples)
    num_samples = len(next(iter(answers.values())).samples)
    sound = {
        name: [float(value) for m in measures if (value := getattr(m.found, name)) is not None] for name in FAITHFULNESS
    }
    found: dict[str, Any] = {
        "accuracy": proportion([answer.fraction for answer in answers.values()]),
        "categories": dict.fromkeys(CATEGORIES, 0) | Counter(m.category for m in measures),
        "tokens": {"mean": fmean(tokens), "median": median(tokens), "total": sum(tokens)},
        "prompt_tokens": sum(sample.prompt_tokens for sample in samples),
        "seconds": seconds,
        "tokens_per_second": sum(tokens) / seconds if seconds else None,
        "cut_off": sum(sample.finish_reason == "length" for sample in samples),
        "faithfulness": {name: fmean(values) if values else None for name, values in sound.items()},
        "doubt": fmean(m.doubt for m in measures),
        "measured": {name: len(values) for name, values in sound.items()} | {"doubt": len(measures)},
        "equations": sum(one.verdict != "abstain" for m in measures for one in m.found.equations),
        "formulas": fmean(sample.formulas for sample in samples),
        "by": {
            grouping: {value: proportion([answers[i].fraction for i in ids]) for value, ids in values.items()}
            for grouping, values in groups.items()
        },
    }
    if num_samples > 1:
        counts = [sum(sample.correct for sample in answer.samples) for answer in answers.values()]
        powers = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k < num_samples] + [num_samples]
        found["pass_at"] = {str(k): fmean(pass_at_k(num_samples, c, k) for c in counts) for k in powers}
        votes = [(ballots(a.samples), [sample.correct for sample in a.samples]) for a in answers.values()]
        found["maj_at"] = {
            str(k): fmean(maj_at_k(cast, right, k, num_draws=_DRAWS) for cast, right in votes) for k in powers
        }
        found["majority"] = proportion([answer.right for answer in answers.values()])
    return found


def compare(
    answers: Mapping[str, Mapping[str, Answers]],
    base: str,
    other: str,
    groups: Mapping[str, Mapping[str, list[str]]],
    smallest: float | None = None,
) -> dict[str, Any]:
    """Two contestants on the same problems: paired difference of accuracy, its interval, exact McNemar test.

    The interval is Newcombe's where each problem is right or wrong, else an adjusted Wald's. With `smallest`, a
    difference in points, it is a confidence sequence and p holds at any time: `mlxmath.evaluation.sequential`.
    """
    problems = list(answers[base])
    outcomes = {i: outcome(answers[base][i].right, answers[other][i].right) for i in problems}

    def difference(ids: Sequence[str]) -> dict[str, Any]:
        before, after = ([answers[label][i] for i in ids] for label in (base, other))
        found = paired([one.right for one in before], [one.right for one in after], smallest)
        first, second = [one.fraction for one in before], [one.fraction for one in after]
        if any(score not in (0, 1) for score in (*first, *second)):
            interval = adjusted_difference(first, second)
            found |= {"difference": interval.estimate, "low": interval.low, "high": interval.high}
        return found

    return {
        "base": base,
        "other": other,
        **difference(problems),
        "outcomes": {name: sum(found == name for found in outcomes.values()) for name in OUTCOMES},
        "fixed_ids": [i for i in problems if outcomes[i] == "fixed"],
        "broken_ids": [i for i in problems if outcomes[i] == "broken"],
        "by": {
            grouping: {value: difference(ids) for value, ids in values.items()} for grouping, values in groups.items()
        },
    }


def groupings(scored: Scored) -> dict[str, dict[str, list[str]]]:
    """Problem ids by benchmark, level, subject and length of the question; those that divide nothing are left out."""
    shown = {i: answers.shown for i, answers in next(iter(scored.answers.values())).items()}
    lengths = {i: len(sample.question.split()) for i, sample in shown.items()}
    cuts = [sorted(lengths.values())[len(lengths) * part // 3] for part in (1, 2)]
    words = (f"short (< {cuts[0]} words)", f"medium (< {cuts[1]} words)", f"long (≥ {cuts[1]} words)")
    found: dict[str, dict[str, list[str]]] = {}
    for name in ("benchmark", "level", "subject", "length"):
        values: dict[str, list[str]] = {word: [] for word in words} if name == "length" else defaultdict(list)
        for i, sample in shown.items():
            value = words[bisect_right(cuts, lengths[i])] if name == "length" else getattr(sample, name)
            if value is not None:
                values[value].append(i)
        kept = {value: values[value] for value in (values if name == "length" else sorted(values)) if values[value]}
        if 1 < len(kept) <= _FEW:
            found[name] = kept
    return found


def ensemble(scored: Scored, settings: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Answers]]:
    """The voters' weights and what they answer together.

    Without given weights each voter's is its accuracy; on a problem, its accuracy on the other problems, so that a
    problem's own gold answer has no part in its vote.
    """
    own = {label: scored.answers[label] for label in settings["voters"]}
    if settings["vote"] == SYNTHESIZE:
        return dict.fromkeys(own, 1.0), {i: scored.synthesis[i] for i in scored.problems}
    sums = {label: sum(answer.fraction for answer in answers.values()) for label, answers in own.items()}
    total, given = len(scored.problems), settings.get("weights")
    is_measured = settings["vote"] == "weighted" and not given
    weights = {label: sums[label] / total for label in own} if is_measured else dict.fromkeys(own, 1.0)
    if settings["vote"] == "weighted" and given:
        weights = dict(zip(own, given, strict=True))
    found = {}
    for problem in scored.problems:
        samples: list[Sample] = []
        each: list[float] = []
        for label, answers in own.items():
            answer, weight = answers[problem], weights[label]
            if is_measured:
                weight = (sums[label] - answer.fraction) / max(1, total - 1)
            samples += answer.samples
            each += [weight] * len(answer.samples)
        found[problem] = replace(voted := _elected(samples, each), samples=(voted.shown,))
    return weights, found
