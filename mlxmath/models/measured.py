"""What is known of a model's memory before it is loaded: counted, or measured (`mlxmath.training.footprint`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Parabola:
    """Bytes of a row: fixed + token · length + pair · length²."""

    fixed: float
    token: float
    pair: float

    @classmethod
    def through(cls, lengths: Sequence[int], sizes: Sequence[float]) -> "Parabola":
        """Three points; nothing shrinks. Where a longer row takes relatively less, there are no pairs."""
        (l1, l2, l3), (b1, b2, b3) = lengths, map(float, sizes)
        first, second = (b2 - b1) / (l2 - l1), (b3 - b2) / (l3 - l2)
        pair = max(0.0, (second - first) / (l3 - l1))
        token = max(0.0, second - pair * (l2 + l3))
        return cls(b3 - token * l3 - pair * l3**2, token, pair)

    def at(self, length: float) -> float:
        """Bytes of a row of a length."""
        return max(0.0, self.fixed + self.token * length + self.pair * length**2)


@dataclass(frozen=True)
class Growth:
    """Bytes that grow with a micro-batch, by those of single rows of three or more lengths, the shortest first."""

    lengths: tuple[int, ...]
    sizes: tuple[float, ...]
    bound: float = math.inf
    """Longer rows take no more for pairs of tokens than one of this length."""

    def at(self, tokens: int, length: int) -> float:
        """Bytes of so many tokens in rows of a length."""
        row, once = self._row(length), max(0.0, self._through(2).fixed)
        return max(0.0, once + tokens / length * (row - once))

    def _row(self, length: int) -> float:
        """Through the three points around a length, or the last three; beyond the bound straight ahead."""
        if self.lengths[-2] > self.bound and length > self.bound:
            slope = (self.sizes[-1] - self.sizes[-2]) / (self.lengths[-1] - self.lengths[-2])
            return self.sizes[-1] + slope * (length - self.lengths[-1])
        last = next((i for i in range(2, len(self.lengths)) if length <= self.lengths[i]), len(self.lengths) - 1)
        parabola, beyond = self._through(last), max(0.0, length - self.bound)
        return parabola.at(length - beyond) + parabola.token * beyond

    def _through(self, last: int) -> Parabola:
        points = slice(last - 2, last + 1)
        return Parabola.through(self.lengths[points], self.sizes[points])


@dataclass(frozen=True)
class Measured:
    """What a micro-batch takes, by a measurement (`mlxmath.training.footprint`)."""

    kept: Growth
    """By the blocks, at the end of the forward pass."""
    working: Growth
    """More than that, for what is at hand, the head left out."""
    vocab_size: int
    head_width: int | None
    """Inputs of the head; None where all logits are made at once."""
    head_is_packed: bool
    num_layers: int
    """Blocks that keep something."""
    packed: bool
    """Whether rows were laid end to end."""
    by_block: bool
    """Whether the prompts of a group of completions may be computed once, and again in the backward pass."""
    unpacked_bytes: int
    """Of the largest packed weight, were it dequantized."""


@dataclass(frozen=True)
class Counted:
    """What of a model is counted and measured, not estimated."""

    weights: int
    """Bytes of its parameters as they are held while training."""
    trained: int
    """Parameters that train."""
    measured: Measured | str
    """What a micro-batch takes, or why that is not known."""
