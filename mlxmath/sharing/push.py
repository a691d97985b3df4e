"""`push`: an adapter or a model, with its card, to the Hugging Face Hub. huggingface_hub speaks to it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import say, size, warn
from mlxmath.runtime.secrets import has_secret, hidden
from mlxmath.sharing.card import Licences, card_of
from mlxmath.sharing.contents import CARD, Contents, contents_of
from mlxmath.sharing.facts import base_of, data_of, figures_of

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


@dataclass(frozen=True)
class Pushed:
    """What `push` gives.

    Attributes:
        repository: OWNER/NAME.
        url: of the commit; None for a dry run.
        card: README.md.
        sizes: bytes of each file by name, the card's too.
    """

    repository: str
    url: str | None
    card: str
    sizes: dict[str, int]


def push(
    folder: Path, repository: str, *, run: Path | None = None, evaluations: Sequence[Path] = (),
    licence: str | None = None, public: bool = False, dry_run: bool = False,
) -> Pushed:  # fmt: skip
    """Send what lies in `folder` to the hub, in one commit.

    What has arrived of an earlier try that was cut off is not sent again. The token is huggingface_hub's: HF_TOKEN, or
    that of `hf auth login`.

    Args:
        folder: an adapter's, a model's or an export's.
        repository: NAME, or OWNER/NAME; made if it is not there.
        run: the folder of the run that made it, where that is another one.
        evaluations: folders of evaluations of it.
        licence: its own (None: that of its base).
        public: everybody may see it.
        dry_run: send nothing; of the hub only licences are asked.

    Raises:
        InputError: there is nothing to push, or the name is none.
        MlxmathError: a file is damaged, or holds something private; the hub refuses, or cannot be reached.
    """
    contents = contents_of(folder, run)
    if contents.record.get("status") in ("running", "failed"):
        warn(f"the run in {contents.run_folder} has not ended as it should ({contents.record['status']})")
    figures = figures_of(contents, evaluations)
    with _hub_errors(repository):
        name = _full_name(repository, dry_run=dry_run)
        card = card_of(contents, name, figures, _licences(contents), licence)
        sizes = {CARD: len(card.encode())} | {each: contents.size(each) for each in contents.files}
        url = None if dry_run else _send(contents, name, card, public=public)
    return Pushed(name, url, card, sizes)


def _full_name(repository: str, *, dry_run: bool) -> str:
    """OWNER/NAME; the owner is who has logged in."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise InputError(f"{repository!r} is no name of a repository; expected NAME or OWNER/NAME.") from None
    if has_secret(repository):
        raise InputError("the repository's name holds what looks like a key.")
    if "/" in repository:
        return repository
    if dry_run:
        return f"OWNER/{repository}"
    if get_token() is None:
        raise MlxmathError(f"the hub asks who pushes: {_LOG_IN}.")
    return f"{HfApi().whoami()['name']}/{repository}"


def _licences(contents: Contents) -> Licences:
    """Of the base and the datasets, as their own cards have them; what cannot be asked is not known."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    api = HfApi()
    found: dict[str, str] = {}
    base = base_of(contents)
    for origin in [*([base] if base else []), *data_of(contents)]:
        ask: Callable[..., Any] = api.model_info if origin is base else api.dataset_info
        if origin.repository:
            try:
                data = ask(origin.repository, timeout=10).card_data
            except (HTTPError, HFValidationError, OSError, ValueError):
                continue
            licence = getattr(data, "license", None)
            if isinstance(licence, list):
                licence = ", ".join(map(str, licence))
            if isinstance(licence, str) and licence:
                found[origin.repository] = licence
    return found


def _send(contents: Contents, repository: str, card: str, *, public: bool) -> str:
    """Make the repository, and commit the files; the commit's address."""
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    token = get_token()
    if token is None:
        raise MlxmathError(f"the hub asks who pushes: {_LOG_IN}.")
    for name, file in contents.files.items():
        if isinstance(file, bytes) and token in file.decode():
            raise MlxmathError(f"{name} holds the hub's token; nothing was pushed. Take it out first.")
    api = HfApi()
    made = api.create_repo(repository, private=not public, exist_ok=True)
    if not public and not api.model_info(made.repo_id).private:
        raise InputError(f"{repository} is there already and public; push with --public, or choose another name.")
    files: dict[str, Path | bytes] = {CARD: card.encode(), **contents.files}
    say(f"pushing {len(files)} files, {size(sum(map(contents.size, contents.files)))}, to {made.repo_id}")
    operations = [
        CommitOperationAdd(name, file if isinstance(file, bytes) else str(file)) for name, file in files.items()
    ]
    try:
        commit = api.create_commit(made.repo_id, operations, commit_message="Upload with mlxmath")
    except ValueError as error:  # what the hub says of the card's metadata
        raise MlxmathError(f"the hub does not accept the files: {hidden(' '.join(str(error).split()))}") from None
    return str(commit.commit_url)


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Turn what the hub, or the way to it, answers into one clear error. Its own words may quote the request."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    again = "run the same command again: what has arrived is not sent again"
    try:
        yield
    except (HTTPError, RuntimeError, OSError) as error:
        inner: BaseException | None = error
        while inner is not None and not isinstance(inner, HTTPError):
            inner = inner.__cause__
        if isinstance(inner, HfHubHTTPError) and inner.response is not None:
            code = inner.response.status_code
            if code in (401, 403):
                raise MlxmathError(
                    f"the hub does not let you write to {repository} (HTTP status {code}): {_LOG_IN}."
                ) from None
            raise MlxmathError(f"the hub refused {repository} (HTTP status {code}); {again} when it is well.") from None
        if inner is None and not isinstance(error, OSError):
            raise
        reason = type(inner or error).__name__
        raise MlxmathError(f"the way to the hub was cut ({reason}); {again}.") from None
