"""What `--quantize` can say."""

import re

_FEWEST_BITS, _MOST_BITS = 2.25, 9.0
"""A weight, with the scales and biases of the largest and of the smallest groups, in 16 bits."""


def quantization(value: object) -> object:
    """What `--quantize` says: bits, a name of MLX's float forms, or auto and bits a weight.

    Raises:
        ValueError: it is none of these.
    """
    if value is None:
        return None
    text = str(value).strip().lower()
    if text in ("2", "3", "4", "5", "6", "8") and not isinstance(value, bool | float):
        return int(text)
    bits = auto_bits(text)
    if text in ("mxfp4", "nvfp4", "mxfp8") or (bits is not None and _FEWEST_BITS <= bits <= _MOST_BITS):
        return text
    raise ValueError(
        "expected 2, 3, 4, 5, 6, 8, mxfp4, nvfp4, mxfp8 or, with bits a weight from "
        f"{_FEWEST_BITS} to {_MOST_BITS:g}, auto:4.5"
    )


def auto_bits(quantize: object) -> float | None:
    """Bits a weight that `--quantize auto:…` asks for; None where it says something else."""
    match = re.fullmatch(r"auto:(\d{1,2}(\.\d{1,4})?)", str(quantize))
    return float(match[1]) if match else None
