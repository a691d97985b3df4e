"""How far a student's distribution of the next token is from a teacher's, without all logits of either.

Shapes: N target positions, D hidden width, V vocabulary, X either of them (see `LossHead`), Y the teacher's,
C positions in a chunk; K of a teacher's most likely tokens, J = K + 1 with all others together.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from mlxmath.models.kernels.cpu import view
from mlxmath.models.kernels.portable import LEAST_PROBABILITY, Kernels, log_sum_exp
from mlxmath.models.linear_ce import FusedHead, LossHead
from mlxmath.models.memory import HEAD_CHUNK_BYTES

CHUNK_BYTES = HEAD_CHUNK_BYTES
_OfChunk = tuple[mx.array, mx.array, mx.array]
"""Divergence and entropy of each position (C,), and the gradient of the first logits (C, V)."""


class Divergences(NamedTuple):
    """Of each position, in float32."""

    divergences_N: mx.array
    """Nats; differentiable in the student's outputs."""
    entropies_N: mx.array
    """Of the student's distribution, in nats; not differentiable."""


def divergences(
    outputs_NX: mx.array, head: LossHead, teacher_NY: mx.array, teacher: LossHead, *, beta: float, temperature: float
) -> Divergences:
    """The generalized Jensen-Shannon divergence of each position, over the ids that both vocabularies have.

    See `Kernels.divergence_gradient` for the formula. One pass: each chunk's logits of student and teacher give its
    divergence and the gradient of its outputs, and are forgotten; the backward pass only scales (N, X).

    Args:
        outputs_NX: the student's, as `head` takes them.
        head: the student's.
        teacher_NY: the teacher's outputs; no gradient goes there.
        teacher: the teacher's head.
        beta: 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher).
        temperature: that both logits are divided by.
    """
    kernels = _kernels(head)
    size = min(_vocabulary(head, outputs_NX), _vocabulary(teacher, teacher_NY))

    def of_chunk(rows: slice, part_CX: mx.array) -> _OfChunk:
        (own_CV, cap), (other_CV, other_cap) = _logits(head, part_CX, size), _logits(teacher, teacher_NY[rows], size)
        return kernels.divergence_gradient(own_CV, other_CV, beta, temperature, cap, other_cap)

    return _in_one_pass(outputs_NX, head, 2 * size, of_chunk)


