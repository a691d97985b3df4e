"""Micro-batches into steps: those of one optimizer step, in a seeded order that any machine repeats."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby

import numpy as np
from numpy.typing import NDArray

from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Batch, Rows, Shape, make_batch, make_packed

LOOK_AHEAD_STEPS = 64
"""Windows whose rows are sorted by length together. More save padding; fewer mix the lengths better."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class StepBatch:
    """The micro-batches of one optimizer step, made when they are asked for."""

    sampler: "BatchSampler"
    micro_batches: tuple[tuple[int, ...], ...]
    epoch: int
    index: int
    """Position of the step in its epoch."""

    @property
    def row_ids(self) -> tuple[int, ...]:
        """All rows of the step."""
        return tuple(row for batch in self.micro_batches for row in batch)

    def row_numbers(self, rows: tuple[int, ...]) -> list[int]:
        """Numbers of `rows` in the whole dataset, of which the training rows may be a part."""
        ids = getattr(self.sampler.rows, "ids", None)
        return list(rows) if ids is None else [int(ids[row]) for row in rows]

    def batch(self, index: int) -> Batch:
        """A micro-batch, padded."""
        make = make_packed if self.sampler.is_packed else make_batch
        return make(self.sampler.rows, self.micro_batches[index], self.sampler.shape)

    def batches(self) -> Iterator[Batch]:
        """All micro-batches."""
        return map(self.batch, range(len(self.micro_batches)))

    def shares(self, count: int) -> list[tuple[int, ...]]:
        """The micro-batches' numbers in at most `count` parts of about the same number of padded tokens."""
        sizes = [self.sampler.size(ids) for ids in self.micro_batches]
        return [tuple(share) for share in _spread(sizes, min(count, len(sizes)))]

    def finer(self) -> "StepBatch | None":
        """The same step in micro-batches of half the size, to which the plan keeps from now on; None at one row."""
        largest = max(map(len, self.micro_batches))
        if largest == 1:
            return None
        self.sampler.max_rows = largest // 2
        return self.sampler.step(np.array(self.row_ids), self.epoch, self.index)


