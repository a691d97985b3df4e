"""Attention of long rows, by blocks of queries and keys, without an array of all their pairs.

For each block of queries the softmax is carried on from one block of keys to the next by the largest score and the sum
of exponentials so far; what is kept for the backward pass is the logarithm of each query's sum (Dao 2023,
arXiv:2307.08691, algorithms 1 and 2). Blocks that no query sees are left out.

Shapes: B rows, L queries, H of their heads, K heads of keys and values (H a multiple of K), D head width; C keys of a
block.
"""

from collections.abc import Iterator

import mlx.core as mx

from mlxmath.models.masks import Mask, Seen, Written

BLOCK = 256
"""Queries, and keys, of a block on a CPU, in whose cache a head's scores stay."""
GPU_BLOCK = 2048
"""The same on a GPU, where many operations in one graph are what counts."""
LOWEST = -1e30
"""Below any score: the largest one of no keys, and finite, so that a query that sees nothing gives 0 and not NaN."""


def block() -> int:
    """Queries, and keys, of a block; longer rows are computed like this."""
    return BLOCK if mx.default_device().type == mx.cpu else GPU_BLOCK


def attention(
    q_BHLD: mx.array, k_BKLD: mx.array, v_BKLD: mx.array, scale: float, mask: Mask | Written | None,
    sinks_H: mx.array | None = None,
) -> tuple[mx.array, mx.array]:  # fmt: skip
    """softmax(scale · q kᵀ) v (causal if the mask is None), and the queries' log-sums (B, H, L, 1) in float32.

    A query that sees nothing gives 0; its log-sum is ∞. A head's sink is the score of one more key, with a value of 0
    (Xiao et al. 2024, arXiv:2309.17453).
    """
    outputs: list[mx.array] = []
    log_sums: list[mx.array] = []
    num_rows, num_heads, length, _ = q_BHLD.shape
    mask = mask or Mask.causal(length)
    for queries in blocks(length, block()):
        q = _stacked(q_BHLD[:, :, queries] * scale, k_BKLD)
        top = mx.full((num_rows, num_heads, queries.stop - queries.start, 1), LOWEST)
        total, output = mx.zeros_like(top), mx.zeros((*top.shape[:-1], v_BKLD.shape[-1]))
        if sinks_H is not None:
            top, total = mx.broadcast_to(_each_head(sinks_H), top.shape), mx.ones_like(top)
        for keys, seen in mask.seen_by(queries, block()):
            (q,) = mx.depends([q], [output, *outputs[-1:]])  # one block after the other, not all at once
            scores = (q @ k_BKLD[:, :, keys].swapaxes(-1, -2)).reshape(*top.shape[:-1], -1)
            weights, top, total, shrink = _fold(scores, seen, top, total)
            found = _stacked(weights.astype(v_BKLD.dtype), k_BKLD) @ v_BKLD[:, :, keys]
            output = output * shrink + found.reshape(output.shape)
        outputs.append((output / mx.where(total > 0, total, 1)).astype(v_BKLD.dtype))
        log_sums.append(mx.where(total > 0, top + mx.log(total), mx.inf))
    return mx.concatenate(outputs, axis=2), mx.concatenate(log_sums, axis=2)


