"""What a step of data-parallel training takes on n machines: compute of the largest share, an all-reduce, two votes.

    T(n) = max_r Σ_{batches of rank r} tokens · t_token + t_window + A(n) + 2 v
    A(n) = 2 (n − 1) (α + M / (n β))          (a ring: Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002)

M is the message, 4 bytes a trained parameter; α and β are a link's time a message and bytes a second; t_token is a
padded token's time forward and back, t_window what every rank does once a step (the optimizer), v a vote's time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shares = list[list[int]]
"""Of a step: by rank, the padded tokens of each micro-batch."""


@dataclass(frozen=True)
class Link:
    """What connects neighbours in the ring."""

    name: str
    bytes_per_s: float
    message_s: float


LINKS = (
    Link("1 GbE", 0.117e9, 60e-6),
    Link("10 GbE", 1.15e9, 40e-6),
    Link("Thunderbolt 4, ring over TCP", 2.5e9, 60e-6),
    Link("Thunderbolt 5, jaccl (RDMA)", 6.5e9, 10e-6),
    Link("NVLink, nccl", 300e9, 10e-6),
)
"""Typical figures, not measured here: payload rates of the line and the latency of the protocol on it."""


@dataclass(frozen=True)
class Compute:
    """One machine's constants."""

    token_s: float
    window_s: float


def all_reduce_s(num_bytes: float, n: int, link: Link) -> float:
    """A(n)."""
    return 0.0 if n == 1 else 2 * (n - 1) * (link.message_s + num_bytes / (n * link.bytes_per_s))


def vote_s(n: int, link: Link) -> float:
    """v: there and back between rank 0 and the others."""
    return 0.0 if n == 1 else 2 * link.message_s


def step_s(shares: Shares, num_bytes: float, link: Link, compute: Compute) -> float:
    """T(n) of one step, n being the number of shares."""
    n = len(shares)
    largest = max(sum(share) for share in shares)
    return largest * compute.token_s + compute.window_s + all_reduce_s(num_bytes, n, link) + 2 * vote_s(n, link)


def speed_up(tokens: float, n: int, imbalance: float, num_bytes: float, link: Link, compute: Compute) -> float:
    """T(1) / T(n) for a step of so many tokens; `imbalance` is the largest share over the mean one."""
    alone = tokens * compute.token_s + compute.window_s
    together = tokens / n * imbalance * compute.token_s + compute.window_s
    return alone / (together + all_reduce_s(num_bytes, n, link) + 2 * vote_s(n, link))


def pays_until(
    tokens: float, imbalances: dict[int, float], num_bytes: float, link: Link, compute: Compute, least: float = 0.5
) -> int:
    """The most machines (of those in `imbalances`) of which each still brings `least` of a machine's worth."""
    return max(
        n for n, ratio in imbalances.items() if speed_up(tokens, n, ratio, num_bytes, link, compute) >= least * n
    )


class Lengths:
    """`mlxmath.data.batch.Rows` as far as a plan looks at them."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths: NDArray[np.int64] = np.array(lengths, np.int64)

    def row(self, index: int) -> Any:
        """Never asked for."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.lengths)


def shares_of(
    lengths: Sequence[int], n: int, *, batch: int, epochs: int = 1, max_tokens: int, multiple: int = 16, seed: int = 0
) -> list[Shares]:
    """How `mlxmath train` divides each step's rows between n ranks of one worker each."""
    from mlxmath.config.training import TrainingConfig
    from mlxmath.data.batch import Shape
    from mlxmath.data.batching import BatchSampler

    config = TrainingConfig(batch_size=batch, grad_accumulation_steps=1, num_epochs=epochs, seed=seed)
    plan = BatchSampler(Lengths(lengths), config, max_tokens, Shape(multiple), n)
    found = []
    for window in plan.epoch(0):
        shares = [[plan.size(window.micro_batches[i]) for i in share] for share in window.shares(n)]
        found.append(shares + [[] for _ in range(n - len(shares))])
    return found


def imbalance(steps: Sequence[Shares]) -> float:
    """The largest share over what one machine would take divided by n, over all steps: padding included."""
    largest = sum(max(sum(share) for share in shares) for shares in steps)
    return largest * len(steps[0]) / sum(sum(map(sum, shares)) for shares in steps)


def fit(steps: Sequence[Shares], seconds: Sequence[float]) -> Compute:
    """t_token and t_window by least squares over the steps of one rank."""
    tokens = np.array([sum(map(sum, shares)) for shares in steps], np.float64)
    slope, constant = np.linalg.lstsq(np.stack([tokens, np.ones_like(tokens)], 1), np.array(seconds), rcond=None)[0]
    if constant < 0:  # not enough spread to tell the two apart
        return Compute(float(np.sum(seconds) / tokens.sum()), 0.0)
    return Compute(float(slope), float(constant))
