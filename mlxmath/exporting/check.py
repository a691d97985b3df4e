"""Does what was exported still give the same answers?

The original answers some problems greedily. Of the tokens of its answers, both give log-probabilities; both answer the
problems; and, if wanted, the answers are graded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxmath.config.methods import ExportConfig
from mlxmath.errors import InputError
from mlxmath.evaluation.benchmarks import LoadedBenchmark, load_benchmark
from mlxmath.evaluation.stats import mcnemar_exact, paired_interval
from mlxmath.exporting.original import Job, Original
from mlxmath.generation.engine import Sampling, generate_batch
from mlxmath.generation.model import LanguageModel
from mlxmath.grading import grade
from mlxmath.runtime.console import Progress


@dataclass(frozen=True)
class Answer:
    """A greedy answer."""

    tokens: tuple[int, ...]
    """Without an end token."""
    text: str
    truncated: bool = False
    """Whether it reached the longest length."""


class Answers(Protocol):
    """A model that is asked in token ids: those of the original's tokenizer."""

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        """The answer to each prompt, the likeliest token at a time, up to an end token or `max_tokens`."""
        ...

    def logprobs(self, prompt: Sequence[int], answer: Sequence[int]) -> Sequence[float]:
        """Natural log-probability of each token of `answer`, given all before it."""
        ...


class ModelAnswers:
    """A model of MLX that is asked."""

    def __init__(self, opened: LanguageModel) -> None:
        self._opened = opened

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        """See `Answers`."""
        found = generate_batch(self._opened.model, self._opened.tokenizer, prompts, Sampling(max_tokens, 0.0))
        return [Answer(one.tokens, one.text, one.finish_reason == "length") for one in found]

    def logprobs(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """See `Answers`."""
        return answer_logprobs(self._opened.model, prompt, answer)


def answer_logprobs(model: nn.Module, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """log p of each token of `answer` after `prompt`, computed in float32 of the model's logits (1, L, V)."""
    model.eval()
    ids = mx.array([[*prompt, *answer]])
    logits_1TV = model(ids[:, :-1])[:, len(prompt) - 1 :].astype(mx.float32)
    logprobs_1TV = logits_1TV - mx.logsumexp(logits_1TV, axis=-1, keepdims=True)
    found: list[float] = mx.take_along_axis(logprobs_1TV, ids[:, len(prompt) :, None], axis=-1).reshape(-1).tolist()
    return found


@dataclass(frozen=True)
class Checked:
    """How an exported model compares with the original."""

    num_problems: int
    num_tokens: int
    """Of the original's answers."""
    largest: float
    """Largest difference of a token's log-probability."""
    mean: float
    """Mean of the differences, without their signs."""
    num_same: int
    """Problems with the same greedy answer."""
    kept: float | None = None
    """Of the adapter's effect: 1 - rms(exported - original) / rms(original - base); None without an adapter."""
    num_changed: int | None = None
    """Problems that the base answers otherwise than the original."""
    accuracy: dict[str, Any] | None = None
    """Of both, if the answers were graded."""

    def lines(self) -> list[str]:
        """For people."""
        found = [
            f"log-probabilities of {self.num_tokens:,} tokens: they differ by at most {self.largest:.2g}, "
            f"{self.mean:.2g} on average",
            f"greedy answers: {self.num_same} of {self.num_problems} are the same",
        ]
        if self.kept is not None:
            found.append(
                f"of the adapter's effect on log-probabilities {100 * self.kept:.1f} % is kept; it changes "
                f"{self.num_changed} of the {self.num_problems} answers"
            )
        if self.accuracy:
            found.append(
                "right answers: {original} of the original, {exported} of the exported model (difference "
                "{difference:+.1%}, 95 % interval {low:+.1%} to {high:+.1%}; fixed {fixed}, broken {broken})".format(
                    **self.accuracy
                )
            )
        return found


def check(job: Job, reopened: Callable[[], Answers]) -> Checked:
    """Compare what was exported with the original; one model of MLX is in memory at a time.

    Args:
        job: what was exported.
        reopened: loads what was written, once the original is forgotten.

    Raises:
        InputError: there is no such benchmark.
        MlxmathError: its problems cannot be read.
    """
    settings, original = job.settings, job.original
    items = problems_of(settings).items
    opened = original.open()
    prompts = [opened.encode(item.question) for item in items]
    limit = settings.check_tokens
    wanted, before = _asked(ModelAnswers(opened), prompts, None, limit, "the original")
    del opened
    found, after = _asked(reopened(), prompts, wanted, limit, "what was exported")
    differences = np.abs(np.concatenate(after) - np.concatenate(before))
    kept = num_changed = None
    if original.adapter:
        base_answers, without = _asked(ModelAnswers(_base(original)), prompts, wanted, limit, "the base")
        effect = np.concatenate(before) - np.concatenate(without)
        kept = 1 - float(np.sqrt(np.mean(differences**2)) / max(np.sqrt(np.mean(effect**2)), 1e-12))
        num_changed = sum(one.tokens != two.tokens for one, two in zip(wanted, base_answers, strict=True))
    return Checked(
        num_problems=len(items),
        num_tokens=len(differences),
        largest=float(differences.max(initial=0.0)),
        mean=float(differences.mean()) if len(differences) else 0.0,
        num_same=sum(one.text == two.text for one, two in zip(wanted, found, strict=True)),
        kept=kept,
        num_changed=num_changed,
        accuracy=_accuracy([item.gold for item in items], wanted, found) if settings.check_accuracy else None,
    )


def problems_of(settings: ExportConfig) -> LoadedBenchmark:
    """What a check asks.

    Raises:
        InputError: there is no such benchmark or file, or nothing in it can be asked.
        MlxmathError: it cannot be read.
    """
    try:
        return load_benchmark(settings.check_benchmark, settings.check_problems)
    except InputError as error:
        raise InputError(str(error).replace("--benchmark", "--check-benchmark")) from None


def _base(original: Original) -> LanguageModel:
    """The base, asked in the original's template."""
    from mlxmath.generation.model import open_model

    return open_model(original.model, original.dtype, None, original.template)


def _asked(
    model: Answers, prompts: Sequence[list[int]], texts: Sequence[Answer] | None, max_tokens: int, name: str
) -> tuple[list[Answer], list[np.ndarray]]:
    """A model's answers, and the log-probabilities that it gives to the tokens of `texts` (None: its own answers)."""
    with Progress(f"asking {name}", 2 * len(prompts)) as progress:
        answers = model.greedy(prompts, max_tokens)
        progress.update(len(prompts))
        logprobs = []
        for prompt, text in zip(prompts, texts or answers, strict=True):
            values = model.logprobs(prompt, text.tokens) if text.tokens else []
            logprobs.append(np.asarray(values, np.float64))
            progress.update()
    return answers, logprobs


def _accuracy(gold: Sequence[str], original: Sequence[Answer], exported: Sequence[Answer]) -> dict[str, Any]:
    """Both graded, and the paired comparison."""
    before, after = (
        [grade(one.text, right, truncated=one.truncated).correct for one, right in zip(answers, gold, strict=True)]
        for answers in (original, exported)
    )
    interval, test = paired_interval(before, after), mcnemar_exact(before, after)
    return {
        "original": sum(before), "exported": sum(after), "difference": interval.estimate, "low": interval.low,
        "high": interval.high, "p_value": test.p_value, "fixed": test.num_fixed, "broken": test.num_broken,
    }  # fmt: skip
