"""What a completion is worth: registered functions, each with a weight, and the user's own.

A reward function takes the step's `Sample`s, all at once, and returns one finite number each. None of the registered
ones gives more than 1 or less than −1.
"""

import importlib
import inspect
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from mlxmath.errors import InputError, MlxmathError
from mlxmath.grading import Grade, doubt, faithfulness, form, grade_many
from mlxmath.models.lora.adapter import WEIGHTS
from mlxmath.runtime.files import sha256

Floats = NDArray[np.float64]
_NGRAM = 3
_STEPS_WANTED = 3
_BUFFER = 0.25
_TAGS = re.compile(r"</?think>")


@dataclass(frozen=True)
class Sample:
    """A completion as rewards see it."""

    question: str
    gold: str
    completion: str
    grade: Grade
    num_tokens: int
    max_tokens: int
    """The longest completion that the run allows."""
    truncated: bool
    """It reached that length without an end."""
    tokens: tuple[int, ...] = ()
    """Of the completion."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What else the dataset's row holds, by name."""


Reward = Callable[[Sequence[Sample]], Sequence[float]]
MODEL = "model:"
"""What the name of a reward model's folder follows."""
_FROM_TRL = {"prompts", "completions", "completion_ids", "gold"}


def correctness(sample: Sample) -> float:
    """1 if the grader finds the answer right, else 0."""
    return float(sample.grade.correct)


def form_of_answer(sample: Sample) -> float:
    """1 if the completion ended and states its answer after `####`, in a box or on an answer line, with closed tags."""
    found = form(sample.completion)
    return float(not sample.truncated and found.has_final_answer and found.thinking != "open")


def tag_count(sample: Sample) -> float:
    """Half for each of `<think>` and `</think>` that occurs exactly once."""
    counts = Counter(_TAGS.findall(sample.completion))
    return 0.5 * sum(counts[tag] == 1 for tag in ("<think>", "</think>"))


def reasoning_steps(sample: Sample) -> float:
    """A third for each step before the answer, at most 1."""
    return min(1.0, form(sample.completion).num_steps / _STEPS_WANTED)


def cosine_length(sample: Sample) -> float:
    """Right: 1 when short, falling to 0.5; wrong: −1 when short, rising to −0.5 (Yeo et al. 2025, arXiv:2502.03373)."""
    progress = math.cos(math.pi * min(1.0, sample.num_tokens / sample.max_tokens))  # 1 when short, −1 when long
    size = 0.75 + 0.25 * progress
    return size if sample.grade.correct else -size


def repetition(sample: Sample) -> float:
    """Minus the share of the completion's 3-grams of words that occurred before."""
    words = sample.completion.lower().split()
    ngrams = [tuple(words[i : i + _NGRAM]) for i in range(len(words) - _NGRAM + 1)]
    return len(set(ngrams)) / len(ngrams) - 1 if ngrams else 0.0


def soft_overlong(sample: Sample) -> float:
    """0 up to three quarters of the longest length, then falling to −1 at it (Yu et al. 2025, arXiv:2503.14476)."""
    buffer = _BUFFER * sample.max_tokens
    return min(0.0, (sample.max_tokens - buffer - sample.num_tokens) / buffer)


def faithful(sample: Sample) -> float:
    """Only where the answer is right: the mean of its equations' validity, provenance and support; else 0."""
    if not sample.grade.correct:
        return 0.0
    found = faithfulness(sample.completion, sample.question)
    measured = [float(value) for value in (found.validity, found.provenance, found.support) if value is not None]
    return sum(measured) / len(measured) if measured and found.validity is not None else 0.0


def doubtful(sample: Sample) -> float:
    """−1 if the completion goes round in circles, else 0."""
    return -float(doubt(sample.completion).flagged)


REGISTERED: Mapping[str, Callable[[Sample], float]] = {
    "correctness": correctness,
    "format": form_of_answer,
    "tag_count": tag_count,
    "reasoning_steps": reasoning_steps,
    "cosine_length": cosine_length,
    "repetition": repetition,
    "soft_overlong": soft_overlong,
    "faithfulness": faithful,
    "doubt": doubtful,
}


@dataclass(frozen=True)
class Scores:
    """What the completions of a step got; R of them."""

    total_R: Floats
    by_name: Mapping[str, Floats]
    """(R,) of each function, before its weight."""
    num_timed_out: int
    """Answers that the verifier could not settle in time."""


