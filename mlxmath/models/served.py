"""A model that answers while its blocks stay on the disk: each comes when the model calls it, the next one meanwhile.

mlx_lm's models run as they are, whatever their blocks are made of, if one layer makes their logits. What a block gives,
and what it leaves in a cache, is computed before its weights make way for others. So a token of all the answers that
are drawn together reads the base once, and so does a part of their prompts. Of several positions the head makes the
last one's logits alone: who draws asks for no others.

Shapes: B rows, L positions, D hidden width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxmath.errors import MlxmathError
from mlxmath.models.blocks import kinds_of
from mlxmath.models.lm_head import split
from mlxmath.models.offload import HEAD, Offloaded
from mlxmath.weights.architecture import nothing_kept

PROMPT_TOKENS = 4096
"""Of prompts that go through such a model at once: the base is read each time."""
_SERVED, _CALL = "served", "serves"


class Served:
    """Brings the units of a model as it calls them; adapters may be put into it later.

    Args:
        folder: the model's, as `load_model` has it.
        dtype: likewise.

    Raises:
        MlxmathError: as `Offloaded`; or the model makes its logits in another way.
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        self.offloaded = Offloaded(folder, dtype)
        self.model, self.config = self.offloaded.model, self.offloaded.config
        self._lends, self._is_right = False, False
        model = self.model
        model.freeze()  # a head that trains is in no two parts
        parts = split(model)
        self.offloaded.attach(model)
        if isinstance(parts, str) or not self.offloaded.holds(parts.head.layer):
            reason = parts if isinstance(parts, str) else "its logits are made by another layer than its head"
            raise self._refused(reason)
        self.offloaded.poison()
        for number, block in enumerate(model.layers):
            following = number + 1 if number + 1 < len(model.layers) else HEAD
            _intercept(block, "__call__", partial(self._block, number, following))
        head = parts.head.layer
        method = "as_linear" if isinstance(head, nn.Embedding | nn.QuantizedEmbedding) else "__call__"
        _intercept(head, method, self._head)
        object.__setattr__(model, _SERVED, self)

    def close(self) -> None:
        """End the reading; the model is of no use then."""
        self.offloaded.close()

    def _block(self, number: int, following: int, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._lends:
            return call(*args, **kwargs)
        self.offloaded.bring(number, following)
        found = None
        try:
            found = call(*args, **kwargs)
        finally:  # also where somebody leaves the model early, who wants what is in the cache
            mx.eval(found, [_arrays_of(each) for each in (*args, *kwargs.values())])
        return found

    def _head(self, call: Callable[..., Any], hidden_BLD: mx.array) -> mx.array:
        if self._lends:
            logits: mx.array = call(hidden_BLD)
            return logits
        self.offloaded.bring(HEAD, 0)
        logits = call(hidden_BLD[:, -1:] if hidden_BLD.ndim == 3 else hidden_BLD)
        mx.eval(logits)
        if not self._is_right:
            if mx.isnan(logits).any():
                raise self._refused("it uses weights of its blocks in other places than these")
            self._is_right = True
        return logits

    @contextmanager
    def lending(self) -> Iterator[None]:
        """Have the model in memory as if all blocks of a kind had the weights of the first."""
        blocks, kinds = self.model.layers, kinds_of(self.model.layers)
        first = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
        others = [number for number in range(len(blocks)) if number not in first]
        with self.offloaded.at_hand([*first, HEAD]):
            before = {number: blocks[number].parameters() for number in others}
            self._lends = True
            try:
                for number in others:
                    blocks[number].update(blocks[kinds.index(kinds[number])].parameters())
                with nothing_kept(self.model):
                    yield
            finally:
                self._lends = False
                for number, parameters in before.items():
                    blocks[number].update(parameters)

    @staticmethod
    def _refused(reason: str) -> MlxmathError:
        return MlxmathError(
            f"--offload on: this model cannot answer with its blocks on the disk, since {reason}. Use --offload off."
        )


def is_served(model: nn.Module) -> bool:
    """Whether a model's blocks are on the disk."""
    return _SERVED in vars(model)


@contextmanager
def to_be_tried(model: nn.Module) -> Iterator[None]:
    """A model as what is found by trying it on a few tokens may see it: of blocks on the disk few are read then."""
    served = vars(model).get(_SERVED)
    if served is None:
        yield
    else:
        with served.lending():
            yield


def _intercept(module: nn.Module, method: str, by: Callable[..., Any]) -> None:
    """Let `by(call, ...)` be called for `module.method(...)`, given that as `call`; for this one module."""
    kind: Any = type(module)
    module.__class__ = _intercepted(kind, method)
    object.__setattr__(module, _CALL, by)


@cache
def _intercepted(kind: Any, method: str) -> Any:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return vars(self)[_CALL](partial(getattr(kind, method), self), *args, **kwargs)

    return type(kind.__name__, (kind,), {method: call, "__module__": kind.__module__})


def _arrays_of(given: Any) -> list[Any]:
    """What a cache holds, or those that it is made of do."""
    return [vars(each) for each in (given, *getattr(given, "caches", ())) if hasattr(each, "__dict__")]