def _in_one_pass(
    outputs_NX: mx.array, head: LossHead, numbers: int, of_chunk: Callable[[slice, mx.array], _OfChunk]
) -> Divergences:
    """What `of_chunk` finds, chunk by chunk, of which a position takes so many numbers; differentiable."""

    @mx.custom_function
    def found_and_gradient(outputs: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        return _in_chunks(outputs, head, numbers, of_chunk)

    @found_and_gradient.vjp
    def found_and_gradient_vjp(_: Any, cotangents: Any, outputs: Any) -> mx.array:
        return (cotangents[0][:, None] * outputs[2]).astype(outputs[2].dtype)

    divergences_N, entropies_N, _ = found_and_gradient(outputs_NX)
    return Divergences(divergences_N, mx.stop_gradient(entropies_N))


def _in_chunks(
    outputs_NX: mx.array, head: LossHead, numbers: int, of_chunk: Callable[[slice, mx.array], _OfChunk]
) -> tuple[mx.array, mx.array, mx.array]:
    """Divergence and entropy of each position (N,), and the gradient of the sum of the divergences (N, X)."""
    kernels, chunk = _kernels(head), max(1, CHUNK_BYTES // (4 * numbers))
    if not kernels.compiles and outputs_NX.dtype == mx.float32:
        outputs_NX = mx.array(view(outputs_NX))  # see `_one_pass` in `linear_ce.py`
    found: list[tuple[mx.array, mx.array]] = []
    gradients: list[mx.array] = []
    for start in range(0, outputs_NX.shape[0], chunk):
        rows = slice(start, start + chunk)
        part = outputs_NX[rows]
        if gradients:  # one chunk after the other, not all at once
            (part,) = mx.depends([part], [gradients[-1]])
        first_C, second_C, d_CV = of_chunk(rows, part)
        gradients.append(_to_outputs(head, d_CV, part))
        found.append((first_C, second_C))
        if not kernels.compiles:
            mx.eval(found[-1], gradients[-1])
        del d_CV  # before the next chunk's logits are made
    first_N, second_N = (mx.concatenate(parts) for parts in zip(*found, strict=True))
    return first_N, second_N, mx.concatenate(gradients)


def top_logprobs(
    outputs_NX: mx.array, head: LossHead, count: int, temperature: float, *, most: int | None
) -> tuple[mx.array, mx.array]:
    """The ids (N, K) of a model's most likely tokens, and their log-probabilities and that of all others (N, J).

    Args:
        outputs_NX: the model's.
        head: its head.
        count: K.
        temperature: that logits are divided by.
        most: ids below this alone (None: any).
    """
    size = min(most or _vocabulary(head, outputs_NX), _vocabulary(head, outputs_NX))
    chunk = max(1, CHUNK_BYTES // (8 * size))
    found: list[tuple[mx.array, mx.array]] = []
    for start in range(0, outputs_NX.shape[0], chunk):
        logits_CV = _scaled(*_logits(head, outputs_NX[start : start + chunk], size), temperature)
        ids_CK = mx.argpartition(-logits_CV, min(count, size) - 1, axis=-1)[:, :count]
        logprobs_CK = mx.take_along_axis(logits_CV, ids_CK, axis=-1) - log_sum_exp(logits_CV, keepdims=True)
        rest_C1 = _rest(mx.put_along_axis(mx.softmax(logits_CV, axis=-1), ids_CK, mx.zeros(ids_CK.shape), axis=-1))
        found.append((ids_CK.astype(mx.int32), mx.concatenate([logprobs_CK, mx.log(rest_C1)], axis=-1)))
        mx.eval(found[-1])
    ids_NK, logprobs_NJ = (mx.concatenate(parts) for parts in zip(*found, strict=True))
    return ids_NK, logprobs_NJ


def top_divergences(
    outputs_NX: mx.array, head: LossHead, ids_NK: mx.array, logprobs_NJ: mx.array, *, beta: float, temperature: float
) -> Divergences:
    """`divergences` where of the teacher only K tokens and the rest's mass are known: over these K + 1 outcomes.

    It is at most that over the whole vocabulary, and the same where K is all of it. The entropy is of the outcomes too.
    With the student's probabilities p and what it gives the rest, r, the gradient of a logit of the rest is p / r
    times that of the outcome.
    """
    kernels, size = _kernels(head), _vocabulary(head, outputs_NX)

    def of_chunk(rows: slice, part_CX: mx.array) -> _OfChunk:
        ids_CK = ids_NK[rows]
        logits_CV, cap = _logits(head, part_CX, size)
        capped_CV = _scaled(logits_CV, cap, 1.0)
        slope_CV = None if cap is None else 1 - mx.square(capped_CV / cap)
        z_CV = capped_CV / temperature
        z_CK = mx.take_along_axis(z_CV, ids_CK, axis=-1)
        if not kernels.compiles:
            mx.eval(z_CK, slope_CV)  # before the kernel writes over the logits
        ones_C = mx.ones(z_CK.shape[:1])
        losses_C, d_CV = kernels.softmax_gradient(z_CV, ids_CK[:, 0], ones_C, None)  # p but at the first id
        p_CV = mx.put_along_axis(d_CV, ids_CK, mx.zeros(ids_CK.shape), axis=-1)
        rest_C1 = _rest(p_CV)
        logprobs_CK = z_CK - losses_C[:, None] - z_CK[:, :1]
        own_CJ = mx.concatenate([logprobs_CK, mx.log(rest_C1)], axis=-1)
        first_C, second_C, d_CJ = kernels.divergence_gradient(own_CJ, logprobs_NJ[rows] * 1, beta, 1.0)
        d_CV = mx.put_along_axis(p_CV * (d_CJ[:, -1:] / rest_C1), ids_CK, d_CJ[:, :-1], axis=-1) / temperature
        return first_C, second_C, d_CV if slope_CV is None else d_CV * slope_CV

    return _in_one_pass(outputs_NX, head, 3 * size, of_chunk)


def _scaled(logits_CV: mx.array, cap: float | None, temperature: float) -> mx.array:
    """In float32, capped and divided."""
    logits_CV = logits_CV.astype(mx.float32)
    if cap is not None:
        logits_CV = cap * mx.tanh(logits_CV / cap)
    return logits_CV / temperature


def _rest(p_CV: mx.array) -> mx.array:
    """(C, 1) what is left of probabilities, and never quite nothing."""
    return mx.maximum(p_CV.sum(axis=-1, keepdims=True), LEAST_PROBABILITY)


def _kernels(head: LossHead) -> Kernels:
    return head.kernels if isinstance(head, FusedHead) else Kernels()


def _vocabulary(head: LossHead, outputs_NX: mx.array) -> int:
    return head.head.vocab_size if isinstance(head, FusedHead) else int(outputs_NX.shape[-1])


def _logits(head: LossHead, outputs_CX: mx.array, size: int) -> tuple[mx.array, float | None]:
    """The first `size` logits of each position (C, V), and the soft cap that they have not got yet."""
    if isinstance(head, FusedHead):
        logits_CV, cap = head.head.logits(outputs_CX), head.head.soft_cap
    else:
        logits_CV, cap = outputs_CX * 1, None  # what a kernel may overwrite
    return (logits_CV if logits_CV.shape[-1] == size else mx.contiguous(logits_CV[:, :size])), cap


def _to_outputs(head: LossHead, d_CV: mx.array, outputs_CX: mx.array) -> mx.array:
    """The gradient of outputs (C, X), given that of their first logits."""
    missing = _vocabulary(head, outputs_CX) - d_CV.shape[-1]
    d_CV = (mx.pad(d_CV, ((0, 0), (0, missing))) if missing else d_CV).astype(outputs_CX.dtype)
    return head.head.hidden_gradient(d_CV) if isinstance(head, FusedHead) else d_CV
