"""A conversion as the command makes it: with a device and problems where `--quantize auto` measures."""

from dataclasses import replace

from mlxmath.config.load import Resolved
from mlxmath.config.quantization import auto_bits
from mlxmath.config.section import DEMO
from mlxmath.errors import InputError
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.manifest import Manifest


def with_problems(settings: Resolved) -> Resolved:
    """Of the bundled model the bits are chosen on the problems that come with it, unless others are named."""
    config = settings.config
    if config.model.model != DEMO or config.data.sources or settings.origin["data.dataset"] != "default":
        return settings
    data = config.data.model_copy(update={"dataset": DEMO})
    return replace(settings, config=config.model_copy(update={"data": data}))


def convert_model(settings: Resolved) -> Manifest:
    """Make sure that the model folder holds exactly what the settings, `with_problems`, describe.

    Raises:
        InputError: problems are given and nothing is measured on them; see `ensure_model`.
        MlxmathError: see `ensure_model`.
    """
    config = with_problems(settings).config
    if auto_bits(config.model.quantize) is None:
        for name, origin in settings.origin.items():
            if name.startswith("data.") and origin in ("option", "argument"):
                raise InputError(
                    f"{settings.where(name)}: problems are for --quantize auto:4.5, which measures on them; leave it "
                    "out."
                )
        return ensure_model(config.model, exact=True)

    from mlxmath.data.load import load_rows
    from mlxmath.runtime.device import opened_backend
    from mlxmath.training.bits import chooser

    with opened_backend(config.runtime, seed=0) as (_, device):
        return ensure_model(config.model, exact=True, choose=chooser(config, device, load_rows))
