"""Which model is meant where nobody has said it: the one that the model folder holds."""

from pathlib import Path
from typing import Any

from mlxmath.config.load import Layer, Resolved, resolve
from mlxmath.config.quantization import auto_bits
from mlxmath.config.section import DEMO
from mlxmath.errors import MlxmathError
from mlxmath.runtime.console import say
from mlxmath.weights.manifest import FILE_NAME, Manifest, read_manifest
from mlxmath.weights.packing import AFFINE, Packing


def with_held_model(settings: Resolved, folder: Path | None = None) -> Resolved:
    """The settings of a run; where no model is asked for, with the one in `model.mlx_path` instead of the default.

    Its revision, type and quantization come with it, as far as these are not asked for. So adapters go on with the base
    that they belong to, nothing is fetched, and what is recorded repeats the run. The demo's, which another model
    replaces unasked, counts only where adapters go on. A damaged folder changes nothing: `ensure_model` refuses it.

    Args:
        settings: as they were given.
        folder: in which a relative `model.mlx_path` lies, for a form, which names the model folder itself where that
            was made from another one; None: the working directory, for a run, which says what is meant.
    """
    if settings.origin["model.model"] != "default":
        return settings
    model, training = settings.config.model, settings.config.training
    place = (folder or Path()) / Path(model.mlx_path).expanduser()
    try:
        if not (place / FILE_NAME).is_file():
            return settings
        manifest = read_manifest(place)
    except (OSError, MlxmathError):
        return settings
    if manifest.source == DEMO and not (training.init_adapter or training.resume):
        return settings
    held: dict[str, Any] = {"model": manifest.source, "dtype": manifest.requested_dtype}
    held["revision"] = manifest.requested_revision
    if all(settings.origin[f"model.{name}"] == "default" for name in ("quantize", "group_size")):
        held |= _packed(manifest)
    if folder is not None and Path(manifest.source).is_absolute():  # elsewhere, perhaps, and perhaps no more
        held = {"model": model.mlx_path}
    values = {f"model.{name}": value for name, value in held.items() if value is not None}
    if folder is None:
        say(f"no --model is given: {model.mlx_path} holds {manifest.describe()}, which is used")
    of_folder = Layer(f"{model.mlx_path}/{FILE_NAME}", values)
    return resolve([of_folder, *(layer for name, layer in settings.layers.items() if name != "default")])


def _packed(manifest: Manifest) -> dict[str, Any]:
    """The settings that packed a model's weights; none of one whose source was packed already."""
    if manifest.quantization is None or manifest.quantization_of_source:
        return {}
    form = Packing.of(manifest.quantization)
    if auto_bits(manifest.quantize) is not None or form.mode != AFFINE:
        return {"quantize": manifest.quantize or form.mode}
    return {"quantize": form.bits, "group_size": form.group_size}
