"""Pairs of completions into pairs of rows.

Shapes: R rows.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxmath.config.schema import DataConfig
from mlxmath.data.problem import Message, Problem
from mlxmath.data.render import Rendered, spans
from mlxmath.data.templates import Template, Text
from mlxmath.data.tokenize import SKIPPED, Renderer, Result, tokenize

TOO_LONG = f"{SKIPPED}pair with a completion that is too long, or that cannot be written after its prompt"


def tokenize_pairs(
    pairs: Iterable[Problem], template: Template, config: DataConfig, tokenizer: Any
) -> Iterator[Result]:
    """Rows 2 p and 2 p + 1 are the completions of a pair, whose number both have as their source; see `tokenize`.

    Of a pair either both rows come out or none. Completions are what the pair says, word for word, whatever the
    template would make of a solution; of a conversation only the last answer is a target.

    Args:
        pairs: problems with `rejected`.
        template: makes prompts.
        config: the longest row; a pair with a longer one is left out.
        tokenizer: of `transformers`, or mlx_lm's wrapper around one.
    """
    config = config.model_copy(update={"overflow": "drop", "train_on_prompt": False})
    left: Rendered | None = None  # a row whose other one comes with the next batch
    before = num_sides = 0
    for rows, counts in tokenize(_sides(pairs), _LastAnswer(template.verbatim()), config, tokenizer):
        assert rows.sources is not None
        rows = rows._replace(sources=rows.sources + num_sides)
        num_sides += counts["problems"]
        if left is not None:
            rows = _joined(left, rows)
        whole, left = _whole_pairs(rows, num_sides)
        assert whole.sources is not None
        num_pairs, num_whole = num_sides // 2 - before, len(whole.sources) // 2
        found = Counter({name: n // 2 for name, n in counts.items() if name.startswith(SKIPPED)})
        if too_long := num_pairs - num_whole - found.total():
            found[TOO_LONG] = too_long
        found.update(problems=num_pairs, output_rows=2 * num_whole)
        yield whole._replace(sources=whole.sources // 2 - before), found
        before = num_sides // 2


def _sides(pairs: Iterable[Problem]) -> Iterator[Problem]:
    for pair in pairs:
        assert pair.rejected is not None
        other = (*pair.messages[:-1], Message("assistant", pair.rejected)) if pair.messages else ()
        yield pair
        yield replace(pair, solution=pair.rejected, messages=other)


@dataclass(frozen=True)
class _LastAnswer:
    """Of what the template writes, only the last answer is a target."""

    template: Renderer

    @property
    def keeps_system(self) -> bool:
        """See `Template.keeps_system`."""
        return self.template.keeps_system

    def render(self, problem: Problem) -> Text:
        """See `Template.render`."""
        text = self.template.render(problem)
        first = next((i + 1 for i in reversed(range(len(text))) if not text[i].is_target), 0)
        return *(segment._replace(is_target=False) for segment in text[:first]), *text[first:]


def _joined(first: Rendered, second: Rendered) -> Rendered:
    assert first.sources is not None and second.sources is not None
    return Rendered(
        np.concatenate([first.tokens, second.tokens]),
        np.concatenate([first.mask, second.mask]),
        np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        np.concatenate([first.sources, second.sources]),
    )


def _whole_pairs(rows: Rendered, num_sides: int) -> tuple[Rendered, Rendered | None]:
    """The rows both of whose pair are there, and the last one if its other one is still to come."""
    assert rows.sources is not None
    pair = rows.sources // 2
    has_other = np.zeros(len(pair), bool)
    has_other[1:] |= pair[1:] == pair[:-1]
    has_other[:-1] |= pair[1:] == pair[:-1]
    waits = num_sides % 2 == 1 and len(pair) > 0 and rows.sources[-1] == num_sides - 1
    return _take(rows, np.flatnonzero(has_other)), _take(rows, np.array([len(pair) - 1])) if waits else None


def _take(rows: Rendered, chosen: NDArray[np.integer]) -> Rendered:
    assert rows.sources is not None
    lengths = np.diff(rows.offsets)[chosen]
    taken = spans(rows.offsets[:-1][chosen], lengths)
    offsets = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
    return Rendered(rows.tokens[taken], rows.mask[taken], offsets, rows.sources[chosen])