class Rewards:
    """The weighted sum of reward functions.

    Args:
        weights: by the name of a registered function, of one of `functions`, `model:FOLDER` for a reward model, which
            is to be given to `use`, or `module:function` for one of the user's own, which is looked for in the working
            folder too.
        functions: the caller's own; see `adapted`.

    Raises:
        InputError: there is no such function.
    """

    def __init__(self, weights: Mapping[str, float], functions: Mapping[str, Callable[..., Any]] | None = None) -> None:
        if not weights:
            raise InputError("--reward: give at least one.")
        own = {name: adapted(function) for name, function in (functions or {}).items()}
        self._weights = dict(weights)
        self._functions = {name: own.get(name) or _find(name) for name in weights if not name.startswith(MODEL)}

    @property
    def models(self) -> dict[str, Path]:
        """The folders of reward models, by the reward's name."""
        names = (name for name in self._weights if name.startswith(MODEL))
        return {name: Path(name.removeprefix(MODEL)).expanduser() for name in names}

    @property
    def identity(self) -> dict[str, float]:
        """The weights by what computes each reward, wherever the folders of reward models lie."""
        models = {name: MODEL + sha256(path / WEIGHTS)[:16] for name, path in self.models.items()}
        return {models.get(name, name): weight for name, weight in self._weights.items()}

    def use(self, name: str, function: Reward) -> None:
        """Let `function` compute one of `models`."""
        self._functions[name] = function

    def __call__(
        self, questions: Sequence[tuple[str, str, Mapping[str, Any]]],
        completions: Sequence[tuple[str, tuple[int, ...], bool]], max_tokens: int,
    ) -> Scores:  # fmt: skip
        """Score completions (text, tokens, truncated) of problems (question, gold answer, the row's other columns).

        Raises:
            MlxmathError: a function raised, or returned anything but a finite number each; it is named.
        """
        pairs = [(text, gold) for (_, gold, _), (text, _, _) in zip(questions, completions, strict=True)]
        grades = grade_many(pairs, truncated=[truncated for *_, truncated in completions])
        samples = [
            Sample(question, gold, text, grade, len(tokens), max_tokens, truncated, tokens, columns)
            for (question, gold, columns), (text, tokens, truncated), grade in zip(
                questions, completions, grades, strict=True
            )
        ]
        by_name = {name: _score(name, function, samples) for name, function in self._functions.items()}
        total = sum((self._weights[name] * scores for name, scores in by_name.items()), np.zeros(len(samples)))
        return Scores(total, by_name, sum(grade.timed_out for grade in grades))


def weights_of(
    rewards: Sequence[str | Callable[..., Any]] | Mapping[str, float],
) -> tuple[dict[str, float], dict[str, Callable[..., Any]]]:
    """The weights by name of rewards given as names, functions, or weights by name; and the functions by name.

    Functions of one name, as one factory's are, are numbered: `module:make.<locals>.reward`, the same with `#2`, ….
    """
    if isinstance(rewards, Mapping):
        return dict(rewards), {}
    functions: dict[str, Callable[..., Any]] = {}
    counts = Counter[str]()
    for each in rewards:
        if not isinstance(each, str):
            name = f"{each.__module__}:{getattr(each, '__qualname__', type(each).__qualname__)}"
            counts[name] += 1
            functions[name if counts[name] == 1 else f"{name}#{counts[name]}"] = each
    names = [each for each in rewards if isinstance(each, str)]
    return dict.fromkeys([*names, *functions], 1.0), functions


def adapted(function: Callable[..., Any]) -> Reward:
    """A function of the user's own as a `Reward`.

    One whose only parameter is not among those that TRL gives is ours, and gets the samples. Any other is called as
    TRL's trainer calls it: with `prompts`, `completions`, `completion_ids`, `gold` and the dataset's columns by name,
    as many of them as it has parameters for.
    """
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not takes_any and len(parameters) == 1 and not parameters.keys() & _FROM_TRL:
        return function

    def called(samples: Sequence[Sample]) -> Sequence[float]:
        columns: dict[str, list[Any]] = {
            "prompts": [sample.question for sample in samples],
            "completions": [sample.completion for sample in samples],
            "completion_ids": [list(sample.tokens) for sample in samples],
            "gold": [sample.gold for sample in samples],
        }
        for name in {name for sample in samples for name in sample.columns} - columns.keys():
            columns[name] = [sample.columns.get(name) for sample in samples]
        found: Sequence[float] = function(
            **{name: values for name, values in columns.items() if takes_any or name in parameters}
        )
        return found

    return called


def _find(name: str) -> Reward:
    if name in REGISTERED:
        single = REGISTERED[name]
        return lambda samples: [single(sample) for sample in samples]
    module, separator, function = name.partition(":")
    if not separator:
        raise InputError(
            f"--reward: there is no {name!r}, but {', '.join(REGISTERED)}, model:FOLDER and your own MODULE:FUNCTION."
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the user's module does when it is imported
        raise InputError(
            f"--reward {name}: {type(error).__name__}: {error}; expected a module that Python finds, and a "
            "function in it."
        ) from None
    if not callable(found):
        raise InputError(f"--reward {name}: expected a function, found a {type(found).__name__}.")
    return adapted(found)


def _score(name: str, function: Reward, samples: Sequence[Sample]) -> Floats:
    try:
        found = list(function(samples))
    except Exception as error:  # whatever the user's code raises
        raise MlxmathError(f"the reward {name} failed: {type(error).__name__}: {error}") from error
    if len(found) != len(samples):
        raise MlxmathError(f"the reward {name} returned {len(found)} values for {len(samples)} completions.")
    for value in found:
        if isinstance(value, str) or np.ndim(value) or not isinstance(value, SupportsFloat):
            raise MlxmathError(f"the reward {name} returned {value!r:.80}; expected a number for each completion.")
    scores = np.array([float(value) for value in found], np.float64)
    if not np.isfinite(scores).all():
        raise MlxmathError(f"the reward {name} returned {scores[~np.isfinite(scores)][0]}; expected finite numbers.")
    return scores
