"""Finds a model: the bundled demo, a local folder or a snapshot of a Hugging Face repository, and the weights in it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlxmath.config.section import DEMO
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import say, size
from mlxmath.runtime.files import inside, read_json, real
from mlxmath.weights.download import FORMATS, download, has_weights
from mlxmath.weights.gguf_choice import chosen_gguf, is_gguf
from mlxmath.weights.gguf_file import MAGIC
from mlxmath.weights.local_models import LM_STUDIO, OLLAMA, lm_studio_model, ollama_model, ollama_name
from mlxmath.weights.safetensor import open_safetensors
from mlxmath.weights.tensors import TensorRef
from mlxmath.weights.torch_bin import Region, open_torch

DEMO_FOLDER = Path(__file__).resolve().parent.parent / "demo" / "model"
MAX_TIMES, MAX_TIMES_NAMED = 2, 100
"""How many times the size of its files a model may have: tensors repeat numbers, and names share tensors."""
MAX_SMALL_BYTES = 64 << 20
"""Up to this size it may have it in any case."""


@dataclass(frozen=True)
class Source:
    """A folder with a model in Hugging Face form, or a GGUF file.

    Attributes:
        name: how a manifest names it: repository, absolute path, Ollama's name or "demo".
        folder: where its files lie.
        revision: commit of the repository.
        gguf: the file that holds the model, or the first of a set, where it is in that form.
        template: in the language of Go's text/template, where it lies beside the model ("": it does not).
        stop: texts that end an answer, where these are said beside the model.
    """

    name: str
    folder: Path
    revision: str | None = None
    gguf: Path | None = None
    template: str = ""
    stop: tuple[str, ...] = ()


def is_source(model: str, recorded: str) -> bool:
    """Whether `--model model` means the source that a manifest recorded; its folder need not exist any more."""
    if model == DEMO:
        return recorded == DEMO
    if model.startswith(OLLAMA):
        return recorded == ollama_name(model)
    path = Path(model).expanduser()
    places = {str(real(path)), str(path.absolute())}
    return recorded in (places if path.exists() else {model, *places})


def fetch(
    model: str, revision: str | None = None, *, trust_remote_code: bool = False, config_only: bool = False
) -> Source:
    """Find a model, downloading what is missing of it (an interrupted download is continued).

    Args:
        model: "demo", a local folder or GGUF file, a Hugging Face repository, `ollama:NAME`, `lmstudio:owner/name`;
            of several GGUF files in one place, the one meant stands after a colon.
        revision: branch, tag or commit of the repository.
        trust_remote_code: download the repository's Python files too.
        config_only: download nothing but config.json; see `download`.

    Raises:
        InputError: no such folder, repository or revision, or a name that cannot be one.
        MlxmathError: the hub cannot be reached and the local cache is incomplete; access is refused; the disk is full.
    """
    if model == DEMO:
        return Source(DEMO, DEMO_FOLDER)
    local = _local(model)
    if local is not None:
        if revision is not None:
            raise InputError(f"--revision {revision}: {model} is on this machine, where it has no revisions.")
        return local
    repo, _, wanted = model.partition(":")
    is_path = not model or model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1
    if model.lower().endswith(".gguf") and Path(model).parent.is_dir():
        is_path = True  # a mistyped file: the hub need not be asked, nor its error be shown
    if Path(model).expanduser().exists() or is_path:
        found = "is a file" if Path(model).expanduser().exists() else "does not exist"
        raise InputError(
            f"--model {model} {found}; expected a model folder, a .gguf file, a Hugging Face repository or 'demo'."
        )
    if revision is None and (path := lm_studio_model(repo, wanted or None, required=False)):
        say(f"{model} is in LM Studio's folder, so it is not downloaded: {path}")
        return Source(model, path.parent, gguf=path)
    folder, gguf = download(
        repo, revision, wanted or None, trust_remote_code=trust_remote_code, config_only=config_only
    )
    return Source(model, folder, folder.name, folder / gguf if gguf else None)


def _local(model: str) -> Source | None:
    """A model on this machine; None where the name is none of one."""
    if model.startswith(OLLAMA):
        found = ollama_model(model)
        return Source(found.name, found.gguf.parent, gguf=found.gguf, template=found.template, stop=found.stop)
    if model.startswith(LM_STUDIO):
        repo, _, wanted = model.removeprefix(LM_STUDIO).partition(":")
        path = lm_studio_model(repo, wanted or None, required=True)
        assert path is not None
        return Source(model, path.parent, gguf=path)
    path = Path(model).expanduser()
    wanted = ""
    if not path.exists():
        before, _, wanted = model.rpartition(":")
        path = Path(before).expanduser()
        if not before or not path.is_dir():
            return None
    if path.is_file():
        path = path.absolute()
        return Source(str(path), path.parent, gguf=path) if path.suffix.lower() == ".gguf" or _begins(path) else None
    if not path.is_dir():
        return None
    names = [each.name for each in path.iterdir() if each.is_file()]
    if not wanted and (has_weights(names) or not any(map(is_gguf, names))):
        return Source(str(path.resolve()), path.resolve())
    gguf = path.resolve() / chosen_gguf(names, wanted or None, str(path))[0]
    return Source(f"{path.resolve()}{f':{wanted}' if wanted else ''}", gguf.parent, gguf=gguf)


def _begins(path: Path) -> bool:
    """Whether a file begins as a GGUF file does, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


