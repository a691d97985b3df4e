"""The divergence of a student from a teacher and its gradient, in NumPy; see `Kernels.divergence_gradient`.

Shapes: R rows, V vocabulary.
"""

import numpy as np
from numpy.typing import NDArray

from mlxmath.models.kernels.portable import LEAST_PROBABILITY

Floats = NDArray[np.float32]


def divergence_gradient(
    own: Floats, other: Floats, beta: float, temperature: float, caps: tuple[float | None, float | None],
    divergences: Floats, entropies: Floats,
) -> None:  # fmt: skip
    """Logits (R, V) of both, of which `own` becomes the gradient, and `other` nothing of use; (R,) are written."""
    p, slope = _log_softmax(own, temperature, caps[0])
    q, _ = _log_softmax(other, temperature, caps[1])
    entropies[:] = -_sums(p, own)
    if beta == 0:
        divergences[:] = _sums(q, other - own)
        np.subtract(p, q, out=own)
    else:
        if beta == 1:
            own -= other
        else:
            mixture = (1 - beta) * p + beta * q
            np.maximum(mixture, LEAST_PROBABILITY, out=mixture)
            np.log(mixture, out=mixture)
            own -= mixture
            other -= mixture
        from_student = _sums(p, own)
        divergences[:] = from_student if beta == 1 else (1 - beta) * from_student + beta * _sums(q, other)
        own -= from_student[:, None]
        own *= p
        if beta != 1:
            own *= np.float32(1 - beta)
    if temperature != 1:
        own /= np.float32(temperature)
    if slope is not None:
        own *= slope


def _log_softmax(x: Floats, temperature: float, cap: float | None) -> tuple[Floats, Floats | None]:
    """`x` becomes log-probabilities; the probabilities, and the cap's derivative."""
    slope = None
    if cap is not None:
        x /= np.float32(cap)
        np.tanh(x, out=x)
        slope = 1 - np.square(x)
        x *= np.float32(cap)
    if temperature != 1:
        x /= np.float32(temperature)
    x -= x.max(axis=1, keepdims=True)
    p = np.exp(x)
    total = p.sum(axis=1, keepdims=True, dtype=np.float64)
    x -= np.log(total).astype(np.float32)
    p /= total.astype(np.float32)
    return p, slope


def _sums(weights: Floats, values: Floats) -> Floats:
    """(R,) Σ weight · value, added up in pairs."""
    found: Floats = (weights * values).sum(axis=1)
    return found
