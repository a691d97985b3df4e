"""Large files of the hub, so that an interrupted download goes on where it was.

huggingface_hub 2.4 removes what it has of a file when its download ends early. So large ones are fetched here into the
place in its cache where it looks for them, and found there by it.
"""

import fcntl
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from mlxmath.errors import MlxmathError
from mlxmath.runtime.console import Progress

MIN_BYTES = 32 << 20
"""Smaller files begin anew."""
ATTEMPTS = 5
"""After so many cuts of a connection with nothing gained, it is given up."""
_PART = ".part"
_SHA256 = re.compile("[0-9a-f]{64}")
_BLOCK_BYTES = 1 << 20


def blob_folder(repo: str) -> Path:
    """Where the hub's cache keeps the contents of a repository's files, by their hashes."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"


def begun_bytes(repo: str) -> int:
    """Size of what interrupted downloads have left."""
    return sum(path.stat().st_size for path in blob_folder(repo).glob(f"*{_PART}"))


def fetch_large(repo: str, commit: str, names: Iterable[str]) -> None:
    """Fetch files that are not in the cache, going on with what is there of them.

    Args:
        repo: owner/name.
        commit: of the repository.
        names: of the files; those whose hash the hub does not say are left to it.

    Raises:
        MlxmathError: what came is not the file.
        HTTPError, OSError: as the hub's own functions raise; what came is kept.
    """
    from huggingface_hub import get_hf_file_metadata, get_session, hf_hub_url

    if not hasattr(get_session(), "stream"):  # before huggingface_hub 1.0
        return
    for name in names:
        url = hf_hub_url(repo, name, revision=commit)
        found = get_hf_file_metadata(url)
        etag = found.etag or ""
        target = blob_folder(repo) / etag
        if not _SHA256.fullmatch(etag) or not found.size or target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(etag + _PART)
        with part.open("ab+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # another process fetches it, or there are no locks here
                continue
            _fetch(url, found.location, found.size, file, name)
            file.flush()
            file.seek(0)
            digest = hashlib.sha256()
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
            if digest.hexdigest() != etag:
                part.unlink()
                raise MlxmathError(
                    f"{name} of {repo} did not come as it is in the repository (its SHA-256 is "
                    f"{digest.hexdigest()[:12]}..., not {etag[:12]}...); run the command again."
                )
            part.replace(target)


def _fetch(url: str, location: str, num_bytes: int, file: BinaryIO, name: str) -> None:
    """Append what is missing of a file."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    headers: dict[str, Any] = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if urlsplit(location).netloc != urlsplit(url).netloc:  # another host has no business with the token
        headers = {key: value for key, value in headers.items() if key.lower() != "authorization"}
    failures = 0
    begun = file.seek(0, 2)
    if begun > num_bytes:
        file.truncate(begun := 0)
    with Progress(f"downloading {name}", num_bytes, done=begun, unit="B") as progress:
        while (done := file.seek(0, 2)) < num_bytes:
            try:
                wanted = {**headers, "Range": f"bytes={done}-"} if done else headers
                with get_session().stream("GET", location, headers=wanted, follow_redirects=True) as response:
                    hf_raise_for_status(response)
                    if done and response.status_code != 206:  # all of it comes again
                        file.truncate(0)
                    for data in response.iter_raw():
                        file.write(data)
                        progress.update(len(data))
            except HTTPError as error:
                failures = 0 if file.tell() > done else failures + 1
                if failures >= ATTEMPTS or getattr(error, "response", None) is not None:
                    raise
