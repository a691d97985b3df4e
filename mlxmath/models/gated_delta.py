"""The gated delta rule of linear attention (Qwen3-Next, Qwen 3.5, Kimi Linear) in chunks of tokens.

    S_t = S_{t-1} diag(α_t) (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ,    y_t = S_t q_t

(Yang et al. 2024, arXiv:2412.06464; with a decay α of each channel: Kimi Team 2025, arXiv:2510.26692). mlx_lm's models
go through it token by token where they train, which keeps a state for every token. Within a chunk that begins with the
state Hᵀ = S, what its tokens write, U, is the solution of a triangular system, and all else is matrix products:

    (I + A) U = β (V − (K ⊙ P) H)          A_ij = β_i Σ_d k_id k_jd D_ijd for j < i
    Y = (Q ⊙ P) H + B U                    B_ij = Σ_d q_id k_jd D_ijd for j <= i
    H' = γ ⊙ H + (K ⊙ T)ᵀ U

D_ij is the product of the decays after j up to i, P_i from the chunk's begin up to i, T_i after i to its end, γ of all.
Each is made of products of decays alone, by halves: nothing is divided, so that it may underflow, and no exp is taken.

Shapes: B rows, L positions, K key heads, H value heads (H = K · R), D width of a key, E width of a value, N chunks, C
positions of a chunk.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from mlxmath.models.calls import ERRORS
from mlxmath.models.trust import Outcome, cotangent_of, disagreement
from mlxmath.runtime.console import warn

CHUNK = 32
"""Positions; of 64 the triangular system would be a third of all work on a CPU."""
_SEGMENT = 4
"""Chunks that are computed again together in the backward pass, so that a state is kept for each such many alone."""
_HOME, _RULE = "mlx_lm.models.gated_delta", "gated_delta_ops"

Rule = Callable[..., tuple[mx.array, mx.array]]


def use_chunks() -> None:
    """Let mlx_lm's models compute the rule in chunks wherever they go through it token by token.

    They do so in training, and where there is no Metal also to read a prompt. Only if values and gradients of both
    agree on a few tokens. mlx_lm's kernel for Metal has no gradient; that of `mx.fast` adds gradients up in no fixed
    order, so that no run could be resumed bit for bit.
    """
    home = sys.modules.get(_HOME)  # imported by the models that need it
    original = getattr(home, _RULE, None)
    if original is None or hasattr(original, "in_chunks"):
        return
    if reason := _disagreement(original):
        warn(f"linear attention is computed token by token, since in chunks {reason}")
        return

    @functools.wraps(original)
    def rule(q_BLKD: mx.array, *rest: Any, **more: Any) -> Any:
        return (original if q_BLKD.shape[1] == 1 else gated_delta)(q_BLKD, *rest, **more)

    rule.in_chunks = True  # type: ignore[attr-defined]
    setattr(home, _RULE, rule)


def _disagreement(original: Rule) -> str | None:
    """How the rule of chunks differs from `original`; None if it does not."""
    length, width, mask_BL = CHUNK + 3, 8, mx.arange(CHUNK + 3)[None] != 5
    shapes = ((1, length, 1, width), (1, length, 1, width), (1, length, 2, width), (1, length, 2), (1, 2, width, width))
    q, k, v, beta, state = (mx.random.normal(shape, key=mx.random.key(i)) for i, shape in enumerate(shapes))

    def outcome(rule: Rule, *arrays: mx.array) -> Outcome:
        def total(*arrays: mx.array) -> tuple[mx.array, mx.array]:
            output_BLHE, after = rule(*arrays, mask_BL)
            found = mx.concatenate([(output_BLHE * mask_BL[..., None, None]).reshape(-1), after.reshape(-1)])
            return (found * cotangent_of(found)).sum(), found

        (_, found), gradients = mx.value_and_grad(total, argnums=range(len(arrays)))(*arrays)
        return found, {str(i): gradient for i, gradient in enumerate(gradients)}

    try:
        for channels in ((), (width,)):
            decay = mx.sigmoid(2 + mx.random.normal((1, length, 2, *channels), key=mx.random.key(9)))
            arrays = q / width, k / 4, v, decay, mx.sigmoid(beta), state
            if reason := disagreement(outcome(gated_delta, *arrays), outcome(original, *arrays)):
                return reason
    except ERRORS as error:
        return f"it is called otherwise ({error})"
    return None


def gated_delta(
    q_BLKD: mx.array,
    k_BLKD: mx.array,
    v_BLHE: mx.array,
    decay: mx.array,
    beta_BLH: mx.array,
    state_BHED: mx.array | None = None,
    mask_BL: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Outputs (B, L, H, E) in the type of `q_BLKD`, and the state after the last position (B, H, E, D) in float32.

    Args:
        q_BLKD: scaled queries.
        k_BLKD: keys, of length one or less.
        v_BLHE: values.
        decay: α, between 0 and 1: (B, L, H), or (B, L, H, D) of each channel.
        beta_BLH: what share of a value is written.
        state_BHED: before the first position (None: zeros).
        mask_BL: where it is False, nothing is written and nothing decays (None: nowhere).
    """
    rows, length, num_keys, width = k_BLKD.shape
    heads, value_width = v_BLHE.shape[-2:]
    repeats = heads // num_keys
    if mask_BL is not None:
        beta_BLH = mx.where(mask_BL[..., None], beta_BLH, 0)
        decay = mx.where(mx.expand_dims(mask_BL, tuple(range(2, decay.ndim))), decay, 1)
    state = mx.zeros((rows, heads, width, value_width)) if state_BHED is None else state_BHED.swapaxes(-1, -2)
    state = state.astype(mx.float32).reshape(rows, num_keys, repeats, width, value_width)
    decay = decay.reshape(rows, length, num_keys, repeats, -1)
    beta = beta_BLH.reshape(rows, length, num_keys, repeats, 1)
    inputs = (q_BLKD[:, :, :, None], k_BLKD[:, :, :, None], v_BLHE.reshape(*beta.shape[:-1], -1), decay, beta)
    outputs = []
    for part in zip(*(_parts(array, CHUNK * _SEGMENT) for array in inputs), strict=True):
        output, state = _recomputed(*part, state)
        outputs.append(output)
    output = outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=1)
    return (
        output.reshape(v_BLHE.shape).astype(q_BLKD.dtype),
        state.reshape(rows, heads, width, value_width).swapaxes(-1, -2),
    )