class BatchSampler:
    """Which rows make which steps.

    A step holds `batch_size · grad_accumulation_steps` rows, exactly; the last one of an epoch holds what is left.

    - `bucket`: rows are sorted by length within a look-ahead buffer of a few dozen steps drawn in random order, cut
      into steps, and the steps shuffled; a step is split into micro-batches of at most `max_tokens` padded
      tokens, whatever `batch_size` is.
    - `pack`: steps as for `bucket`; rows laid end to end in micro-batches of one packed row of at most `max_tokens`.
    - `pad`: steps in random order as they come, split into micro-batches of `batch_size` rows.

    Rows with ranks (a curriculum's) come in their order, every epoch; rows of the same rank are shuffled as above.

    Args:
        rows: the data.
        config: batch size, accumulation, batching, epochs and seed.
        max_tokens: padded tokens in a micro-batch; a longer single row makes one alone.
        shape: of the batches.
        num_workers: micro-batches that are computed at once; a step is split so that all are busy.
    """

    def __init__(self, rows: Rows, config: TrainingConfig, max_tokens: int, shape: Shape, num_workers: int = 1) -> None:
        self.rows, self.shape, self._num_workers = rows, shape, num_workers
        self.max_tokens = max_tokens
        self.max_rows = config.batch_size if config.batching == "pad" else len(rows)
        self._config = config
        self._per_step = config.batch_size * config.grad_accumulation_steps
        self.steps_per_epoch = -(-len(rows) // self._per_step)

    def steps(self, epoch: int = 0, index: int = 0) -> Iterator[StepBatch]:
        """From number `index` of `epoch` on, without end."""
        for number in count(epoch):
            yield from self.epoch(number, index if number == epoch else 0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[StepBatch]:
        """The steps of an epoch from number `start` on."""
        for index, ids in enumerate(self._order(epoch)[start:], start):
            yield self.step(ids, epoch, index)

    def step(self, ids: Ids, epoch: int, index: int) -> StepBatch:
        """The step of the rows `ids`, split into micro-batches."""
        split = {"bucket": self._by_tokens, "pack": self._by_packing, "pad": self._by_rows}[self._config.batching]
        return StepBatch(self, tuple(split(ids)), epoch, index)

    @property
    def is_packed(self) -> bool:
        """Whether a micro-batch is one packed row."""
        return self._config.batching == "pack"

    def _order(self, epoch: int) -> list[Ids]:
        random = np.random.default_rng([self._config.seed, epoch])
        order = random.permutation(len(self.rows))
        ranks = getattr(self.rows, "ranks", None)
        if ranks is not None:
            order = order[np.argsort(ranks[order], kind="stable")]
        if self._config.batching == "pad":
            return _cut(order, self._per_step)
        # in a small dataset a buffer of all rows would make the same steps in every epoch
        look_ahead = max(1, min(LOOK_AHEAD_STEPS, self.steps_per_epoch // 4))
        steps: list[Ids] = []
        for buffer in self._buffers(order, ranks, look_ahead * self._per_step):
            by_length = buffer[np.argsort(self.rows.lengths[buffer], kind="stable")]
            parts = _cut(by_length, self._per_step)
            steps += [parts[i] for i in random.permutation(len(parts))]
        return steps

    def _buffers(self, order: Ids, ranks: NDArray[np.int32] | None, size: int) -> Iterator[Ids]:
        """Rows to be sorted by length together: whole steps, and with ranks only steps of one and the same rank."""
        if ranks is None:
            yield from _cut(order, size)
            return
        steps = _cut(order, self._per_step)
        rank_or_own = [int(ranks[w[0]]) if ranks[w[0]] == ranks[w[-1]] else -1 - i for i, w in enumerate(steps)]
        for _, group in groupby(range(len(steps)), key=rank_or_own.__getitem__):
            yield from _cut(np.concatenate([steps[i] for i in group]), size)

    def _by_rows(self, ids: Ids) -> list[tuple[int, ...]]:
        return [tuple(map(int, part)) for part in _cut(self._by_length(ids), self.max_rows)]

    def _by_tokens(self, ids: Ids) -> list[tuple[int, ...]]:
        """Of at most `max_tokens`; for several workers, as many as keep all of them busy and as even as possible."""
        groups = self._groups(ids, self.max_tokens)
        if self._num_workers == 1:
            return groups
        wanted = -(-len(groups) // self._num_workers) * self._num_workers
        low, high = 1, self.max_tokens
        while low < high:  # the least bound that needs no more groups than are wanted
            middle = (low + high) // 2
            if len(self._groups(ids, middle)) <= wanted:
                high = middle
            else:
                low = middle + 1
        return self._groups(ids, low)

    def _groups(self, ids: Ids, max_tokens: int) -> list[tuple[int, ...]]:
        """From the longest row down: each group is as wide as its first row. Whole steps may be of any size."""
        rows: list[int] = self._by_length(ids)[::-1].tolist()
        groups: list[tuple[int, ...]] = []
        while rows:
            room = min(max_tokens // self.shape.width(int(self.rows.lengths[rows[0]])) or 1, self.max_rows, len(rows))
            if room != self._per_step:
                room = self.shape.num_rows(room)
            groups.append(tuple(rows[:room]))
            rows = rows[room:]
        return groups

    def _by_packing(self, ids: Ids) -> list[tuple[int, ...]]:
        """Each row, the longest first, to the emptiest of as few packs as hold all, and as many as workers."""
        lengths = self.rows.lengths[ids] - 1
        count = max(-(-int(lengths.sum()) // self.max_tokens), -(-len(ids) // self.max_rows))
        while True:
            count = min(len(ids), -(-count // self._num_workers) * self._num_workers)
            packs = _spread(lengths.tolist(), count)
            fits = (
                len(pack) == 1 or (lengths[pack].sum() <= self.max_tokens and len(pack) <= self.max_rows)
                for pack in packs
            )
            if count == len(ids) or all(fits):
                return [tuple(ids[pack].tolist()) for pack in packs]
            count += 1

    def size(self, ids: tuple[int, ...]) -> int:
        """Padded tokens of a micro-batch."""
        if self.is_packed:
            return self.shape.width(int((self.rows.lengths[list(ids)] - 1).sum()) + 1)
        return len(ids) * self.shape.width(int(self.rows.lengths[list(ids)].max()))

    def _by_length(self, ids: Ids) -> Ids:
        return ids[np.argsort(self.rows.lengths[ids], kind="stable")]


def _cut(ids: Ids, size: int) -> list[Ids]:
    return [ids[i : i + size] for i in range(0, len(ids), size)]


def _spread(sizes: Sequence[int], count: int) -> list[list[int]]:
    """The numbers of things of these sizes in `count` parts: the largest first, each to the emptiest part."""
    parts: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        emptiest = loads.index(min(loads))
        parts[emptiest].append(index)
        loads[emptiest] += sizes[index]
    return parts
