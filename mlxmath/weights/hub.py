"""Finds a model's folder: the bundled demo, a local folder, or a snapshot of a Hugging Face repository."""

import errno
import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlxmath.config.section import DEMO
from mlxmath.errors import InputError, MlxmathError
from mlxmath.weights.source import FORMATS, weight_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi

DEMO_FOLDER = Path(__file__).resolve().parent.parent / "demo" / "model"
TOKENIZER_FILES = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.jinja",
    "additional_chat_templates/*.jinja",
)
"""What travels with the weights, besides config.json."""
LICENSES = ("LICENSE*", "NOTICE*")


@dataclass(frozen=True)
class Source:
    """A folder with a model in Hugging Face form.

    Attributes:
        name: how a manifest names it: repository, absolute path or "demo".
        folder: where its files lie.
        kind: where it came from.
        revision: commit of the repository.
    """

    name: str
    folder: Path
    kind: Literal["demo", "local", "hub"]
    revision: str | None = None


def is_source(model: str, recorded: str) -> bool:
    """Whether `--model model` means the source that a manifest recorded; its folder need not exist any more."""
    path = Path(model).expanduser()
    if model == DEMO or not path.is_dir():
        return recorded in ({model} if model == DEMO else {model, str(path.resolve())})
    return recorded == str(path.resolve())


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1 or not model.strip("/")


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
        return Source(DEMO, DEMO_FOLDER, "demo")
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise InputError(f"--revision {revision}: {model} is a local folder, which has no revisions.")
        return Source(str(path.resolve()), path.resolve(), "local")
    if path.exists() or _looks_like_path(model):
        found = "is a file" if path.exists() else "does not exist"
        raise InputError(f"--model {model} {found}; expected a model folder, a Hugging Face repository or 'demo'.")
    folder = _snapshot(model, revision, trust_remote_code, config_only)
    return Source(model, folder, "hub", folder.name)


def needed_files(names: Iterable[str], *, trust_remote_code: bool = False) -> list[str]:
    """Which of a repository's files are needed: configuration, tokenizer, and the weights in one format."""
    names = list(names)
    patterns = (
        "config.json",
        "hf_quant_config.json",
        *TOKENIZER_FILES,
        *LICENSES,
        *(("*.py",) if trust_remote_code else ()),
    )
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
        names = _listed(HfApi(), repo, revision)
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


def _listed(api: "HfApi", repo: str, revision: str | None) -> list[str]:
    """Names of a repository's files. (`list_repo_files` would retry for 20 s where there is no network.)"""
    return [file.rfilename for file in api.model_info(repo, revision=revision).siblings or ()]


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
