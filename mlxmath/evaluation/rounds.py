"""`--until-decided`: problems are asked in rounds, until what is compared is decided; see `evaluation.sequential`."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxmath.config.methods import EvaluationConfig
from mlxmath.errors import InputError
from mlxmath.evaluation.benchmarks import LoadedBenchmark
from mlxmath.evaluation.contestants import Contestant
from mlxmath.evaluation.paired import paired
from mlxmath.evaluation.samples import fingerprints_of, read_samples
from mlxmath.evaluation.wording import sentence
from mlxmath.runtime.console import say

_GROWTH = 1.5
"""How many problems there are after a round, over those before it: rounds load models anew."""


def rounds_of(benchmarks: Sequence[LoadedBenchmark], settings: EvaluationConfig) -> Iterator[list[LoadedBenchmark]]:
    """What is asked after each round, all rounds before it included; in one if nothing is to be decided.

    The order has nothing to do with the problems: it is that of the hashes of their ids, over all benchmarks.
    """
    ids = sorted((item.id for b in benchmarks for item in b.items), key=lambda i: hashlib.sha256(i.encode()).digest())
    size = settings.first_round if settings.until_decided else len(ids)
    while size < len(ids):
        asked = set(ids[:size])
        chosen = (replace(b, items=tuple(item for item in b.items if item.id in asked)) for b in benchmarks)
        yield [benchmark for benchmark in chosen if benchmark.items]
        size = max(size + 1, int(_GROWTH * size))
    yield list(benchmarks)


def check_comparable(contestants: Sequence[Contestant]) -> None:
    """Refuse `--until-decided` where nothing is compared.

    Raises:
        InputError: there is one contestant.
    """
    if len(contestants) < 2:
        raise InputError("--until-decided: there is nothing to decide between; give --compare or --against.")


def is_decided(folder: Path, settings: Mapping[str, Any], asked: Sequence[LoadedBenchmark]) -> bool:
    """Whether the answers in `folder` to what was asked until now decide every comparison; says where each stands."""
    samples, _ = read_samples(folder, fingerprints_of(settings))
    right: dict[str, dict[str, bool]] = {one["label"]: {} for one in settings["contestants"]}
    for sample in samples:
        right[sample.contestant][sample.id] = sample.correct
    ids = [item.id for benchmark in asked for item in benchmark.items]
    decided = True
    for one in settings["contestants"]:
        if base := one["against"]:
            before, after = ([right[label][i] for i in ids] for label in (base, one["label"]))
            found = paired(before, after, settings["until_decided"])
            say(f"after {len(ids):,} problems: {sentence({'base': base, 'other': one['label'], **found})}")
            decided &= found["until_decided"]["decision"] is not None
    return decided
