"""Out of samples, the figures: accuracy with its uncertainty, what was fixed and what broke, by every group.

A problem with several samples counts with the fraction that is right; its verdict (fixed, broken, McNemar) is that of
the majority's answer. Intervals are 95 %.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from mlxmath.evaluation.measures import CATEGORIES, FAITHFULNESS, Measures, measure
from mlxmath.evaluation.samples import Sample
from mlxmath.evaluation.stats import (
    adjusted_difference,
    adjusted_mean,
    maj_at_k,
    mcnemar_exact,
    paired_interval,
    pass_at_k,
    wilson_interval,
)
from mlxmath.evaluation.vote import ballots, elected

ENSEMBLE = "ensemble"
OUTCOMES = ("fixed", "broken", "both right", "both wrong")
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


@dataclass(frozen=True)
class Scored:
    """A run's answers by contestant and problem, with their measures."""

    answers: dict[str, dict[str, Answers]]
    measures: dict[tuple[str, str, int], Measures]
    problems: list[str]
    """Ids that every contestant has answered completely, in the benchmarks' order."""


def collect(samples: Sequence[Sample], labels: Sequence[str], num_samples: int) -> Scored:
    """Sort samples by contestant and problem; problems that a contestant has not finished are left out for all."""
    by_problem: dict[str, dict[str, list[Sample]]] = {label: defaultdict(list) for label in labels}
    for sample in samples:
        by_problem[sample.contestant][sample.id].append(sample)
    complete = set.intersection(
        *({i for i, found in own.items() if len(found) == num_samples} for own in by_problem.values())
    )
    problems = sorted(complete, key=_order)
    answers = {
        label: {i: _answers(sorted(own[i], key=lambda sample: sample.sample)) for i in problems}
        for label, own in by_problem.items()
    }
    measures = {
        sample.key: measure(sample) for own in answers.values() for answer in own.values() for sample in answer.samples
    }
    return Scored(answers, measures, problems)


def _order(problem: str) -> tuple[str, int]:
    name, _, number = problem.rpartition("/")
    return name, int(number)


def _answers(samples: Sequence[Sample]) -> Answers:
    if len(samples) == 1:
        return Answers(tuple(samples), samples[0].correct, samples[0])
    winner = elected(samples)
    return Answers(tuple(samples), winner is not None and winner.correct, winner or samples[0])


def results(scored: Scored, settings: Mapping[str, Any]) -> dict[str, Any]:
    """results.json: settings, each contestant's figures, comparisons of two of them each, what voting brings."""
    labels = list(scored.answers)
    ensemble = vote(scored, settings)
    groups = groupings(scored)
    against = {contestant["label"]: contestant["against"] for contestant in settings["contestants"]}
    found: dict[str, Any] = {
        "settings": dict(settings),
        "num_problems": len(scored.problems),
        "contestants": {label: figures(scored, label, groups) for label in labels},
        "comparisons": [compare(scored.answers, against[x], x, groups) for x in labels if against[x]],
        "votes": [compare(*alone_and_agreed(x, scored.answers[x]), groups) for x in labels if settings["samples"] > 1],
    }
    if ensemble is not None:
        weights, answers = ensemble
        verdicts = [answers[i].right for i in scored.problems]
        best = max((x for x in labels if x in weights), key=lambda x: found["contestants"][x]["accuracy"]["value"])
        found["ensemble"] = {
            "vote": settings["vote"],
            "weights": weights,
            "accuracy": proportion(verdicts),
        }
        found["votes"].append(compare(scored.answers | {ENSEMBLE: answers}, best, ENSEMBLE, groups))
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
    if all(score in (0, 1) for score in scores):
        interval = wilson_interval(round(right), total)
    else:
        interval = adjusted_mean(scores)
    return {"value": right / total, "low": interval.low, "high": interval.high, "right": right, "total": total}


