"""The reward of the GRPO benchmark: any number that differs within a group, at no cost. Standard library only."""

from collections.abc import Sequence
from typing import Any


def varied(samples: Sequence[Any]) -> list[float]:
    """As `mlxmath grpo` calls it."""
    return [of_text(sample.completion) for sample in samples]


def of_completions(completions: Sequence[str], **_: Any) -> list[float]:
    """As TRL and its relatives call it."""
    return [of_text(completion) for completion in completions]


def of_text(text: str) -> float:
    """0 to 0.9."""
    return len(text) % 10 / 10
