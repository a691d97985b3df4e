"""What a device's errors mean, and what to do about them."""

from typing import NamedTuple


class Trouble(NamedTuple):
    """A kind of error that another batch size, or another moment, may not meet."""

    what: str
    remedy: str
    """What to do where not even a single row is computed."""
    signs: tuple[str, ...]
    """Words of MLX's, CUDA's or NumPy's error, in small letters."""


SHORT_OF_MEMORY = Trouble(
    "out of memory",
    "Use --grad-checkpoint 1, a smaller --max-seq-len, or --quantize 4.",
    ("unable to allocate", "out of memory", "outofmemory", "attempting to allocate", "insufficient memory"),
)
TROUBLES = (
    Trouble(
        "macOS ended the GPU's work because it kept the display waiting",
        "Use a smaller --max-batch-tokens or --max-seq-len, or let the display sleep, and go on with --resume.",
        ("impactinginteractivity", "impacting interactivity", "gpu timeout error"),
    ),
    Trouble(
        "Metal holds as many arrays as it can, whatever their size",
        "Use a smaller --max-seq-len or fewer --num-generations, and go on with --resume.",
        ("[metal::malloc] resource limit",),
    ),
    SHORT_OF_MEMORY,
)


def trouble(error: BaseException) -> Trouble | None:
    """What kind of trouble an error is; None if it is of another kind."""
    text = str(error).lower()
    if isinstance(error, MemoryError):
        return SHORT_OF_MEMORY
    return next((each for each in TROUBLES if any(sign in text for sign in each.signs)), None)