def figures(scored: Scored, label: str, groups: Mapping[str, Mapping[str, list[str]]]) -> dict[str, Any]:
    """What one contestant achieved."""
    answers = scored.answers[label]
    samples = [sample for answer in answers.values() for sample in answer.samples]
    measures = [scored.measures[sample.key] for sample in samples]
    tokens = [sample.completion_tokens for sample in samples]
    seconds = sum(sample.seconds for sample in samples)
    num_samples = len(next(iter(answers.values())).samples)
    found: dict[str, Any] = {
        "accuracy": proportion([answer.fraction for answer in answers.values()]),
        "categories": dict.fromkeys(CATEGORIES, 0) | Counter(m.category for m in measures),
        "tokens": {"mean": fmean(tokens), "median": median(tokens), "total": sum(tokens)},
        "prompt_tokens": sum(sample.prompt_tokens for sample in samples),
        "seconds": seconds,
        "tokens_per_second": sum(tokens) / seconds if seconds else None,
        "cut_off": sum(sample.finish_reason == "length" for sample in samples),
        "faithfulness": {name: _mean([getattr(m, name) for m in measures]) for name in FAITHFULNESS},
        "doubt": fmean(m.doubt for m in measures),
        "measured": {name: sum(getattr(m, name) is not None for m in measures) for name in (*FAITHFULNESS, "doubt")},
        "equations": sum(m.num_equations for m in measures),
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


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def compare(
    answers: Mapping[str, Mapping[str, Answers]],
    base: str,
    other: str,
    groups: Mapping[str, Mapping[str, list[str]]],
) -> dict[str, Any]:
    """Two contestants on the same problems: paired difference of accuracy, its interval, exact McNemar test.

    The interval is Newcombe's where each problem is right or wrong, else an adjusted Wald's.
    """
    problems = list(answers[base])
    outcomes = {i: outcome(answers[base][i].right, answers[other][i].right) for i in problems}

    def difference(ids: Sequence[str]) -> dict[str, Any]:
        first, second = [answers[base][i].fraction for i in ids], [answers[other][i].fraction for i in ids]
        if all(score in (0, 1) for score in (*first, *second)):
            interval = paired_interval(list(map(bool, first)), list(map(bool, second)))
        else:
            interval = adjusted_difference(first, second)
        test = mcnemar_exact([answers[base][i].right for i in ids], [answers[other][i].right for i in ids])
        return {
            "difference": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "p_value": test.p_value,
            "fixed": test.num_fixed,
            "broken": test.num_broken,
            "total": len(ids),
        }

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


def outcome(before: bool, after: bool) -> str:
    """One of `OUTCOMES`."""
    if before == after:
        return "both right" if before else "both wrong"
    return "fixed" if after else "broken"


def groupings(scored: Scored) -> dict[str, dict[str, list[str]]]:
    """Problem ids by benchmark, level, subject and length of the question; those that divide nothing are left out."""
    first = next(iter(scored.answers.values()))
    lengths = {i: len(first[i].shown.question.split()) for i in scored.problems}
    ordered = sorted(lengths.values())
    cuts = [ordered[len(ordered) * part // 3] for part in (1, 2)]

    def length(problem: str) -> str:
        if lengths[problem] < cuts[0]:
            return f"short (< {cuts[0]} words)"
        return f"medium (< {cuts[1]} words)" if lengths[problem] < cuts[1] else f"long (≥ {cuts[1]} words)"

    keys: dict[str, Callable[[str], str | None]] = {
        "benchmark": lambda i: first[i].shown.benchmark,
        "level": lambda i: first[i].shown.level,
        "subject": lambda i: first[i].shown.subject,
        "length": length,
    }
    found: dict[str, dict[str, list[str]]] = {}
    for name, key in keys.items():
        values: dict[str, list[str]] = defaultdict(list)
        for problem in scored.problems:
            if (value := key(problem)) is not None:
                values[value].append(problem)
        if 1 < len(values) <= _FEW:
            by_length = name == "length"
            order = sorted(values, key=lambda v: min(lengths[i] for i in values[v]) if by_length else 0)
            found[name] = {value: values[value] for value in (order if by_length else sorted(order))}
    return found


def vote(scored: Scored, settings: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Answers]] | None:
    """The voters' weights and the ensemble's answers, None without a vote.

    Without given weights each voter's is its accuracy; on a problem, its accuracy on the other problems, so that a
    problem's own gold answer has no part in its vote.
    """
    if not settings.get("vote"):
        return None
    voters: list[str] = settings["voters"]
    total = len(scored.problems)
    sums = {label: sum(answer.fraction for answer in scored.answers[label].values()) for label in voters}
    weights = dict.fromkeys(voters, 1.0)
    if settings["vote"] == "weighted":
        given = settings.get("weights") or [sums[label] / total for label in voters]
        weights = dict(zip(voters, given, strict=True))
    found = {}
    for problem in scored.problems:
        samples: list[Sample] = []
        each: list[float] = []
        for label in voters:
            answer = scored.answers[label][problem]
            weight = weights[label]
            if settings["vote"] == "weighted" and not settings.get("weights"):
                weight = (sums[label] - answer.fraction) / max(1, total - 1)
            samples += answer.samples
            each += [weight] * len(answer.samples)
        winner = elected(samples, each)
        shown = winner or samples[0]
        found[problem] = Answers((shown,), winner is not None and winner.correct, shown)
    return weights, found
