"""A conversion as the command makes it: with a device and problems where `--quantize auto` measures."""

from mlxmath.config.load import Resolved
from mlxmath.config.quantization import auto_bits
from mlxmath.errors import InputError
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.manifest import Manifest


def convert_model(settings: Resolved) -> Manifest:
    """Make sure that the model folder holds exactly what the settings describe.

    Raises:
        InputError: problems are given and nothing is measured on them; see `ensure_model`.
        MlxmathError: see `ensure_model`.
    """
    config = settings.config
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
