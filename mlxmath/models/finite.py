"""Weights that no model can have: not a number, infinite, or so large that products of them overflow."""

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from mlxmath.errors import MlxmathError

LARGEST = 1e10
"""Trained weights are below some hundreds; a square of 1e19 is no float32 any more."""
_AT_A_TIME = 1 << 24
"""Numbers that are looked at together, so that little memory is taken."""
_SHOWN = 5


def check_finite(source: Path, arrays: Mapping[str, mx.array]) -> None:
    """Refuse weights of which nothing sensible can come.

    Args:
        source: the file or folder that they are from.
        arrays: by name; arrays of whole numbers (packed weights) are passed over.

    Raises:
        MlxmathError: the arrays that hold NaN, an infinity or an absurd value are named, each with an example.
    """
    wrong = [f"{name} holds {found}" for name, array in arrays.items() if (found := _absurd(array)) is not None]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more arrays are like that" if len(wrong) > _SHOWN else ""
        raise MlxmathError(
            f"{source} is damaged or its training diverged: {', '.join(wrong[:_SHOWN])}{more}. Use another copy, or an "
            "earlier checkpoint."
        )


def _absurd(array: mx.array) -> float | None:
    """A value that a weight cannot have, if there is one."""
    if not mx.issubdtype(array.dtype, mx.floating):
        return None
    flat = array.reshape(-1)
    for start in range(0, flat.size, _AT_A_TIME):
        part = flat[start : start + _AT_A_TIME]
        is_wrong = ~(mx.abs(part) <= LARGEST)  # so that NaN is wrong too
        if is_wrong.any():
            value: float = part[mx.argmax(is_wrong)].item()
            return value
    return None
