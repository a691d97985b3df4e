"""A forward and backward pass block by block for models whose blocks `Blockwise` cannot take apart.

Each block is one function of the array that the last one gave, y = block(x, …), and is computed again in the backward
pass. What else a block is given (masks, windows, positions) must not depend on what blocks compute; it is the model's
own, noted while nothing of the blocks is computed. Whether that is how a model works is decided by its gradients.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxmath.models.attention import TrainingAttention
from mlxmath.models.blocks import kinds_of, path_of_blocks
from mlxmath.models.blockwise import Blockwise, Tape, one_block
from mlxmath.models.calls import ERRORS, standing_in, without_dropout
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.layouts import Rows
from mlxmath.models.lm_head import Split
from mlxmath.models.segments import Gradients, parameters_of, vjp
from mlxmath.models.trust import disagreement, remembered


@dataclass(frozen=True)
class _Kept:
    """What a block was given, and the random state then."""

    x: mx.array
    random_state: mx.array | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class WholeBlocks(Blockwise):
    """See the module; of rows that are no more than rows.

    Args:
        model: an mlx_lm model that `refused` has nothing against.
        parts: of the model.
        kernels: the device's.
        chosen: numbers of the blocks that take part (None: all); the others pass on what they are given.
    """

    def __init__(
        self, model: nn.Module, parts: Split, kernels: Kernels, *, chosen: Sequence[int] | None = None
    ) -> None:
        self._parts, self._all, self._path = parts, model.layers, path_of_blocks(model)
        self.numbers = list(range(len(model.layers)) if chosen is None else chosen)
        self._parameters = [parameters_of(model.layers[number]) for number in self.numbers]
        self._first = next((i for i, found in enumerate(self._parameters) if found), len(self.numbers))
        self.order = self.numbers[self._first :][::-1]
        self._attention = TrainingAttention(model, multiple=kernels.attention_multiple, looks=True)
        self._random = any(isinstance(m, nn.Dropout) and m._p_1 < 1 for m in model.modules())

    @staticmethod
    def refused(model: nn.Module, parts: Split, kernels: Kernels) -> str | None:
        """Why the model cannot be computed so; None if it can."""
        blocks = path_of_blocks(model) + "."
        if any(not name.startswith(blocks) for name, _ in tree_flatten(model.trainable_parameters())):
            return "more than its blocks is trained"
        kinds = kinds_of(model.layers)

        def answer() -> str | None:
            for number in map(kinds.index, dict.fromkeys(kinds)):
                try:
                    reason = _wrong(model, parts, kernels, number)
                except ERRORS as error:
                    return f"its blocks need more than the last one gives ({error})"
                if reason:
                    return f"its blocks are put together in another way ({reason})"
            return None

        with without_dropout(model):
            found: str | None = remembered("whole blocks", model, len(kinds), answer)
        return found

    def forwards(self, rows: Rows, *, keep: bool = True) -> Generator[int, None, tuple[mx.array, Tape]]:
        """See `Blockwise`."""
        x, given = self._noted(rows.tokens_BL)
        kept = []
        for i, number in enumerate(self.numbers):
            yield number
            if keep and i >= self._first:
                kept.append(_Kept(x, mx.array(mx.random.state[0]) if self._random else None, *given[number]))
            x = self._called(number, x, *given[number])
            mx.async_eval(x)
        return self._after(x, rows.tokens_BL), Tape(kept, x, rows)

    def backwards(
        self, tape: Tape, d_hidden_BLD: mx.array, *, to_input: bool = False
    ) -> Generator[int, None, tuple[mx.array, Gradients]]:
        """See `Blockwise`."""
        gradients: Gradients = {}
        _, (d,) = mx.vjp(lambda x: self._after(x, tape.rows.tokens_BL), [tape.last], [d_hidden_BLD])
        state_after = mx.array(mx.random.state[0]) if self._random else None
        for number, parameters in list(zip(self.numbers, self._parameters, strict=True))[self._first :][::-1]:
            yield number
            entry = tape.blocks.pop()
            if entry.random_state is not None:
                mx.random.state[0][:] = entry.random_state
            call = partial(self._called, number, args=entry.args, kwargs=entry.kwargs)
            (d,), found = vjp(parameters, lambda x, call=call: (call(x),), [entry.x], [d], known=False)
            is_wanted = tape.blocks or to_input
            mx.async_eval((d, found) if is_wanted else found)
            del entry  # else what waits for the next block holds it
            gradients |= {f"{self._path}.{number}.{name}": value for name, value in found.items()}
        if state_after is not None:
            mx.random.state[0][:] = state_after
        return d, gradients

    def _called(self, number: int, x: mx.array, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> mx.array:
        with self._attention.in_place():
            found: mx.array = self._all[number](x, *args, **kwargs)
        return found

    def _noted(self, tokens_BL: mx.array) -> tuple[mx.array, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
        """What the first block is given, and what each is given besides.

        Raises:
            ValueError: the blocks do not follow one another.
        """
        given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        passed: list[mx.array] = []

        def noting(number: int) -> Any:
            def call(x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
                if number != len(given) or (number and x is not passed[-1]):
                    raise ValueError("they do not follow one another")
                given.append((args, kwargs))
                passed.extend([] if number else [x])
                passed.append(mx.zeros_like(x))
                return passed[-1]

            return call

        with ExitStack() as stack:
            for number, block in enumerate(self._all):
                stack.enter_context(standing_in(block, noting(number)))
            self._parts.hidden(tokens_BL)
        if len(given) != len(self._all):
            raise ValueError("they do not follow one another")
        return passed[0], given


def _wrong(model: nn.Module, parts: Split, kernels: Kernels, number: int) -> str | None:
    """How block `number` alone disagrees with autodiff; None: not."""
    blocks = WholeBlocks(model, parts, kernels, chosen=[number])
    with blocks._attention.in_place(), one_block(model, parts, number) as (tokens_1L, expected):
        found = blocks.trial(Rows(tokens_1L), mx.arange(tokens_1L.size), to_input=True)
        return disagreement(found, expected)
