"""`--vote synthesize`: a model reads the members' answers to a problem, and gives its own.

For answers that cannot be counted as votes, since no two of them are written alike or most are wrong in ways of their
own. As generative fusion does (Jiang et al. 2023, arXiv:2306.02561), and with several samples of one model universal
self-consistency (Chen et al. 2023, arXiv:2311.17311); but the model may also combine what it reads.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlxmath.config.methods import EvaluationConfig
from mlxmath.evaluation.benchmarks import LoadedBenchmark
from mlxmath.evaluation.contestants import Contestant
from mlxmath.evaluation.samples import Sample
from mlxmath.evaluation.score import ENSEMBLE
from mlxmath.grading.extract import after_thinking

_REQUEST = """{question}

Here are {count} attempts to answer this:

{attempts}

Find out which of them is right, or put the right answer together from them. Then give it with its solution."""


def request(question: str, attempts: Sequence[str]) -> str:
    """What the model is asked: the problem, and what others have answered."""
    told = "\n\n".join(f"Attempt {number}:\n{text}" for number, text in enumerate(attempts, 1))
    return _REQUEST.format(question=question, count=len(attempts), attempts=told)


def requests(samples: Sequence[Sample], voters: Sequence[str]) -> dict[str, str]:
    """`request` by the id of each problem: without repetitions and thoughts, in an order that tells nothing."""
    by_problem: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.contestant in voters:
            by_problem.setdefault(sample.id, []).append(sample)

    def place(sample: Sample) -> bytes:
        return hashlib.sha256("\n".join(map(str, sample.key)).encode()).digest()

    found = {}
    for i, own in by_problem.items():
        texts = ((after_thinking(s.response) or "").strip() for s in sorted(own, key=place))
        found[i] = request(own[0].question, list(dict.fromkeys(text or "(no answer)" for text in texts)))
    return found


def asking(benchmarks: Sequence[LoadedBenchmark], texts: Mapping[str, str]) -> list[LoadedBenchmark]:
    """The benchmarks with these requests as questions, by the problems' ids."""
    chosen = (
        replace(b, items=tuple(replace(item, question=texts[item.id]) for item in b.items if item.id in texts))
        for b in benchmarks
    )
    return [benchmark for benchmark in chosen if benchmark.items]


def synthesizer(settings: EvaluationConfig, voters: Sequence[Contestant], *, spread: bool = False) -> Contestant:
    """The model that reads: `--vote-model`, a folder or MODEL:ADAPTER, with its tool; else the first member.

    Args:
        settings: of the evaluation.
        voters: the members, each with the tool that it may call.
        spread: see `tool_of`.

    Raises:
        InputError: its tool cannot be had.
    """
    if settings.vote_model is None:
        return replace(voters[0], label=ENSEMBLE, against=None, formulas=False)
    model, _, adapter = settings.vote_model.partition(":")
    own = Path(adapter).expanduser() if adapter else None
    return Contestant(ENSEMBLE, Path(model).expanduser(), own, tool=settings.tools).with_own_tool(spread=spread)
