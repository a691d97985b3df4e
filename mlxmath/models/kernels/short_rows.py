"""Attention of rows that are not long, in NumPy: a block of queries at a time, whose scores stay in a core's cache.

NumPy's products take heads as they lie in the projections' outputs, so nothing is copied, and in causal attention each
block of queries is multiplied by the keys up to its last one alone.

Shapes: B rows, L queries, S keys, H query heads, K heads of keys and values (H = K · G), D head width; N queries of a
block, Q = G · N.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxmath.models.kernels.long_rows import LOWEST

Floats: TypeAlias = NDArray[np.float32]
LONGEST = 512
"""Rows for which these are the faster ones; see `cpu_long_rows` for longer ones."""
_SCORES = 1 << 16
"""Of a row that are computed at a time, in all heads: a quarter of a megabyte."""
_FEWEST = 32
"""Queries of a block, below which products are slow."""


def attention(
    q_BHLD: Floats, k_BKSD: Floats, v_BKSD: Floats, scale: float, added: Floats | None, heads: slice,
    out_BHLD: Floats, log_sums_BHL: Floats,
) -> None:  # fmt: skip
    """softmax(scale · q kᵀ + added) v, and the logarithms of the queries' sums.

    Args:
        q_BHLD: queries.
        k_BKSD: keys.
        v_BKSD: values, of any width.
        scale: of the scores.
        added: (1 or B, L, S), 0 or −∞; None for causal attention, in which S = L.
        heads: those of keys and values to compute, with all queries that share them.
        out_BHLD: to be written.
        log_sums_BHL: to be written.
    """
    num_shared = q_BHLD.shape[1] // k_BKSD.shape[1]
    of_queries = slice(heads.start * num_shared, heads.stop * num_shared)
    for row in range(len(q_BHLD)):
        k, v = k_BKSD[row, heads], v_BKSD[row, heads]
        for queries, keys in _blocks(q_BHLD.shape[1], q_BHLD.shape[2], k.shape[1], causal=added is None):
            s_KQS = np.matmul(_stacked(q_BHLD[row, of_queries, queries], len(k), scale), k[:, keys].swapaxes(1, 2))
            _mask(s_KQS, queries, None if added is None else added[row % len(added)])
            top_KQ1 = s_KQS.max(axis=-1, keepdims=True, initial=LOWEST)
            s_KQS -= top_KQ1
            np.exp(s_KQS, out=s_KQS)
            total_KQ1 = s_KQS.sum(axis=-1, keepdims=True)
            total_KQ1[total_KQ1 == 0] = np.inf  # of a query that sees nothing, whose output is 0
            found_KQD = np.matmul(s_KQS, v[:, keys])
            found_KQD /= total_KQ1
            np.log(total_KQ1, out=total_KQ1)
            total_KQ1 += top_KQ1
            out, sums = out_BHLD[row, of_queries, queries], log_sums_BHL[row, of_queries, queries]
            out[...] = found_KQD.reshape(out.shape)
            sums[...] = total_KQ1.reshape(sums.shape)


def attention_backward(
    q_BHLD: Floats, k_BKSD: Floats, v_BKSD: Floats, scale: float, added: Floats | None, heads: slice,
    out_BHLD: Floats, log_sums_BHL: Floats, d_BHLD: Floats, d_q_BHLD: Floats, d_k_BKSD: Floats, d_v_BKSD: Floats,
) -> None:  # fmt: skip
    """dS = P ∘ (dO vᵀ − rowsum(dO ∘ O)), with P = exp(S − log-sums) computed again.

    Args:
        q_BHLD: and so on to `heads`, as in `attention`; `out_BHLD` and `log_sums_BHL` as it wrote them.
        d_BHLD: the gradient of its output.
        d_q_BHLD: to be written.
        d_k_BKSD: to be added to.
        d_v_BKSD: to be added to.
    """
    num_shared = q_BHLD.shape[1] // k_BKSD.shape[1]
    of_queries = slice(heads.start * num_shared, heads.stop * num_shared)
    for row in range(len(q_BHLD)):
        k, v = k_BKSD[row, heads], v_BKSD[row, heads]
        for queries, keys in _blocks(q_BHLD.shape[1], q_BHLD.shape[2], k.shape[1], causal=added is None):
            at = row, of_queries, queries
            q_KQD, d_KQD = _stacked(q_BHLD[at], len(k), scale), _stacked(d_BHLD[at], len(k))
            deltas_KQ = np.einsum("kqd,kqd->kq", d_KQD, _stacked(out_BHLD[at], len(k)))
            p_KQS = np.matmul(q_KQD, k[:, keys].swapaxes(1, 2))
            _mask(p_KQS, queries, None if added is None else added[row % len(added)])
            p_KQS -= log_sums_BHL[at].reshape(len(k), -1, 1)
            np.exp(p_KQS, out=p_KQS)
            d_s_KQS = np.matmul(d_KQD, v[:, keys].swapaxes(1, 2))
            d_s_KQS -= deltas_KQ[:, :, None]
            d_s_KQS *= p_KQS
            d_q = d_q_BHLD[at]
            np.multiply(np.matmul(d_s_KQS, k[:, keys]).reshape(d_q.shape), np.float32(scale), out=d_q)
            d_k_BKSD[row, heads, keys] += np.matmul(d_s_KQS.swapaxes(1, 2), q_KQD)
            d_v_BKSD[row, heads, keys] += np.matmul(p_KQS.swapaxes(1, 2), d_KQD)


def _blocks(num_heads: int, length: int, num_keys: int, *, causal: bool) -> Iterator[tuple[slice, slice]]:
    """The blocks of queries, all of about the same size, and the keys that they see something of."""
    most = max(_FEWEST, _SCORES // (num_heads * num_keys))
    count = -(-length // most)
    ends = [length * i // count for i in range(count + 1)]
    for start, end in pairwise(ends):
        yield slice(start, end), slice(0, end if causal else num_keys)


def _stacked(x_HND: Floats, num_kv_heads: int, scale: float = 1.0) -> Floats:
    """Query heads that share a key head laid end to end, times `scale`: (K, Q, D)."""
    scaled = x_HND if scale == 1 else x_HND * np.float32(scale)
    return scaled.reshape(num_kv_heads, -1, x_HND.shape[-1])


def _mask(s_KQS: Floats, queries: slice, added_LS: Floats | None) -> None:
    """Make the scores of what a query does not see −∞."""
    num_queries = queries.stop - queries.start
    s_KGNS = s_KQS.reshape(len(s_KQS), -1, num_queries, s_KQS.shape[-1])
    if added_LS is None:
        s_KGNS[..., queries.start :] += np.triu(np.full((num_queries, num_queries), -np.inf, np.float32), 1)
    else:
        s_KGNS += added_LS[queries]
