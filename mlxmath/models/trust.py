"""Whether a fast way to gradients agrees with plain autodiff, tried on a stand-in for the model.

A forward pass that agrees proves nothing of gradients. The stand-in is the model itself with few of its blocks, those
of each kind with their own weights (the others pass on what they are given), and with hidden states in the place of
logits. Adapters that are zero are moved away from it while it is tried, dropout is off.
"""

import hashlib
import importlib.metadata
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxmath.models.blocks import few_of, kinds_of, only
from mlxmath.models.calls import without_dropout
from mlxmath.models.numpy_linear import left_to_mlx
from mlxmath.models.row_caches import PackedCache, SharedPrompts, example
from mlxmath.models.trained import Gradients

NUM_TOKENS = 16
"""On which a way is tried."""
ERRORS = (AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ValueError)
"""What a model raises that is called in a way it is not made for."""
_FINE, _COARSE = 1e-3, 3e-2
"""Of gradients in float32, relative to the largest element of an array, and of those in 16 bits."""
_NOISE, _COARSE_NOISE = 1e-5, 3e-3
"""Of an array that is to be zero, relative to the largest element of all gradients in float32, in 16 bits."""
_COMPARED = 64
"""Of logits."""
_PACKED = 5, 9
"""Where a packed row's second and third text begin."""
_FAR = 20_000
"""As far as packed rows go."""
_AWAY = 0.05
"""Deviation of what stands in for an adapter's zeros."""


