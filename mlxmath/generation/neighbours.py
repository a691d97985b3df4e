"""Whether a model's answers depend on what is decoded beside them, as tried on the model itself.

Some architectures cannot be trusted with a batch of prompts of different lengths: they read the padding (layers with a
state), put a mask for each row on scores of another shape, cut a text into blocks by its place in the batch, or have
caches that do not join. What begins only beyond the few tokens of the try is not seen.

Shapes: V vocabulary.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from numpy.typing import NDArray

from mlxmath.generation.decode import Decoder
from mlxmath.generation.sampling import Sampling
from mlxmath.models.calls import ERRORS
from mlxmath.models.served import to_be_tried
from mlxmath.runtime.console import say

Way = Literal["together", "in equal lengths", "alone"]
"""How answers may be decoded: in any batch; in batches of prompts of one length; one at a time."""

_LENGTHS = (3, 11, 6)
"""Tokens of the prompts that a model is tried on."""
_NEW = 6
"""Tokens after each of them."""
_FLOAT32, _LOWER = (1e-3, 1e-2), (2e-2, 1e-1)
"""What counts as equal: errors that are surely rounding, and those that surely are not. In between it depends on how
far equal lengths, of which nothing is padded, are from single texts."""
_TIMES = 4
"""Errors larger than those of equal lengths by this factor are no rounding."""

_TRIED: dict[tuple[Any, ...], Way] = {}
"""What `way_of` says of models of a class, of sizes and of a type."""


def way_of(model: nn.Module) -> Way:
    """How a model's answers can be decoded so that each is what mlx_lm gives for its prompt alone.

    Tried once in a process for models that differ in their weights alone; a line says so if it is not "together".

    Args:
        model: in evaluation mode.
    """
    dtypes = {str(array.dtype) for _, array in tree_flatten(model.parameters())}
    kind = type(model), repr(getattr(model, "args", None)), *sorted(dtypes)
    if kind not in _TRIED:
        with to_be_tried(model):
            _TRIED[kind], why = _try(model)
        if why:
            how = "one at a time" if _TRIED[kind] == "alone" else "in groups of equally long prompts"
            say(f"answers are decoded {how}: {why}")
    return _TRIED[kind]


def _try(model: nn.Module) -> tuple[Way, str]:
    """The way, and why it is not "together"."""

    def said(error: float) -> str:
        return "its layers cannot be batched so" if error == np.inf else f"off by {100 * error:.2g} %"

    logits = model(mx.zeros((1, 1), mx.int32))
    vocab_size, is_float32, rng = logits.shape[-1], logits.dtype == mx.float32, np.random.default_rng(0)
    texts = [rng.integers(vocab_size, size=length + _NEW).tolist() for length in _LENGTHS]
    even = [text[-min(_LENGTHS) - _NEW :] for text in [*texts, texts[1]]]
    surely, at_most, outliers = (*_FLOAT32, 0) if is_float32 else (*_LOWER, 1)
    noise = _error(model, even, outliers, even=True)
    if not noise <= at_most:
        return "alone", f"in a batch this model gives other log-probabilities ({said(noise)})"
    padded = _error(model, texts, outliers)
    if not padded <= max(surely, min(at_most, _TIMES * noise)):
        return (
            "in equal lengths",
            f"in a batch of different lengths this model gives other log-probabilities ({said(padded)})",
        )
    return "together", ""


class _Noting(Decoder):
    """Notes the logits of texts, each of which goes on as it does in any case: row number is seed.

    Args:
        model: the model.
        texts: of which the last `_NEW` tokens are written.
        even: see `Decoder`.
    """

    def __init__(self, model: nn.Module, texts: Sequence[list[int]], *, even: bool = False) -> None:
        super().__init__(model, Sampling(_NEW), even=even)
        self._texts = texts
        self.logits: dict[int, list[NDArray[np.float32]]] = defaultdict(list)

    def _next(
        self, tokens_B: mx.array, caches: Any, seeds_B: NDArray[np.uint64], counts_B: NDArray[np.uint64]
    ) -> tuple[mx.array, mx.array]:
        logits_BV = np.array(self._model(tokens_B[:, None], cache=caches.layers)[:, -1].astype(mx.float32))
        for logits_V, seed in zip(logits_BV, seeds_B.tolist(), strict=True):
            self.logits[seed].append(logits_V)
        written = [
            self._texts[seed][count - _NEW] for seed, count in zip(seeds_B.tolist(), counts_B.tolist(), strict=True)
        ]
        return mx.array(written, mx.int32), mx.zeros(len(written))

    def run(self) -> None:
        """Let texts join and leave as answers do."""
        prompts = [text[:-_NEW] for text in self._texts]
        num_first = len(prompts) if self._even else 2
        self.add(prompts[:num_first], range(num_first))
        self.step()
        if not self._even:
            self.add(prompts[2:], [2])
            self.step()
        self.keep(range(1, len(prompts)))
        while self._counts_B.min() < _NEW:
            self.step()


def _error(model: nn.Module, texts: Sequence[list[int]], outliers: int, *, even: bool = False) -> float:
    """How far logits are from those of the texts alone, relative to their spread; infinity where there are none.

    The worst token's of all texts, but for `outliers` of each: experts that were chosen by a rounding are no fault.
    """
    noting = _Noting(model, texts, even=even)
    try:
        noting.run()
    except (AssertionError, *ERRORS):
        return np.inf
    worst = 0.0
    for number, text in enumerate(texts):
        pairs = zip(noting.logits[number], _alone(model, text), strict=False)
        with np.errstate(all="ignore"):
            errors = [float((ours - theirs).std() / theirs.std()) for ours, theirs in pairs]
        if not np.isfinite(errors).all():
            return np.inf
        worst = max(worst, sorted(errors)[-1 - outliers])
    return worst


def _alone(model: nn.Module, text: Sequence[int]) -> list[NDArray[np.float32]]:
    """The logits of the tokens that are written, as mlx_lm's generation computes them."""
    cache = make_prompt_cache(model)
    model(mx.array([text[: -_NEW - 1]]), cache=cache)
    logits = (model(mx.array([[token]]), cache=cache) for token in text[-_NEW - 1 :])
    return [np.array(logits_BLV[0, -1].astype(mx.float32)) for logits_BLV in logits]
