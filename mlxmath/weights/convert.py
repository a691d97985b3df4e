"""Decides whether a converted model can be used again, must be made, or must not be touched."""

from collections.abc import Callable
from pathlib import Path

from mlxmath.config.quantization import auto_bits
from mlxmath.config.schema import ModelConfig
from mlxmath.config.section import DEMO
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import say, warn
from mlxmath.runtime.files import read_json, real, remove_leftovers, temporary_beside
from mlxmath.runtime.locks import making
from mlxmath.weights.build import build_model
from mlxmath.weights.configuration import differing, read_config
from mlxmath.weights.dtypes import prevailing
from mlxmath.weights.hub import DEMO_FOLDER, fetch, is_source, open_weights
from mlxmath.weights.layout import plan_layout
from mlxmath.weights.manifest import (
    FILE_NAME,
    FileRecord,
    Manifest,
    fingerprint,
    fingerprint_of_files,
    read_manifest,
    verify,
    versions,
)
from mlxmath.weights.packing import Chosen, Packing, asked_for, held_otherwise
from mlxmath.weights.quantized import stored
from mlxmath.weights.safetensor import digest_file

Chooser = Callable[[Path, float], Chosen]
"""Given a converted model that is not quantized, and bits a weight: a form for each layer."""


def ensure_model(
    config: ModelConfig, *, exact: bool = False, choose: Chooser | None = None,
    before: Callable[[], object] = lambda: None,
) -> Manifest:  # fmt: skip
    """Make sure that `config.mlx_path` holds the model that `config` describes.

    A whole folder made from the same source with the same settings is used again, without the network. A damaged one
    is made anew. One made from something else is replaced only with `config.overwrite`, or if it is the demo's. What
    another process is making is waited for.

    Args:
        config: the model that is wanted.
        exact: take an unset `quantize` for "not quantized", and `dtype` "auto" for the source's; otherwise a folder
            made with other values of the two will do.
        choose: chooses what `--quantize auto` leaves open; None where there is nothing to measure on.
        before: called before a model is downloaded and converted, which may take long; it may raise.

    Returns:
        The manifest of the folder.

    Raises:
        InputError: the folder holds something else; the model does not exist.
        MlxmathError: the model cannot be downloaded, read or written.
    """
    if manifest := _held(config, exact=exact):
        return manifest
    before()
    with making(Path(config.mlx_path).expanduser(), "mlxmath convert") as waited:
        if waited and (manifest := _held(config, exact=exact)):
            return manifest
        return convert(config, choose)


def _held(config: ModelConfig, *, exact: bool) -> Manifest | None:
    """The manifest of `config.mlx_path` if that holds what is wanted; None if it is to be made. See `ensure_model`."""
    folder = Path(config.mlx_path).expanduser()
    remove_leftovers(folder.parent)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not folder.is_dir():
        raise InputError(f"--mlx-path {config.mlx_path} is a file; expected a folder.")
    itself = config.model != DEMO and real(Path(config.model).expanduser()) == real(folder)
    if not (folder / FILE_NAME).exists():
        if itself:
            return _adopt(config, folder)
        raise InputError(
            f"--mlx-path {config.mlx_path} holds files that mlxmath did not write, so it is not replaced; choose "
            f"another folder, or use the model in it with --model {config.mlx_path}."
        )
    try:
        manifest = read_manifest(folder)
    except MlxmathError as error:
        if not config.overwrite or itself:
            raise InputError(
                f"{error} What {config.mlx_path} was made from is unknown; delete it, choose another --mlx-path, or "
                "make it anew with --overwrite."
            ) from None
        warn(f"{error} Making {config.mlx_path} anew.")
        return None
    differences = _differences(config, manifest, any_form=itself or not exact, itself=itself)
    if differences:
        if not itself and (config.overwrite or manifest.source == DEMO):
            say(f"{config.mlx_path} holds {manifest.describe()}; replacing it.")
            return None
        raise InputError(
            f"--mlx-path {config.mlx_path} holds {manifest.describe()}, but {' and '.join(differences)}. Ask for what "
            "it holds, choose another --mlx-path, or replace it with --overwrite."
        )
    reason = verify(folder)
    if isinstance(reason, Manifest):
        say(f"{config.mlx_path} is valid ({manifest.describe()}), using it again.")
        return manifest
    if itself:
        raise MlxmathError(f"{config.mlx_path} is damaged: {reason}. Make it anew from {manifest.source}.")
    warn(f"{config.mlx_path} is damaged ({reason}); making it anew.")
    return None


def convert(config: ModelConfig, choose: Chooser | None = None) -> Manifest:
    """Find or download `config.model` and write `config.mlx_path`, replacing what is there.

    For `--quantize auto` the model is converted twice: as it is, beside `config.mlx_path`, to be measured, and then as
    it was chosen.

    Raises:
        InputError: the model does not exist, or the settings do not fit it.
        MlxmathError: the model cannot be downloaded, read or written; nothing is left behind.
    """
    bits = auto_bits(config.quantize)
    if bits is not None and choose is None:
        raise InputError(
            f"--quantize {config.quantize} measures on problems, and there are none here. Make the model first: "
            f"`mlxmath convert --model {config.model} --quantize {config.quantize} --dataset ...`."
        )
    source = fetch(config.model, config.revision, trust_remote_code=config.trust_remote_code)
    say(f"converting {source.name}{f' at {source.revision[:12]}' if source.revision else ''}")
    if bits is None or choose is None:
        return build_model(config, source)
    with temporary_beside(real(Path(config.mlx_path).expanduser())) as plain:
        build_model(config.model_copy(update={"quantize": None, "mlx_path": str(plain)}), source)
        chosen = choose(plain, bits)
    return build_model(config, source, chosen)


