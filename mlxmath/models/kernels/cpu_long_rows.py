"""`long_rows` in NumPy: the scores of a block of queries and of keys stay in a core's cache.

A core has its own heads of keys and values, with all queries that share them, and writes into arrays that it is given.

Shapes: B rows, L queries, S keys, H query heads, K heads of keys and values (H = K · G), D head width; N queries of a
block, Q = G · N, C keys of a block.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxmath.models.kernels import long_rows
from mlxmath.models.masks import Mask, Seen

Floats: TypeAlias = NDArray[np.float32]
_FEWEST = 32
"""Queries of a block, below which products are slow."""


def attention(
    q_BHLD: Floats, k_BKSD: Floats, v_BKSD: Floats, scale: float, mask: Mask, heads: range,
    out_BHLD: Floats, log_sums_BHL: Floats,
) -> None:  # fmt: skip
    """softmax(scale · q kᵀ) v, and the queries' log-sums, as `long_rows.attention` has them.

    Args:
        q_BHLD: queries.
        k_BKSD: keys.
        v_BKSD: values, of any width.
        scale: of the scores.
        mask: with what is known of it.
        heads: those to compute, of B · K.
        out_BHLD: to be written.
        log_sums_BHL: to be written.
    """
    num_shared = q_BHLD.shape[1] // k_BKSD.shape[1]
    for queries in long_rows.blocks(q_BHLD.shape[2], max(_FEWEST, long_rows.BLOCK // num_shared)):
        places = [_place(head, k_BKSD.shape[1], num_shared, queries) for head in heads]
        qs = [_stacked(q_BHLD[at]) * np.float32(scale) for _, at in places]
        tops = [np.full((len(q), 1), long_rows.LOWEST, np.float32) for q in qs]
        totals = [np.zeros((len(q), 1), np.float32) for q in qs]
        outs = [np.zeros((len(q), v_BKSD.shape[3]), np.float32) for q in qs]
        for keys, seen in mask.seen_by(queries, long_rows.BLOCK):
            for i, (of_keys, _) in enumerate(places):
                s_QC = qs[i] @ k_BKSD[of_keys][keys].T
                _hide(s_QC, seen, of_keys[0])
                top = np.maximum(tops[i], s_QC.max(axis=1, keepdims=True))
                s_QC -= top
                np.exp(s_QC, out=s_QC)
                shrink = np.exp(tops[i] - top)
                totals[i] = totals[i] * shrink + s_QC.sum(axis=1, keepdims=True)
                outs[i] *= shrink
                outs[i] += s_QC @ v_BKSD[of_keys][keys]
                tops[i] = top
        for i, (_, at) in enumerate(places):
            sees = totals[i] > 0
            total = np.where(sees, totals[i], 1)
            out_BHLD[at] = (outs[i] / total).reshape(out_BHLD[at].shape)
            log_sums_BHL[at] = np.where(sees, tops[i] + np.log(total), np.inf).reshape(log_sums_BHL[at].shape)


def attention_backward(
    q_BHLD: Floats, k_BKSD: Floats, v_BKSD: Floats, scale: float, mask: Mask, heads: range,
    out_BHLD: Floats, log_sums_BHL: Floats, d_BHLD: Floats, d_q_BHLD: Floats, d_k_BKSD: Floats, d_v_BKSD: Floats,
) -> None:  # fmt: skip
    """The gradients of q, k and v.

    Args:
        q_BHLD: and so on to `heads`, as in `attention`; `out_BHLD` and `log_sums_BHL` as it wrote them.
        d_BHLD: the gradient of its output.
        d_q_BHLD: to be written.
        d_k_BKSD: to be added to.
        d_v_BKSD: to be added to.
    """
    num_shared = q_BHLD.shape[1] // k_BKSD.shape[1]
    for queries in long_rows.blocks(q_BHLD.shape[2], max(_FEWEST, long_rows.BLOCK // num_shared)):
        places = [_place(head, k_BKSD.shape[1], num_shared, queries) for head in heads]
        qs, ds = ([_stacked(x[at]) for _, at in places] for x in (q_BHLD, d_BHLD))
        qs = [q * np.float32(scale) for q in qs]
        deltas = [
            np.einsum("qd,qd->q", d, _stacked(out_BHLD[at]))[:, None] for d, (_, at) in zip(ds, places, strict=True)
        ]
        sums = [log_sums_BHL[at].reshape(-1, 1) for _, at in places]
        d_qs = [np.zeros_like(q) for q in qs]
        for keys, seen in mask.seen_by(queries, long_rows.BLOCK):
            for i, (of_keys, _) in enumerate(places):
                k, v = k_BKSD[of_keys][keys], v_BKSD[of_keys][keys]
                p_QC = qs[i] @ k.T
                _hide(p_QC, seen, of_keys[0])
                p_QC -= sums[i]
                np.exp(p_QC, out=p_QC)
                d_s_QC = ds[i] @ v.T
                d_s_QC -= deltas[i]
                d_s_QC *= p_QC
                d_qs[i] += d_s_QC @ k
                d_k_BKSD[of_keys][keys] += d_s_QC.T @ qs[i]
                d_v_BKSD[of_keys][keys] += p_QC.T @ ds[i]
        for d_q, (_, at) in zip(d_qs, places, strict=True):
            d_q_BHLD[at] = (d_q * np.float32(scale)).reshape(d_q_BHLD[at].shape)


def _place(
    head: int, num_kv_heads: int, num_shared: int, queries: slice
) -> tuple[tuple[int, int], tuple[int, slice, slice]]:
    """Where a head (of B · K) has its keys, and where its queries."""
    row, number = divmod(head, num_kv_heads)
    return (row, number), (row, slice(number * num_shared, (number + 1) * num_shared), queries)


def _stacked(x_GND: Floats) -> Floats:
    """(Q, D): the query heads that share a key head laid end to end."""
    return x_GND.reshape(-1, x_GND.shape[-1])


def _hide(s_QC: Floats, seen: Seen | None, row: int) -> None:
    """Make the scores of what a query does not see −∞."""
    if seen is not None:
        hidden_NC = ~np.asarray(seen[row % len(seen), 0])
        np.copyto(s_QC.reshape(-1, *hidden_NC.shape), -np.inf, where=hidden_NC)
