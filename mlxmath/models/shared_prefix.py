"""Decoding with the keys and values of a prompt held once for all the rows that go on from it.

A row attends to two segments, its prompt and its own tokens, under one softmax; a prompt's keys meet the queries of all
its rows in one product (Juravsky et al. 2024, arXiv:2402.05099). mlx_lm's models run as they are: their attention
function asks the cache.

Shapes: B rows, H query heads, K key heads, Q = H / K, D head width, G prompts of P positions, R rows of a prompt at
most, L own positions.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import BatchKVCache, KVCache, make_prompt_cache
from numpy.typing import NDArray

from mlxmath.models.calls import ERRORS
from mlxmath.models.layouts import example
from mlxmath.models.served import to_be_tried

GROWTH = 64
"""Positions by which the memory for a row's own keys and values grows, or an eighth of it if that is more."""
_COMPARED = 1024
"""Of the vocabulary, where a model is tried."""
_ATTENTION = "scaled_dot_product_attention"

Prompts = tuple[tuple[int, ...], ...]
Array = TypeVar("Array", mx.array, NDArray[np.float32])


class Groups:
    """Which rows go on from which prompt.

    Args:
        prompts: each with one row at least.
        of_rows: (B,) the number of each row's prompt.
    """

    def __init__(self, prompts: Prompts, of_rows: NDArray[np.intp]) -> None:
        self.prompts, self.of_rows = prompts, of_rows
        num_rows = np.bincount(of_rows, minlength=len(prompts))
        self.most = int(num_rows.max())
        order = np.argsort(of_rows, kind="stable")
        numbers = np.empty_like(of_rows)
        numbers[order] = np.arange(len(of_rows)) - np.repeat(np.cumsum(num_rows) - num_rows, num_rows)
        slots = of_rows * self.most + numbers
        rows = np.zeros(len(prompts) * self.most, np.int32)
        rows[slots] = np.arange(len(of_rows))
        self._is_even = np.array_equal(slots, np.arange(len(rows)))
        self._slots_B, self._rows_S = slots, rows

    @property
    def are_rows(self) -> bool:
        """Whether each prompt has a row, which has the prompt's number."""
        return self._is_even and self.most == 1

    def by_prompt(self, x_BKQX: Array) -> Array:
        """(G, K, R · Q, X): the rows of each prompt side by side."""
        x = x_BKQX if self._is_even else _taken(x_BKQX, self._rows_S)
        _, k, q, width = x.shape
        return x.reshape(-1, self.most, k, q, width).swapaxes(1, 2).reshape(-1, k, self.most * q, width)

    def by_row(self, x_GKRX: Array) -> Array:
        """The inverse of `by_prompt`."""
        _, k, both, width = x_GKRX.shape
        x = x_GKRX.reshape(-1, k, self.most, both // self.most, width).swapaxes(1, 2)
        x = x.reshape(-1, k, both // self.most, width)
        return x if self._is_even else _taken(x, self._slots_B)

    def kept(self, rows: Sequence[int]) -> tuple["Groups", list[int]]:
        """The groups of these rows alone, and the numbers that their prompts have here."""
        numbers = without_gaps(np.unique(self.of_rows[list(rows)]).tolist())
        places = np.zeros(len(self.prompts), np.intp)
        places[numbers] = np.arange(len(numbers))
        return Groups(tuple(self.prompts[i] for i in numbers), places[self.of_rows[list(rows)]]), numbers

    def joined(self, other: "Groups") -> tuple["Groups", list[int]]:
        """With the rows of another after these, and the numbers there of its prompts that are new."""
        new = [i for i, prompt in enumerate(other.prompts) if prompt not in self.prompts]
        prompts = self.prompts + tuple(other.prompts[i] for i in new)
        number_of = {prompt: number for number, prompt in enumerate(prompts)}
        theirs = np.array([number_of[prompt] for prompt in other.prompts])[other.of_rows]
        return Groups(prompts, np.concatenate([self.of_rows, theirs])), new


def without_gaps(kept: Sequence[int]) -> list[int]:
    """What is kept of a row, in new places: all but the last ones, which fill the gaps, stay where they are."""
    staying, last = set(kept), [place for place in kept if place >= len(kept)]
    return [place if place in staying else last.pop() for place in range(len(kept))]


def _taken(x: Array, index: NDArray[Any]) -> Array:
    return x[index] if isinstance(x, np.ndarray) else x[mx.array(index)]


class SharedPrefixCache:
    """A layer's keys and values: `prompts` (G), and the rows' own (B).

    Args:
        prompts: of a layer, all but the last token of each, which is the first of each row's own.
        groups: of the rows.
        most: own positions that a row may need.
    """

    def __init__(self, prompts: BatchKVCache, groups: Groups, most: int) -> None:
        self.prompts, self.groups, self._most = prompts, groups, most
        self._own = BatchKVCache([0] * len(groups.of_rows))
        self._own.offset = prompts.offset[mx.array(groups.of_rows)]

    @property
    def offset(self) -> mx.array:
        """(B,) the position of each row's next token."""
        return self._own.offset

    @property
    def state(self) -> Any:
        """All arrays."""
        return self.prompts.state, self._own.state

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> mx.array:  # noqa: ARG002
        """(B, 1, 1, P + L): what of its prompt and of its own tokens the next token of each row sees."""
        assert length == 1
        before, own, of_rows_B = self.prompts, self._own, mx.array(self.groups.of_rows)
        places_GP = mx.arange(before._idx) - before.left_padding[:, None]
        places_BL = mx.arange(own._idx + 1) - own._idx + own.offset[:, None]
        places = mx.concatenate([places_GP[of_rows_B], places_BL], axis=1)
        mask = mx.concatenate([
            (places_GP >= 0)[of_rows_B], mx.arange(own._idx + 1) >= own.left_padding[:, None]
        ], axis=1)  # fmt: skip
        if window_size is not None:
            mask = mask & (own.offset[:, None] - places < window_size)
        return mask[:, None, None]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The rows' own, with the new ones."""
        own = self._own
        own.step = max(1, min(max(GROWTH, own._idx // 8), self._most - own._idx))
        found: tuple[mx.array, mx.array] = own.update_and_fetch(keys, values)
        return found

    def attend(self, q_BH1D: mx.array, scale: float, mask: mx.array) -> mx.array:
        """(B, H, 1, D): softmax(scale · q kᵀ) v over both segments."""
        k_GKPD, v_GKPD = self.prompts.keys_and_values()
        k_BKLD, v_BKLD = self._own.keys_and_values()
        groups, num_before = self.groups, k_GKPD.shape[2]
        q_BKQD = (q_BH1D * scale).reshape(len(q_BH1D), k_BKLD.shape[1], -1, q_BH1D.shape[-1])
        scores = mx.concatenate([
            groups.by_row(groups.by_prompt(q_BKQD) @ k_GKPD.swapaxes(-1, -2)), q_BKQD @ k_BKLD.swapaxes(-1, -2)
        ], axis=-1)  # fmt: skip
        shares = mx.softmax(mx.where(mask, scores, -mx.inf), axis=-1, precise=True)
        of_prompt, of_own = shares[..., :num_before], shares[..., num_before:]
        found = groups.by_row(groups.by_prompt(of_prompt) @ v_GKPD) + of_own @ v_BKLD
        return found.reshape(*q_BH1D.shape[:-1], v_BKLD.shape[-1])

    def filter(self, rows: Sequence[int], groups: Groups, prompts: Sequence[int]) -> None:
        """Keep these rows and these prompts."""
        self._own.filter(list(rows))
        if len(prompts) < len(self.groups.prompts):
            self.prompts.filter(list(prompts))
        self.groups = groups

    def extend(self, other: "SharedPrefixCache", groups: Groups, new: Sequence[int]) -> None:
        """Take in the rows of another, and its prompts numbered `new`."""
        if new:
            if len(new) < len(other.groups.prompts):
                other.prompts.filter(list(new))
            self.prompts.extend(other.prompts)
        self._own.extend(other._own)
        self.groups = groups


class Rows(Protocol):
    """A layer's cache as `SharedPrefixes` has it: `SharedPrefixCache`, or a device's own."""

    def filter(self, rows: Sequence[int], groups: Groups, prompts: Sequence[int]) -> None:
        """Keep these rows and these prompts."""

    def extend(self, other: Any, groups: Groups, new: Sequence[int]) -> None:
        """Take in the rows of another, and its prompts numbered `new`."""


class SharedPrefixes:
    """The caches of all layers of a model, for rows that go on from prompts."""

    def __init__(self, layers: Sequence[Rows], groups: Groups) -> None:
        self.layers, self._groups = layers, groups

    @classmethod
    def of(cls, prompts: Sequence[BatchKVCache], groups: Groups, most: int) -> "SharedPrefixes":
        """See `SharedPrefixCache`."""
        return cls([SharedPrefixCache(layer, groups, most) for layer in prompts], groups)

    def filter(self, rows: Sequence[int]) -> None:
        """Keep these rows, and the prompts that they go on from."""
        self._groups, prompts = self._groups.kept(rows)
        for layer in self.layers:
            layer.filter(rows, self._groups, prompts)

    def extend(self, other: "SharedPrefixes") -> None:
        """Take in the rows of another, which is of no use then; prompts that both have are held once."""
        self._groups, new = self._groups.joined(other._groups)
        for layer, theirs in zip(self.layers, other.layers, strict=True):
            layer.extend(theirs, self._groups, new)


_TRIED: dict[tuple[type, str], str | None] = {}
"""What `cannot_share_prefixes` says of models of a class and of sizes."""


def cannot_share_prefixes(model: nn.Module) -> str | None:
    """Why a model's rows cannot be decoded with `SharedPrefixes`; None if they can, as tried once on a few tokens."""
    kind = type(model), repr(getattr(model, "args", None))

    def read(texts: Sequence[Sequence[int]], groups: Groups, most: int) -> SharedPrefixes:
        layers, longest = [BatchKVCache([0] * len(texts)) for _ in make_prompt_cache(model)], max(map(len, texts))
        padding = [longest - len(text) for text in texts]
        for layer in layers:
            layer.prepare(lengths=[*map(len, texts)], right_padding=padding)
        model(mx.array([[*text, *[0] * pad] for text, pad in zip(texts, padding, strict=True)]), cache=layers)
        for layer in layers:
            layer.finalize()
        return SharedPrefixes.of(layers, groups, most)

    if kind not in _TRIED:
        _TRIED[kind] = tried(model, read)
    return _TRIED[kind]


def tried(model: nn.Module, read: Callable[[Sequence[Sequence[int]], Groups, int], SharedPrefixes]) -> str | None:
    """What is against decoding rows that go on from texts, once `read` has made the caches; None: nothing.

    Args:
        model: in evaluation mode.
        read: gives the caches of texts, for the groups of rows and so many own positions.
    """
    with to_be_tried(model):
        return _tried(model, read)


def _tried(model: nn.Module, read: Callable[[Sequence[Sequence[int]], Groups, int], SharedPrefixes]) -> str | None:
    """The same, of a model that is in memory."""
    if any(type(layer) is not KVCache for layer in make_prompt_cache(model)):
        return "its layers keep something else than keys and values of all positions"
    for home in {sys.modules[type(module).__module__] for module in model.modules()}:
        if hasattr(home, _ATTENTION):
            _ask_the_cache(home)

    def logits_of(tokens_BL: mx.array, cache: Any = None) -> mx.array:
        found: mx.array = model(tokens_BL, cache=cache)[..., :_COMPARED]
        mx.eval(found)  # so that all logits are of one pass alone
        return found

    rows_BL, prompts, texts = example(model(mx.zeros((1, 1), mx.int32)).shape[-1])
    length = rows_BL.shape[1]
    before = [row[:length] for row, length in zip(prompts.tokens_GP.tolist(), prompts.lengths_G.tolist(), strict=True)]
    try:
        groups = Groups(tuple((number,) for number in range(len(before))), np.array(prompts.groups_B.tolist()))
        caches = read(before, groups, length)
        found = mx.concatenate([logits_of(rows_BL[:, i : i + 1], caches.layers) for i in range(length)], axis=1)
        expected = mx.stack([logits_of(mx.array([text]))[0, -length:] for text in texts])
    except ERRORS as error:
        return f"its layers need another cache ({error})"
    tolerance = 1e-3 if found.dtype == mx.float32 else 5e-2
    found, expected = found.astype(mx.float32), expected.astype(mx.float32)
    # relative to all of a token's logits, of which some are near zero; an error that is NaN is one, too
    errors_BL = mx.std(found - expected, axis=-1) / (mx.std(expected, axis=-1) + 1e-30)
    if not errors_BL.max() <= tolerance:
        return "its layers see more of a text than keys and values"
    return None


def _ask_the_cache(home: ModuleType) -> None:
    """Let the attention function that a module's models call leave the work to a cache that can `attend`."""
    original = getattr(home, _ATTENTION)
    if getattr(original, "asks_the_cache", False):
        return

    @functools.wraps(original)
    def attention(
        queries: mx.array, keys: mx.array, values: mx.array, cache: Any = None, *rest: Any, **more: Any
    ) -> mx.array:
        if hasattr(cache, "attend"):
            output: mx.array = cache.attend(queries, *rest, **more)
            return output
        found: mx.array = original(queries, keys, values, cache, *rest, **more)
        return found

    attention.asks_the_cache = True  # type: ignore[attr-defined]
    setattr(home, _ATTENTION, attention)