def _parts(x: mx.array, size: int) -> list[mx.array]:
    """(B, L, …) in parts of `size` positions. By eights: of a split in more than ten, MLX holds what it need not."""
    step, length = size, x.shape[1]
    while 8 * step < length:
        step *= 8
    if step >= length:
        return [x]
    return [part for piece in mx.split(x, list(range(step, length, step)), axis=1) for part in _parts(piece, size)]


def _segment(
    q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """Of (B, L, K, R or 1, …) and the state (B, K, R, D, E): outputs (B, L, K, R, E), and the state afterwards."""
    length = v.shape[1]
    size = min(CHUNK, 1 << (length - 1).bit_length())
    q, k, v, beta = (_chunks(array, size, 0) for array in (q, k, v, beta))
    decay = _chunks(decay, size, 1)  # (N, B, K, R, C, 1 or D), as all of them
    halves = list(_by_halves(decay))
    _, before, after = halves.pop()
    if decay.shape[-1] == 1:
        one = mx.ones((size, 1))
        between = _decayed(one, one, halves)
        k_k, q_k = (k @ k.swapaxes(-1, -2)) * between, (q @ k.swapaxes(-1, -2)) * (between + mx.eye(size))
    else:
        k_k = _decayed(k, k, halves)
        q_k = _decayed(q, k, halves) + mx.eye(size) * (q * k).sum(-1, keepdims=True)
    solved = _inverse(beta * k_k) * beta.swapaxes(-1, -2)
    whole = before[..., -1:, :].swapaxes(-1, -2)
    read = mx.concatenate([k, q], axis=-2) * mx.concatenate([before, before], axis=-2)
    outputs = []
    for chunk in zip(*map(_each, (read, v, solved, q_k, k * after, whole)), strict=True):
        read_n, v_n, solved_n, q_k_n, k_n, whole_n = chunk
        kept, output = mx.split(read_n @ state, 2, axis=-2)
        written = solved_n @ (v_n - kept)
        outputs.append(output + q_k_n @ written)
        state = whole_n * state + k_n.swapaxes(-1, -2) @ written
    output = mx.stack(outputs, axis=1)  # (B, N, K, R, C, E)
    output = mx.moveaxis(output, 4, 2)
    return output.reshape(output.shape[0], -1, *output.shape[3:])[:, :length], state


@mx.custom_function
def _recomputed(*arrays: mx.array) -> tuple[mx.array, mx.array]:
    """`_segment`, of which nothing but its arguments is kept for the backward pass."""
    return _segment(*arrays)


@_recomputed.vjp
def _recomputed_vjp(primals: Any, cotangents: Any, _: Any) -> tuple[mx.array, ...]:
    """After its cotangents, and all before the segment's before: `mx.checkpoint` would hold all segments at once."""
    _, (*gradients, d_state) = mx.vjp(_segment, mx.depends(list(primals), list(cotangents)), list(cotangents))
    return *gradients, *mx.depends([d_state], gradients)


def _chunks(x: mx.array, size: int, filling: float) -> mx.array:
    """(B, L, K, R, X) as (N, B, K, R, C, X) in float32, the last chunk filled up."""
    rows, length, *heads, width = x.shape
    missing = -length % size
    if missing:
        x = mx.pad(x, [(0, 0), (0, missing), (0, 0), (0, 0), (0, 0)], constant_values=filling)
    x = x.astype(mx.float32).reshape(rows, -1, size, *heads, width)
    return mx.contiguous(x.transpose(1, 0, 3, 4, 2, 5))


def _each(x_NX: mx.array) -> list[mx.array]:
    """Its N arrays; the gradient of an index would be a scatter."""
    return [x.squeeze(0) for x in mx.split(x_NX, len(x_NX))]


def _by_halves(decay: mx.array) -> Iterator[tuple[int, mx.array, mx.array]]:
    """For s = 1, 2, 4, … C: the products of the decays up to each position, and after it, within its s positions."""
    size, width = decay.shape[-2:]
    before, after, s = decay, mx.ones_like(decay), 1
    while True:
        yield s, before, after
        if s == size:
            return
        first, second = mx.split(before.reshape(*decay.shape[:-2], -1, 2, s, width), 2, axis=-3)
        first_after, second_after = mx.split(after.reshape(*decay.shape[:-2], -1, 2, s, width), 2, axis=-3)
        before = mx.concatenate([first, second * first[..., -1:, :]], axis=-3).reshape(decay.shape)
        after = mx.concatenate([first_after * second[..., -1:, :], second_after], axis=-3).reshape(decay.shape)
        s *= 2


def _decayed(x: mx.array, y: mx.array, halves: list[tuple[int, mx.array, mx.array]]) -> mx.array:
    """(…, C, C): Σ_d x_id y_jd D_ijd for j < i, else 0.

    Each pair is in two halves of some 2 s positions: D_ij is what is after j in the first, times up to i in the second.
    """
    parts = [
        _second_by_first(x.shape[-2], s) * ((x * before) @ (y * after).swapaxes(-1, -2)) for s, before, after in halves
    ]
    return sum(parts[1:], parts[0]) if parts else mx.zeros((1, 1))


def _second_by_first(size: int, s: int) -> mx.array:
    """(C, C): 1 where i is in the second half and j in the first of the same 2 s positions, else 0."""
    i, j = np.arange(size)[:, None], np.arange(size)
    return mx.array(((i // (2 * s) == j // (2 * s)) & (i // s > j // s)).astype(np.float32))


@mx.custom_function
def _inverse(a: mx.array) -> mx.array:
    """(I + A)⁻¹ of strictly lower triangular A (…, C, C).

    By halves: the inverse of [[X, 0], [Z, Y]] is [[X⁻¹, 0], [−Y⁻¹ Z X⁻¹, Y⁻¹]]. Powers of A would be shorter, but are
    huge where keys are alike, and what is left of them is wrong.
    """
    size = a.shape[-1]
    inverse = mx.eye(size) - a * _second_by_first(size, 1) if size > 1 else mx.ones_like(a)
    s = 2
    while s < size:
        inverse = inverse - inverse @ (a * _second_by_first(size, s)) @ inverse
        s *= 2
    return inverse


@_inverse.vjp
def _inverse_vjp(_: Any, cotangent: mx.array, inverse: mx.array) -> mx.array:
    transposed = inverse.swapaxes(-1, -2)
    return -(transposed @ cotangent @ transposed)