def attention_backward(
    q_BHLD: mx.array,
    k_BKLD: mx.array,
    v_BKLD: mx.array,
    scale: float,
    mask: Mask | Written | None,
    output: tuple[mx.array, mx.array],
    d_BHLD: mx.array,
) -> tuple[mx.array, mx.array, mx.array]:
    """The gradients of q, k and v, given `attention`'s result, sinks or not, and the gradient of its first part."""
    mask = mask or Mask.causal(q_BHLD.shape[2])
    deltas_BHL1 = (d_BHLD * output[0]).astype(mx.float32).sum(-1, keepdims=True)
    d_ks, d_vs = ([mx.zeros(x[:, :, keys].shape) for keys in blocks(x.shape[2], block())] for x in (k_BKLD, v_BKLD))
    d_qs: list[mx.array] = []
    for queries in blocks(q_BHLD.shape[2], block()):
        q, d = (_stacked(x[:, :, queries], k_BKLD) for x in (q_BHLD * scale, d_BHLD))
        log_sums, deltas = output[1][:, :, queries], deltas_BHL1[:, :, queries]
        d_q = mx.zeros(q.shape)
        last: list[mx.array] = d_qs[-1:]
        for keys, seen in mask.seen_by(queries, block()):
            q, d = mx.depends([q, d], last)
            k, v, number = k_BKLD[:, :, keys], v_BKLD[:, :, keys], keys.start // block()
            scores, d_p = ((a @ b.swapaxes(-1, -2)).reshape(*log_sums.shape[:-1], -1) for a, b in ((q, k), (d, v)))
            found = _fold_backward(scores, seen, log_sums, d_p, deltas)
            p, d_s = (_stacked(x.astype(k.dtype), k) for x in found)
            d_q = d_q + d_s @ k
            d_ks[number] = d_ks[number] + d_s.swapaxes(-1, -2) @ q
            d_vs[number] = d_vs[number] + p.swapaxes(-1, -2) @ d
            last = [d_q, d_ks[number], d_vs[number]]
        d_qs.append((d_q * scale).reshape(*log_sums.shape[:-1], -1))
    d_q_BHLD, d_k_BKLD, d_v_BKLD = (
        mx.concatenate(parts, axis=2).astype(x.dtype) for parts, x in ((d_qs, q_BHLD), (d_ks, k_BKLD), (d_vs, v_BKLD))
    )
    return d_q_BHLD, d_k_BKLD, d_v_BKLD


def sinks_backward(sinks_H: mx.array, output: tuple[mx.array, mx.array], d_BHLD: mx.array) -> mx.array:
    """The gradient of the sinks: −Σ exp(sink − log-sum) · rowsum(d ∘ output)."""
    deltas_BHL1 = (d_BHLD * output[0]).astype(mx.float32).sum(-1, keepdims=True)
    shares_BHL1 = mx.exp(_each_head(sinks_H) - output[1])
    return -(shares_BHL1 * deltas_BHL1).sum((0, 2, 3)).astype(sinks_H.dtype)


def blocks(length: int, size: int) -> Iterator[slice]:
    """Of a length, but for the last of one size."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _stacked(x_BHLD: mx.array, k_BKLD: mx.array) -> mx.array:
    """Query heads that share a key head laid end to end: (B, H, L, D) -> (B, K, H/K · L, D)."""
    return x_BHLD.reshape(*k_BKLD.shape[:2], -1, x_BHLD.shape[3])


def _each_head(x_H: mx.array) -> mx.array:
    """(1, H, 1, 1) in float32."""
    return x_H.astype(mx.float32).reshape(1, -1, 1, 1)


def _fold(
    scores_BHLC: mx.array, seen: Seen | None, top_BHL1: mx.array, total_BHL1: mx.array
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Carry a softmax on: exp(scores − new top), the new top and total, and exp(top − new top)."""
    scores_BHLC = _hidden(scores_BHLC, seen)
    new_top_BHL1 = mx.maximum(top_BHL1, scores_BHLC.max(axis=-1, keepdims=True))
    weights_BHLC, shrink_BHL1 = mx.exp(scores_BHLC - new_top_BHL1), mx.exp(top_BHL1 - new_top_BHL1)
    new_total_BHL1 = total_BHL1 * shrink_BHL1 + weights_BHLC.sum(axis=-1, keepdims=True)
    return weights_BHLC, new_top_BHL1, new_total_BHL1, shrink_BHL1


def _fold_backward(
    scores_BHLC: mx.array, seen: Seen | None, log_sums_BHL1: mx.array, d_BHLC: mx.array, deltas_BHL1: mx.array
) -> tuple[mx.array, mx.array]:
    """The probabilities P = exp(scores − log-sums), and P ∘ (d − deltas)."""
    p_BHLC = mx.exp(_hidden(scores_BHLC, seen) - log_sums_BHL1)
    return p_BHLC, p_BHLC * (d_BHLC - deltas_BHL1)


def _hidden(scores_BHLC: mx.array, seen: Seen | None) -> mx.array:
    """The scores in float32, −∞ where a query does not see a key."""
    scores_BHLC = scores_BHLC.astype(mx.float32)
    return scores_BHLC if seen is None else mx.where(mx.array(seen), scores_BHLC, -mx.inf)
