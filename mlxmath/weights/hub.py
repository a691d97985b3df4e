"""Finds a model: the bundled demo, a local folder or a snapshot of a Hugging Face repository, and the weights in it."""

import errno
import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlxmath.config.section import DEMO
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import size
from mlxmath.runtime.files import inside, read_json
from mlxmath.weights.safetensor import open_safetensors
from mlxmath.weights.tensors import TensorRef
from mlxmath.weights.torch_bin import Region, open_torch

DEMO_FOLDER = Path(__file__).resolve().parent.parent / "demo" / "model"
TOKENIZER_FILES = (
    "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "*.model", "*.tiktoken", "*.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip
"""What travels with the weights, besides config.json."""
LICENSES = ("LICENSE*", "NOTICE*")
FORMATS = (("model", "safetensors"), ("pytorch_model", "bin"))
"""Stem and suffix of the weight files, the preferred first."""
MAX_TIMES = 100
"""How many times the size of its files a model may have: names share tensors, and tensors repeat numbers."""
MAX_SMALL_BYTES = 64 << 20
"""Up to this size it may have it in any case."""


@dataclass(frozen=True)
class Source:
    """A folder with a model in Hugging Face form.

    Attributes:
        name: how a manifest names it: repository, absolute path or "demo".
        folder: where its files lie.
        revision: commit of the repository.
        gguf: the file that holds the model, or the first of a set, where it is in that form.
    """

    name: str
    folder: Path
    revision: str | None = None
    gguf: Path | None = None


def is_source(model: str, recorded: str) -> bool:
    """Whether `--model model` means the source that a manifest recorded; its folder need not exist any more."""
    path = Path(model).expanduser()
    if model == DEMO:
        return recorded == DEMO
    places = {str(path.resolve()), str(path.absolute())}
    return recorded in (places if path.exists() else {model, *places})


def fetch(
    model: str, revision: str | None = None, *, trust_remote_code: bool = False, config_only: bool = False
) -> Source:
    """Find a model, downloading what is missing of it (an interrupted download is continued).

    Args:
        model: "demo", a local folder, or a Hugging Face repository.
        revision: branch, tag or commit of the repository.
        trust_remote_code: download the repository's Python files too.
        config_only: download config.json alone.

    Raises:
        InputError: no such folder, repository or revision, or a name that cannot be one.
        MlxmathError: the hub cannot be reached and the local cache is incomplete; access is refused; the disk is full.
    """
    if model == DEMO:
        return Source(DEMO, DEMO_FOLDER)
    path = Path(model).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        path = path.absolute()
        return Source(str(path), path.parent, gguf=path)
    if path.is_dir():
        if revision is not None:
            raise InputError(f"--revision {revision}: {model} is a local folder, which has no revisions.")
        return Source(str(path.resolve()), path.resolve())
    is_path = not model or model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1
    if path.exists() or is_path:
        found = "is a file" if path.exists() else "does not exist"
        raise InputError(f"--model {model} {found}; expected a model folder, a Hugging Face repository or 'demo'.")
    folder = _snapshot(model, revision, trust_remote_code, config_only)
    return Source(model, folder, folder.name)


def needed_files(names: Iterable[str], *, trust_remote_code: bool = False) -> list[str]:
    """Which of a repository's files are needed: configuration, tokenizer, and the weights in one format."""
    names = list(names)
    code = ("*.py",) if trust_remote_code else ()
    patterns = ("config.json", "hf_quant_config.json", *TOKENIZER_FILES, *LICENSES, *code)
    needed = [name for name in names if _matches(name, patterns)]
    for stem, suffix in FORMATS:
        weights = [name for name in names if _matches(name, (f"{stem}.{suffix}", f"{stem}-*-of-*.{suffix}"))]
        if weights:
            index = f"{stem}.{suffix}.index.json"
            return [*needed, *weights, *([index] if index in names else [])]
    return needed


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) and name.count("/") == p.count("/") for p in patterns)


def _snapshot(repo: str, revision: str | None, trust_remote_code: bool, config_only: bool) -> Path:
    """Download a repository's needed files into the Hugging Face cache."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision!r}" if revision else ""
    # The hub's own messages are not repeated: they may quote the request. Hence also `from None`.
    try:
        # not list_repo_files, which retries for 20 s where there is no network
        names = [file.rfilename for file in HfApi().model_info(repo, revision=revision).siblings or ()]
        wanted = ["config.json"] if config_only else needed_files(names, trust_remote_code=trust_remote_code)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except HFValidationError:
        raise InputError(
            f"--model {repo}: neither an existing folder nor a repository name (owner/name) of Hugging Face."
        ) from None
    except GatedRepoError:
        raise MlxmathError(
            f"{repo} is gated: accept its terms on its page and log in (`hf auth login`), then run this again."
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"--model {repo}: there is no such folder here, and no such repository on the Hugging Face Hub that you "
            "can see. Check the name; for a private repository log in (`hf auth login`)."
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"--revision {revision}: {repo} has no such branch, tag or commit.") from None
    except (HTTPError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MlxmathError(
                f"no space left for {repo} in the Hugging Face cache; free some, or set HF_HOME to a folder on a "
                "larger disk. What was downloaded is kept and continued."
            ) from None
        reason = type(error).__name__
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            reason = f"HTTP status {error.response.status_code}"
        cached = _cached(repo, revision, config_only)
        if cached is not None:
            return cached
        raise MlxmathError(
            f"cannot download {repo}{at} ({reason}), and the local Hugging Face cache does not hold all of it. Check "
            "the connection and run this again (a partial download is continued), or give a local folder as --model."
        ) from None


def _cached(repo: str, revision: str | None, config_only: bool) -> Path | None:
    """The cached snapshot, if its weights are all there, or its config.json where that is enough."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if config_only:
        try:
            return Path(hf_hub_download(repo, "config.json", revision=revision, local_files_only=True)).parent
        except LocalEntryNotFoundError:
            return None

    for stem, suffix in FORMATS:
        patterns = ["config.json", f"{stem}.{suffix}", f"{stem}-*-of-*.{suffix}", f"{stem}.{suffix}.index.json"]
        try:
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=patterns))
            weight_files(folder)
        except (LocalEntryNotFoundError, MlxmathError):
            continue
        return folder
    return None


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
        f"{folder} holds no weights: expected model.safetensors or pytorch_model.bin, or their numbered files."
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
    if meant > max(MAX_TIMES * stored, MAX_SMALL_BYTES):
        largest = max(tensors.values(), key=lambda tensor: tensor.num_bytes)
        raise MlxmathError(
            f"{largest.path}: the weights would take {size(meant)}, out of files of {size(stored)}: tensors repeat "
            f"numbers, the largest {largest.name!r} of shape {largest.shape} in steps of {largest.stride}. That is no "
            "model; save it again with contiguous tensors, or choose another."
        )
    return Weights(files, tensors, num_ignored, storages)
