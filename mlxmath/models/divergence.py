"""How far a student's distribution of the next token is from a teacher's, without all logits of either.

Shapes: N target positions, D hidden width, V vocabulary, X either of them (see `LossHead`), Y the teacher's,
C positions in a chunk.
"""

from typing import Any, NamedTuple

import mlx.core as mx

from mlxmath.models.kernels.cpu import view
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.linear_ce import FusedHead, LossHead
from mlxmath.models.memory import HEAD_CHUNK_BYTES

CHUNK_BYTES = HEAD_CHUNK_BYTES


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

    @mx.custom_function
    def found_and_gradient(outputs: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        return _one_pass(outputs, head, teacher_NY, teacher, beta, temperature)

    @found_and_gradient.vjp
    def found_and_gradient_vjp(_: Any, cotangents: Any, outputs: Any) -> mx.array:
        return (cotangents[0][:, None] * outputs[2]).astype(outputs[2].dtype)

    divergences_N, entropies_N, _ = found_and_gradient(outputs_NX)
    return Divergences(divergences_N, mx.stop_gradient(entropies_N))


def _one_pass(
    outputs_NX: mx.array, head: LossHead, teacher_NY: mx.array, teacher: LossHead, beta: float, temperature: float
) -> tuple[mx.array, mx.array, mx.array]:
    """Divergence and entropy of each position (N,), and the gradient of the sum of the divergences (N, X)."""
    kernels = head.kernels if isinstance(head, FusedHead) else Kernels()
    size = min(_vocabulary(head, outputs_NX), _vocabulary(teacher, teacher_NY))
    chunk = max(1, CHUNK_BYTES // (8 * size))  # of both
    if not kernels.compiles and outputs_NX.dtype == mx.float32:
        outputs_NX = mx.array(view(outputs_NX))  # see `_one_pass` in `linear_ce.py`
    found: list[tuple[mx.array, mx.array]] = []
    gradients: list[mx.array] = []
    for start in range(0, outputs_NX.shape[0], chunk):
        rows = slice(start, start + chunk)
        part = outputs_NX[rows]
        if gradients:  # one chunk after the other, not all at once
            (part,) = mx.depends([part], [gradients[-1]])
        (own_CV, cap), (other_CV, other_cap) = _logits(head, part, size), _logits(teacher, teacher_NY[rows], size)
        *of_rows, d_CV = kernels.divergence_gradient(own_CV, other_CV, beta, temperature, cap, other_cap)
        gradients.append(_to_outputs(head, d_CV, part))
        found.append((of_rows[0], of_rows[1]))
        if not kernels.compiles:
            mx.eval(found[-1], gradients[-1])
        del own_CV, other_CV, d_CV  # before the next chunk's logits are made
    divergences_N, entropies_N = (mx.concatenate(parts) for parts in zip(*found, strict=True))
    return divergences_N, entropies_N, mx.concatenate(gradients)


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