def _differences(config: ModelConfig, manifest: Manifest, *, any_form: bool, itself: bool) -> list[str]:
    """In what the wanted model is not the one that the folder holds, as parts of a sentence."""
    found = []
    if not itself and not is_source(config.model, manifest.source) and not _has_moved(config.model, manifest):
        return [f"--model {config.model} was asked for"]
    commits = (manifest.requested_revision or "main", manifest.revision or "")
    if config.revision is not None and config.revision not in commits:
        found.append(f"--revision {config.revision} was asked for")
    unasked = config.quantize is None and (any_form or manifest.quantization_of_source)
    if not unasked and held_otherwise(config, manifest.quantization, manifest.quantize):
        held = Packing.of(manifest.quantization or {})
        wanted = asked_for(config)
        if wanted and manifest.quantize == str(config.quantize) and wanted.bits == held.bits:
            found.append(f"--group-size {wanted.group_size} was asked for, not {held.group_size}")
        else:
            found.append(f"--quantize {config.quantize} was asked for" if config.quantize else "no --quantize was")
    asked = {manifest.requested_dtype, manifest.dtype}
    if config.dtype not in asked and not (any_form and config.dtype == "auto"):
        found.append(f"--dtype {config.dtype} was asked for")
    if not found and not itself and _source_changed(manifest):
        found.append(f"the weights in {manifest.source} have changed since")
    return found


def _has_moved(model: str, manifest: Manifest) -> bool:
    """Whether a local folder holds the very weights that a folder was made from which is no longer there."""
    folder = Path(model).expanduser()
    return (
        manifest.revision is None
        and manifest.source != DEMO
        and not Path(manifest.source).exists()
        and folder.is_dir()
        and bool(manifest.source_files)
        and all(record.unchanged(folder) for record in manifest.source_files)
    )


def _source_changed(manifest: Manifest) -> bool:
    """Whether the local folder of the source is there and holds other weights now."""
    folder = DEMO_FOLDER if manifest.source == DEMO else Path(manifest.source)
    if not folder.exists() and ":" in folder.name:  # of several GGUF files in a folder, one is named after a colon
        folder = folder.with_name(folder.name.rpartition(":")[0])
    folder = folder.parent if folder.is_file() else folder
    if manifest.revision is not None or not folder.is_dir():
        return False
    return not all(record.unchanged(folder) for record in manifest.source_files)


def _adopt(config: ModelConfig, folder: Path) -> Manifest:
    """Describe a model folder that someone else made, given as both --model and --mlx-path; nothing is written."""
    model_config = read_config(folder)
    form = stored(model_config)
    weights = open_weights(folder)
    elsewhere = "so it has to be converted; choose another --mlx-path."
    if weights.files[0].suffix != ".safetensors":
        raise InputError(f"--mlx-path {config.mlx_path} is --model itself, in .bin files, {elsewhere}")
    if form.how in ("rearranged", "scaled"):
        raise InputError(f"--mlx-path {config.mlx_path} is --model itself, quantized by {form.method}, {elsewhere}")
    dtype = prevailing((tensor.dtype, tensor.num_elements) for tensor in weights.tensors.values())
    other_form = config.quantize is not None and held_otherwise(config, form.settings, None)
    if other_form or config.dtype not in ("auto", dtype):
        raise InputError(
            f"--mlx-path {config.mlx_path} is --model itself, so --quantize and --dtype cannot change it; choose "
            "another --mlx-path."
        )
    layout = plan_layout(model_config, weights.tensors, folder)
    if changed := differing(read_json(folder / "config.json"), layout.config):
        raise InputError(
            f"--mlx-path {config.mlx_path} is --model itself, whose config.json mlx_lm would misread "
            f"({', '.join(changed)}), {elsewhere}"
        )
    if layout.tensors.keys() - weights.tensors.keys():
        raise InputError(
            f"--mlx-path {config.mlx_path} is --model itself, whose tensors are called otherwise ({layout.notes[0]}), "
            f"{elsewhere}"
        )
    files: list[FileRecord] = []
    digests: dict[str, str] = {}
    for file in weights.files:
        own = {name: tensor for name, tensor in weights.tensors.items() if tensor.path == file}
        digest, of_tensors = digest_file(file, own)
        digests |= {name: value for name, value in of_tensors.items() if name in layout.tensors}
        files.append(FileRecord(name=file.name, size=file.stat().st_size, sha256=digest))
    say(f"{config.mlx_path} is a model folder made elsewhere ({dtype}), using it as it is.")
    for note in layout.notes:
        say(f"  {note}")
    return Manifest(
        source=str(folder.resolve()),
        revision=None,
        requested_revision=None,
        source_files=tuple(files),
        files=tuple(files),
        requested_dtype="auto",
        dtype=dtype,
        quantization=form.settings,
        quantization_of_source=form.settings is not None,
        num_parameters=sum(tensor.num_elements for tensor in weights.tensors.values()),
        versions=versions(),
        fingerprint=fingerprint(digests, form.settings),
        also=(fingerprint_of_files(files, dtype, form.settings),),
        limits=layout.limits,
    )
