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
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlxmath.models.blocks import few_of, kinds_of, only
from mlxmath.models.calls import ERRORS, without_dropout
from mlxmath.models.layouts import PackedCache, SharedPrompts, example
from mlxmath.models.linear import left_to_mlx
from mlxmath.models.masks import Mask
from mlxmath.models.segments import Gradients

NUM_TOKENS = 16
"""On which a way is tried."""
_FINE, _COARSE = 1e-3, 3e-2
"""Of gradients, relative to the largest element of an array, where products are exact to float32 and elsewhere."""
_NOISE = 0.01
"""Of an array that is to be zero, relative to the largest element of all gradients: that share of the tolerance."""
_SHORT = (mx.float16, mx.bfloat16)
_COMPARED = 64
"""Of logits."""
_PACKED = 5, 9
"""Where a packed row's second and third text begin."""
_FAR = 20_000
"""As far as packed rows go."""
_AWAY = 0.05
"""Deviation of what stands in for an adapter's zeros."""

Outcome = tuple[mx.array, Gradients]
"""Outputs and gradients, as `autodiff` has them."""


def tokens_of(vocab_size: int, count: int = NUM_TOKENS, attempt: int = 0) -> list[int]:
    """Token ids from all over the vocabulary."""
    return [(i * (vocab_size * 5 // 8 + 1) + 3 + 7 * attempt) % vocab_size for i in range(count)]


def cotangent_of(outputs: mx.array) -> mx.array:
    """What gradients are asked for with."""
    return mx.random.normal(outputs.shape, key=mx.random.key(5)).astype(outputs.dtype)


@contextmanager
def stand_in(model: nn.Module, chosen: Sequence[int]) -> Iterator[None]:
    """Make a model fit to be tried: nothing that is trained of the chosen blocks is zero, and they are in float32.

    Positions that are shifted alone change the gradients in 16 bits by a tenth.
    """
    before = {number: model.layers[number].parameters() for number in chosen}
    for number, tree in before.items():
        block = model.layers[number]
        block.update(tree_map(lambda array: array.astype(mx.float32) if array.dtype in _SHORT else array, tree))
        block.update(_away_from_zero(block.trainable_parameters()))
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
        return (outputs.astype(mx.float32) * cotangent_of(outputs)).sum(), outputs

    try:
        (_, outputs), (of_tree, of_added) = mx.value_and_grad(total, argnums=(0, 1))(before, added)
    finally:
        for number, parameters in before.items():
            blocks[int(number)].update(parameters)
    mx.eval(outputs, of_tree, of_added)
    return outputs, {**dict(tree_flatten(of_tree)), "input": of_added}


def disagreement(found: Outcome, expected: Outcome, tolerance: float | None = None) -> str | None:
    """How outputs and gradients differ by more than their precision (None: the device's); None if they do not."""
    if tolerance is None:  # GPUs round the factors of products in float32
        tolerance = _FINE if mx.default_device().type == mx.cpu else _COARSE
    (found_outputs, found_gradients), (outputs, gradients) = found, expected
    if found_gradients.keys() != gradients.keys():
        return "not all have a gradient"
    sizes = {name: _largest(array) for name, array in gradients.items()}
    errors = {name: _largest(found_gradients[name] - array) for name, array in gradients.items()}
    floor = _NOISE * tolerance * max(sizes.values(), default=0.0)
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


@contextmanager
def apart() -> Iterator[None]:
    """What is tried meanwhile, on weights that are not the model's, is forgotten afterwards."""
    before = dict(_known)
    try:
        yield
    finally:
        _known.clear()
        _known.update(before)


class Trial:
    """Tries whether texts may share a row, or a prompt, without any difference to their gradients.

    Args:
        model: adapters in place.
        forward: its hidden states, or its logits, of tokens and, as `cache`, of caches.
        vocab_size: None: as many as it has logits.
        way: of computing gradients, as `remembered` has its details.
        most: blocks of a kind: two where the gradient of a block's input is no autodiff's, which shows in the block
            before it.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[..., mx.array],
        vocab_size: int | None,
        way: tuple[Any, ...],
        most: int = 1,
    ) -> None:
        self._model, self._forward, self._vocab_size, self._way = model, forward, vocab_size, way
        self._most = most

    def autodiff(self, blocks: Collection[int], outputs_of: Callable[[], mx.array], positions_N: mx.array) -> Outcome:
        """Of what `outputs_of()` calls with few blocks, at the flat positions of its rows."""

        def few(_: mx.array) -> mx.array:
            with only(self._model.layers, blocks):
                outputs_BLX = outputs_of()
            outputs_NX = outputs_BLX.reshape(-1, outputs_BLX.shape[-1])[positions_N]
            return outputs_NX if self._vocab_size else outputs_NX[:, :_COMPARED]

        outputs, gradients = autodiff(self._model, blocks, few, mx.zeros(()))
        del gradients["input"]  # each way has another
        return outputs, gradients

    def cannot_share(self, way: Callable[[Sequence[int], mx.array, SharedPrompts, mx.array], Outcome]) -> str | None:
        """Why `way` (blocks, rows, prompts, positions) may not be used for prompts that are computed once."""

        def tried(blocks: Sequence[int], vocab_size: int, attempt: int) -> str | None:
            rows, prompts, texts = example(vocab_size, attempt)
            length = rows.shape[1]
            expected = self._of_texts(blocks, texts, [range(len(text) - length, len(text)) for text in texts])
            padded, positions = _padded(rows.tolist(), [range(length)] * len(texts))
            tokens_GP, _ = _padded(prompts.tokens_GP.tolist(), [])
            return disagreement(way(blocks, padded, prompts._replace(tokens_GP=tokens_GP), positions), expected)

        return self._remembered("share", tried)

    def cannot_pack(self, way: Callable[[Sequence[int], mx.array, Mask, mx.array], Outcome]) -> str | None:
        """Why `way` (blocks, row, mask, positions) may not be used for packed texts.

        Also if it makes a difference where in a row a text begins.
        """

        def tried(blocks: Sequence[int], vocab_size: int, attempt: int) -> str | None:
            tokens = tokens_of(vocab_size, attempt=attempt)
            texts = [tokens[: _PACKED[0]], tokens[_PACKED[0] : _PACKED[1]], tokens[_PACKED[1] :]]
            row, positions = mx.array([tokens]), mx.arange(len(tokens))
            numbers = mx.array([[number for number, text in enumerate(texts) for _ in text]])
            mask = Mask.packed(numbers)
            expected = self._of_texts(blocks, texts, [range(len(text)) for text in texts])
            if reason := disagreement(way(blocks, row, mask, positions), expected):
                return reason
            far = [PackedCache(mask, _FAR)] * len(self._model.layers)
            return disagreement(
                self.autodiff(blocks, lambda: self._forward(row, cache=far), positions), expected, _COARSE
            )

        return self._remembered("pack", tried)

    def _of_texts(
        self, blocks: Sequence[int], texts: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]
    ) -> Outcome:
        """Autodiff over rows of one text each, at the wanted positions of each."""
        rows, positions = _padded(texts, wanted)
        return self.autodiff(blocks, lambda: self._forward(rows), positions)

    def _remembered(self, question: str, tried: Callable[[Sequence[int], int, int], str | None]) -> str | None:
        return remembered(question, self._model, self._way, lambda: self._answer(tried))

    def _answer(self, tried: Callable[[Sequence[int], int, int], str | None]) -> str | None:
        model = self._model
        try:
            with left_to_mlx(), without_dropout(model):
                vocab_size = self._vocab_size or model(mx.zeros((1, 1), mx.int32)).shape[-1]
                blocks = few_of(model.layers, lambda: self._forward(mx.zeros((1, 2), mx.int32)), self._most)
            with stand_in(model, blocks), without_dropout(model):
                # again with other tokens: a router may be undecided between two experts
                reason = tried(blocks, vocab_size, 0) and tried(blocks, vocab_size, 1)
        except ERRORS:
            return "its layers need a cache of another kind, as those do that keep a state"
        return f"its texts would not be what they are alone ({reason})" if reason else None


def _padded(rows: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> tuple[mx.array, mx.array]:
    """Rows of one length, and the wanted positions of each as flat ones.

    On Metal attention over eight positions or fewer has no gradient.
    """
    width = max(map(len, rows)) if mx.default_device().type == mx.cpu else NUM_TOKENS
    flat = [number * width + place for number, places in enumerate(wanted) for place in places]
    return mx.array([[*row, *[0] * (width - len(row))] for row in rows]), mx.array(flat)