@dataclass(frozen=True)
class Weights:
    """The tensors of a model folder, in the order in which they lie in its files.

    Attributes:
        files: the weight files.
        tensors: where each tensor lies.
        num_ignored: entries of the files that are no tensors.
        storages: file -> where its storages lie by key, if they have checksums.
    """

    files: tuple[Path, ...]
    tensors: Mapping[str, TensorRef]
    num_ignored: int
    storages: Mapping[Path, Mapping[str, Region]]


def weight_files(folder: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    """The weight files of a model folder (safetensors before .bin), and the index's map of tensors to files.

    Raises:
        MlxmathError: there are none, one is missing, or an index is damaged or names a file outside the folder.
    """
    for stem, suffix in FORMATS:
        single = folder / f"{stem}.{suffix}"
        index = folder / f"{stem}.{suffix}.index.json"
        if single.is_file():
            return (single,), {}
        if index.is_file():
            return _indexed(folder, index)
        numbered = sorted(folder.glob(f"{stem}-*-of-*.{suffix}"))
        if numbered:
            return _numbered(numbered), {}
    raise MlxmathError(
        f"{folder} holds no weights: expected model.safetensors or pytorch_model.bin, or their numbered files, or a "
        ".gguf file."
    )


def _indexed(folder: Path, index: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise MlxmathError(f"{index} has no weight_map from tensors to files; download it again.")
    files = tuple(inside(folder, name) for name in sorted(set(names.values())))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise MlxmathError(
            f"{folder} lacks {len(missing)} of the {len(files)} weight files that {index.name} names: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Download the model again."
        )
    return files, names


def _numbered(files: list[Path]) -> tuple[Path, ...]:
    """Files `...-00001-of-00002...` without an index: check that all are there."""
    for file in files:
        found = re.search(r"-(\d+)-of-(\d+)\.", file.name)
        if found is None or int(found[2]) != len(files):
            raise MlxmathError(
                f"{file.parent} holds {len(files)} weight files, but {file.name} counts otherwise; a file is missing "
                "or left over. Download the model again."
            )
    return tuple(files)


def open_weights(folder: Path) -> Weights:
    """Open all weight files of a model folder without reading the tensors.

    Raises:
        MlxmathError: as `weight_files`; a file is damaged; a tensor is missing or occurs twice; small files stand for
            a huge model.
    """
    files, index = weight_files(folder)
    tensors: dict[str, TensorRef] = {}
    num_ignored = 0
    storages: dict[Path, Mapping[str, Region]] = {}
    for file in files:
        if file.suffix == ".bin":
            opened = open_torch(file)
            found, num_ignored, storages[file] = opened.tensors, num_ignored + opened.num_ignored, opened.storages
        else:
            found = open_safetensors(file)
        for name, tensor in sorted(found.items(), key=lambda item: item[1].offset):
            if name in tensors:
                raise MlxmathError(f"{folder}: tensor {name!r} is in both {tensors[name].path.name} and {file.name}.")
            tensors[name] = tensor
    for name, file_name in index.items():
        if name not in tensors or tensors[name].path != inside(folder, file_name):
            raise MlxmathError(
                f"{folder / file_name} lacks the tensor {name!r} that the index places there; download it again."
            )
    if not tensors:
        raise MlxmathError(f"{folder}: its weight files hold no tensors.")
    stored, meant = sum(file.stat().st_size for file in files), sum(tensor.num_bytes for tensor in tensors.values())
    apart = sum({tensor.place: tensor.num_bytes for tensor in tensors.values()}.values())
    if meant > MAX_SMALL_BYTES and (apart > MAX_TIMES * stored or meant > MAX_TIMES_NAMED * stored):
        largest = max(tensors.values(), key=lambda tensor: tensor.num_bytes)
        raise MlxmathError(
            f"{largest.path}: the weights would take {size(meant)}, out of files of {size(stored)}: tensors repeat "
            f"numbers, the largest {largest.name!r} of shape {largest.shape} in steps of {largest.stride}. That is no "
            "model; save it again with contiguous tensors, or choose another."
        )
    return Weights(files, tensors, num_ignored, storages)
