"""Downloads what is needed of a repository of the Hugging Face Hub into the hub's own cache."""

import errno
import fnmatch
import glob
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import size
from mlxmath.weights.gguf_choice import chosen_gguf, is_gguf
from mlxmath.weights.resume import MIN_BYTES, begun_bytes, fetch_large

TOKENIZER_FILES = (
    "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "*.model", "*.tiktoken", "*.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip
"""What travels with the weights, besides config.json."""
LICENSES = ("LICENSE*", "NOTICE*")
FORMATS = (("model", "safetensors"), ("pytorch_model", "bin"))
"""Stem and suffix of the weight files, the preferred first."""
SPARE_BYTES = 256 << 20
"""Room that is left on the disk of the cache."""


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


def has_weights(names: Iterable[str]) -> bool:
    """Whether these files have weights in one of `FORMATS`."""
    patterns = tuple(p for stem, suffix in FORMATS for p in (f"{stem}.{suffix}", f"{stem}-*-of-*.{suffix}"))
    return any(_matches(name, patterns) for name in names)


def download(
    repo: str, revision: str | None, wanted: str | None = None, *, trust_remote_code: bool = False,
    config_only: bool = False,
) -> tuple[Path, str | None]:  # fmt: skip
    """Download a repository's needed files into the Hugging Face cache; what is there is not downloaded again.

    Args:
        repo: owner/name.
        revision: branch, tag or commit.
        wanted: which of its GGUF files ("Q4_K_M"); None: its weights in another form, if it has them.
        trust_remote_code: its Python files too.
        config_only: config.json alone; of a repository without one, what is in the cache.

    Returns:
        The folder in the cache, and which GGUF file in it is the model, or the first of its set.

    Raises:
        InputError: no such repository or revision; several GGUF files, or none that is `wanted`.
        MlxmathError: the hub cannot be reached and the cache is incomplete; access is refused; the disk is full; of a
            repository without config.json nothing is in the cache, and `config_only`.
    """
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
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        gguf: str | None = None
        if config_only and "config.json" in sizes:
            files = ["config.json"]
        elif config_only:
            if cached := _cached(repo, revision, wanted, config_only):
                return cached
            model = f"{repo}:{wanted}" if wanted else repo
            raise MlxmathError(
                f"{repo} has no config.json, and its weights, which say as much, are not downloaded unasked. Convert "
                f"it first (`mlxmath convert --model {model}`)."
            )
        elif wanted is not None or (not has_weights(sizes) and any(map(is_gguf, sizes))):
            chosen = chosen_gguf(sizes, wanted, repo)
            gguf, files = chosen[0], [*chosen, *(name for name in sizes if _matches(name, LICENSES))]
        else:
            files = needed_files(sizes, trust_remote_code=trust_remote_code)
        missing = _missing(repo, info.sha, {name: sizes.get(name, 0) for name in files})
        if info.sha:
            fetch_large(repo, info.sha, [name for name, num_bytes in missing.items() if num_bytes >= MIN_BYTES])
        return Path(snapshot_download(repo, revision=revision, allow_patterns=files)), gguf
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
        cached = _cached(repo, revision, wanted, config_only)
        if cached is not None:
            return cached
        raise MlxmathError(
            f"cannot download {repo}{at} ({reason}), and the local Hugging Face cache does not hold all of it. Check "
            "the connection and run this again (a partial download is continued), or give a local folder as --model."
        ) from None


def _missing(repo: str, commit: str | None, sizes: dict[str, int]) -> dict[str, int]:
    """Which files, of these sizes, are not in the cache yet.

    Raises:
        MlxmathError: there is no room for them.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    missing = {
        name: num_bytes
        for name, num_bytes in sizes.items()
        if not isinstance(try_to_load_from_cache(repo, name, revision=commit), str)
    }
    needed = max(sum(missing.values()) - begun_bytes(repo), 0)
    place = Path(os.path.abspath(constants.HF_HUB_CACHE))  # noqa: PTH100 - resolve would follow links that end nowhere
    place = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed and needed + SPARE_BYTES > free:
        raise MlxmathError(
            f"{repo}: {size(needed)} are to be downloaded, and {size(free)} are free in the Hugging Face cache "
            f"({constants.HF_HUB_CACHE}). Nothing was downloaded; free some space, or set HF_HOME to a folder on a "
            "larger disk."
        )
    return missing


def _cached(repo: str, revision: str | None, wanted: str | None, config_only: bool) -> tuple[Path, str | None] | None:
    """The cached snapshot, if its weights are all there, or its config.json where that is enough."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if config_only and wanted is None:
        try:
            return Path(hf_hub_download(repo, "config.json", revision=revision, local_files_only=True)).parent, None
        except LocalEntryNotFoundError:
            pass
    formats = [
        ["config.json", f"{stem}.{suffix}", f"{stem}-*-of-*.{suffix}", f"{stem}.{suffix}.index.json"]
        for stem, suffix in FORMATS
    ]
    ends = [f"*{glob.escape(wanted)}*" if wanted else "*.gguf"]
    for patterns in [ends] if wanted else [*formats, ends]:
        try:
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=patterns))
        except LocalEntryNotFoundError:
            continue
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        if patterns is not ends and is_whole(folder):
            return folder, None
        if patterns is ends and (wanted or not has_weights(names)) and any(map(is_gguf, names)):
            return folder, chosen_gguf(names, wanted, repo)[0]
    return None


def is_whole(folder: Path) -> bool:
    """Whether all weight files of a folder are there."""
    from mlxmath.weights.hub import weight_files

    try:
        weight_files(folder)
    except MlxmathError:
        return False
    return True