def tokens_of(vocab_size: int, count: int = NUM_TOKENS, attempt: int = 0) -> list[int]:
    """Token ids from all over the vocabulary."""
    return [(i * (vocab_size * 5 // 8 + 1) + 3 + 7 * attempt) % vocab_size for i in range(count)]


def cotangent_of(outputs: mx.array) -> mx.array:
    """What gradients are asked for with."""
    return mx.random.normal(outputs.shape, key=mx.random.key(5)).astype(outputs.dtype)


@contextmanager
def stand_in(model: nn.Module, chosen: Sequence[int]) -> Iterator[None]:
    """Make a model fit to be tried: nothing that is trained of the chosen blocks is zero."""
    before = {number: model.layers[number].trainable_parameters() for number in chosen}
    for number, tree in before.items():
        model.layers[number].update(_away_from_zero(tree))
    try:
        yield
    finally:
        for number, tree in before.items():
            model.layers[number].update(tree)


def _away_from_zero(tree: Any) -> Any:
    flat = [
        (
            path,
            array if array.any().item() else _AWAY * mx.random.normal(array.shape, array.dtype, key=mx.random.key(i)),
        )
        for i, (path, array) in enumerate(tree_flatten(tree))
    ]
    return tree_unflatten(flat)


def autodiff(
    model: nn.Module, chosen: Collection[int], outputs_of: Callable[[mx.array], mx.array], added: mx.array
) -> tuple[mx.array, Gradients]:
    """Outputs of a function of an array, and the gradients of Σ outputs · `cotangent_of(outputs)`.

    Args:
        model: a stand-in.
        chosen: blocks whose trained arrays have gradients, by `<number of the block>.<path>`.
        outputs_of: calls the model.
        added: given to `outputs_of`; its gradient is that of "input".
    """
    blocks = model.layers
    before = {str(number): blocks[number].trainable_parameters() for number in chosen}

    def total(tree: Any, added: mx.array) -> tuple[mx.array, mx.array]:
        for number, parameters in tree.items():
            blocks[int(number)].update(parameters)
        outputs = outputs_of(added)
        return (outputs * cotangent_of(outputs)).sum(), outputs

    try:
        (_, outputs), (of_tree, of_added) = mx.value_and_grad(total, argnums=(0, 1))(before, added)
    finally:
        for number, parameters in before.items():
            blocks[int(number)].update(parameters)
    mx.eval(outputs, of_tree, of_added)
    return outputs, {**dict(tree_flatten(of_tree)), "input": of_added}


def disagreement(
    found: tuple[mx.array, Gradients],
    expected: tuple[mx.array, Gradients],
    tolerance: float | None = None,
) -> str | None:
    """How outputs and gradients differ by more than the precision of a model's arrays; None if they do not."""
    (found_outputs, found_gradients), (outputs, gradients) = found, expected
    if found_gradients.keys() != gradients.keys():
        return "not all have a gradient"
    is_float32 = outputs.dtype == mx.float32
    if tolerance is None:  # quantized weights are the same in both, so they make no difference of their own
        tolerance = _FINE if is_float32 else _COARSE
    noise = _NOISE if is_float32 else _COARSE_NOISE
    sizes = {name: _largest(array) for name, array in gradients.items()}
    errors = {name: _largest(found_gradients[name] - array) for name, array in gradients.items()}
    floor = noise * max(sizes.values())
    for name, error in errors.items():
        if not error <= max(tolerance * sizes[name], floor):
            return f"gradients {100 * error / (sizes[name] or 1):.2g} % off"
    size, error = _largest(outputs), _largest(found_outputs - outputs)
    return None if error <= tolerance * size else f"outputs {100 * error / (size or 1):.2g} % off"


def _largest(array: mx.array) -> float:
    value: float = mx.abs(array.astype(mx.float32)).max().item()
    return value


_known: dict[str, Any] = {}


def remembered(question: str, model: nn.Module, details: Any, answer: Callable[[], Any]) -> Any:
    """`answer()`, or what it was for a model of this configuration on this device, with these versions.

    Args:
        question: what is tried.
        model: its kinds of blocks, what is trained of them, and its configuration count, not its weights.
        details: what else counts.
        answer: tries it.
    """
    versions = [importlib.metadata.version(name) for name in ("mlx", "mlx-lm")]
    kinds = dict.fromkeys(kinds_of(model.layers))
    facts = (question, type(model), getattr(model, "args", None), list(kinds), details, versions, mx.default_device())
    key = hashlib.sha256(repr(facts).encode()).hexdigest()
    if key not in _known:
        _known[key] = answer()
    return _known[key]


Outcome = tuple[mx.array, Gradients]
"""Outputs and gradients, as `autodiff` has them."""


class Trial:
    """Tries whether texts may share a row, or a prompt, without any difference to their gradients.

    Args:
        model: adapters in place.
        forward: its hidden states, or its logits, of tokens and, as `cache`, of caches.
        vocab_size: None: as many as it has logits.
        way: of computing gradients, as `remembered` has its details.
    """

    def __init__(
        self, model: nn.Module, forward: Callable[..., mx.array], vocab_size: int | None, way: tuple[Any, ...]
    ) -> None:
        self._model, self._forward, self._vocab_size, self._way = model, forward, vocab_size, way

    def autodiff(self, blocks: Collection[int], outputs_of: Callable[[], mx.array]) -> Outcome:
        """Of what `outputs_of()` calls with few blocks."""

        def few(_: mx.array) -> mx.array:
            with only(self._model.layers, blocks):
                outputs = outputs_of()
                return outputs if self._vocab_size else outputs[..., :_COMPARED]

        return autodiff(self._model, blocks, few, mx.zeros(()))

    def cannot_share(self, way: Callable[[Sequence[int], mx.array, SharedPrompts], Outcome]) -> str | None:
        """Why `way` may not be used for prompts that are computed once."""

        def tried(blocks: Sequence[int], vocab_size: int, attempt: int) -> str | None:
            rows, prompts, texts = example(vocab_size, attempt)
            return self._differ(blocks, way(blocks, rows, prompts), texts, rows.shape[1])

        return self._remembered("share", tried)

    def cannot_pack(self, way: Callable[[Sequence[int], mx.array, mx.array], Outcome]) -> str | None:
        """Why `way` may not be used for packed texts: also if it makes a difference where in a row a text begins."""

        def tried(blocks: Sequence[int], vocab_size: int, attempt: int) -> str | None:
            tokens = tokens_of(vocab_size, attempt=attempt)
            texts = [tokens[: _PACKED[0]], tokens[_PACKED[0] : _PACKED[1]], tokens[_PACKED[1] :]]
            row = mx.array([tokens])
            numbers = mx.array([[number for number, text in enumerate(texts) for _ in text]])
            mask = mx.tril(numbers[:, :, None] == numbers[:, None, :])[:, None]
            if reason := self._differ(blocks, way(blocks, row, mask), texts):
                return reason
            far = [PackedCache(mask, _FAR)] * len(self._model.layers)
            found = self.autodiff(blocks, lambda: self._forward(row, cache=far))
            return self._differ(blocks, found, texts, tolerance=_COARSE)

        return self._remembered("pack", tried)

    def _differ(
        self,
        blocks: Sequence[int],
        found: Outcome,
        texts: Sequence[Sequence[int]],
        last: int | None = None,
        tolerance: float | None = None,
    ) -> str | None:
        """How `found` differs from autodiff over each text, or over the `last` positions of each, in rows."""

        def each() -> mx.array:
            parts = [self._forward(mx.array([text])) for text in texts]
            if last is None:
                return mx.concatenate(parts, axis=1)
            return mx.concatenate([part[:, -last:] for part in parts])

        expected = self.autodiff(blocks, each)
        for _, gradients in (found, expected):
            del gradients["input"]
        return disagreement(found, expected, tolerance)

    def _remembered(self, question: str, tried: Callable[[Sequence[int], int, int], str | None]) -> str | None:
        return remembered(question, self._model, self._way, lambda: self._answer(tried))

    def _answer(self, tried: Callable[[Sequence[int], int, int], str | None]) -> str | None:
        model = self._model
        try:
            with left_to_mlx(), without_dropout(model):
                vocab_size = self._vocab_size or model(mx.zeros((1, 1), mx.int32)).shape[-1]
                blocks = few_of(model.layers, lambda: self._forward(mx.zeros((1, 2), mx.int32)))
            with stand_in(model, blocks), without_dropout(model):
                # again with other tokens: in 16 bits a router may be undecided between two experts
                reason = tried(blocks, vocab_size, 0) and tried(blocks, vocab_size, 1)
        except ERRORS as error:
            return f"its layers need another cache ({str(error).strip().splitlines()[0]})"
        return f"its layers see more of a text than keys and values ({reason})" if reason else None
