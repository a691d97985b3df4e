"""Decoders side by side on a CPU, one a core.

A step's products have few rows. Shared out among cores, each of them ends in waiting for the other ones, and all that
is no product keeps one core busy. So the sequences are shared out instead: each core takes whole steps of its own ones.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

from mlxmath.generation.decode import Decoder
from mlxmath.models import cpu_decoding
from mlxmath.models.served import is_served
from mlxmath.models.shared_prefix import without_gaps
from mlxmath.models.threads import OF_PROCESS, computing_threads
from mlxmath.runtime.blas import can_limit_threads, limit_threads, num_usable_cores

P = TypeVar("P")
T = TypeVar("T")
_LEAST = 8
"""Sequences that are worth a lane of their own: each lane reads all weights at each step."""


def num_lanes(model: nn.Module, num_sequences: int) -> int:
    """How many decoders a model's sequences are shared out among."""
    if not can_limit_threads() or is_served(model) or cpu_decoding.unsupported(model) is not None:
        return 1
    return max(1, min(num_usable_cores(), num_sequences // _LEAST))


class Lanes:
    """A `Decoder` made of several that step at the same time. Which one takes a sequence does not depend on the clock.

    Args:
        model: shared by all.
        count: of the decoders.
        make: makes one of them.
    """

    joins_cheaply = True

    def __init__(self, model: nn.Module, count: int, make: Callable[[], Decoder]) -> None:
        mx.eval(model.state)  # a thread cannot evaluate another's graph
        self._decoders = [make() for _ in range(count)]
        self._places: list[tuple[int, int]] = []
        """Of each sequence: its decoder and its number there."""

    def add(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> None:
        """See `Decoder`. Equal prompts stay together as far as the lanes are then equally long."""
        sizes = [sum(lane == i for lane, _ in self._places) for i in range(len(self._decoders))]
        most = -(-(sum(sizes) + len(prompts)) // len(sizes))
        chosen: list[list[int]] = [[] for _ in sizes]
        for i in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), tuple(prompts[i]))):
            before = next(
                (lane for lane, taken in enumerate(chosen) if taken and prompts[taken[-1]] == prompts[i]), None
            )
            if before is None or sizes[before] >= most:
                before = min(range(len(sizes)), key=sizes.__getitem__)
            chosen[before].append(i)
            sizes[before] += 1
        numbers = {
            i: (lane, len(self._decoders[lane]) + n) for lane, taken in enumerate(chosen) for n, i in enumerate(taken)
        }
        self._places += [numbers[i] for i in range(len(prompts))]
        self._on_all(lambda decoder, taken: decoder.add([prompts[i] for i in taken], [seeds[i] for i in taken]), chosen)

    def step(self) -> tuple[list[int], list[float]]:
        """See `Decoder`."""
        found = self._on_all(lambda decoder, _: decoder.step(), [[*range(len(each))] for each in self._decoders])
        tokens, logprobs = zip(*((found[lane][0][n], found[lane][1][n]) for lane, n in self._places), strict=True)
        return list(tokens), list(logprobs)

    def force(self, tokens: Mapping[int, int]) -> None:
        """See `Decoder`."""
        given: list[list[tuple[int, int]]] = [[] for _ in self._decoders]
        for row, token in tokens.items():
            lane, number = self._places[row]
            given[lane].append((number, token))
        self._on_all(lambda decoder, part: decoder.force(dict(part)), given)

    def keep(self, indices: Sequence[int]) -> None:
        """See `Decoder`."""
        kept = [self._places[i] for i in indices]
        left = [without_gaps(sorted(n for lane, n in kept if lane == i)) for i in range(len(self._decoders))]
        self._on_all(
            lambda decoder, numbers: decoder.keep(numbers) if len(numbers) < len(decoder) else None, left, empty=True
        )
        self._places = [(lane, left[lane].index(n)) for lane, n in kept]

    def _on_all(
        self, work: Callable[[Decoder, list[P]], T], parts: Sequence[list[P]], *, empty: bool = False
    ) -> dict[int, T]:
        """`work` on each decoder with its part, at the same time; those with nothing are left out unless `empty`."""
        busy = [i for i, part in enumerate(parts) if part or (empty and len(self._decoders[i]))]
        with limit_threads(1):
            futures = {i: _threads()[i].submit(work, self._decoders[i], parts[i]) for i in busy}
            wait(futures.values())
        return {i: future.result() for i, future in futures.items()}


@cache
def _threads() -> list[ThreadPoolExecutor]:
    """The process's threads, each of which has its own decoder of every `Lanes`."""
    return [computing_threads(1, OF_PROCESS) for _ in range(num_usable_cores())]
