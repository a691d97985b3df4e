"""Files that are either whole or absent: temporary name, fsync, rename; and paths that stay inside their folder."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from mlxmath.errors import MlxmathError
from mlxmath.runtime.records import parse_json

_TEMPORARY = re.compile(r"\.(?P<name>.+?)(?:\.(?P<host>[0-9a-f]{8}))?\.(?P<pid>\d+)\.[^.]+\.(?P<kind>tmp|old)")
"""Names of temporary files and folders: that of what they become, the host and the process that write them, something
random. (Versions before 0.2 left the host out.)"""
ABANDONED_S = 24 * 3600.0
"""What another host has not written to for so long is taken for abandoned: its processes cannot be looked up."""


def fsync_path(path: Path) -> None:
    """Flush a file's, or a folder's, contents to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` met while writing `path` into one clear error."""
    try:
        yield
    except OSError as error:
        free = ""
        with_parent = next((p for p in (path, *path.parents) if p.exists()), None)
        if with_parent is not None:
            free = f" ({shutil.disk_usage(with_parent).free / 1e9:.2f} GB free there)"
        reason = error.strerror or str(error)
        raise MlxmathError(
            f"cannot write {path}: {reason}{free}. Nothing there was changed; "
            "free some space or choose another folder, then run the command again."
        ) from error


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success it replaces `path`, on any error it is removed.

    Raises:
        MlxmathError: the disk is full or the folder cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
            fsync_path(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path` in one step."""
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def atomic_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON in one step."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it takes `path`'s place, on any error it is removed.

    An existing folder at `path` is replaced only after the new one is complete.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                fsync_path(file)
            fsync_path(temporary)
            temporary.chmod(0o755)
            if path.exists():
                old = temporary.with_suffix(".old")
                path.rename(old)
                temporary.rename(path)
                shutil.rmtree(old)
            else:
                temporary.rename(path)
            fsync_path(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove temporary files and folders in `folder` whose process no longer lives (it was killed).

    The folder may be shared between hosts: what another one writes stays, unless it has long been abandoned.

    Args:
        folder: only what lies directly in it is looked at; it need not exist.
        name: only those for this name; None: all, at a time when this process writes nothing there.
    """
    for leftover in folder.glob(".*.*.*"):
        match = _TEMPORARY.fullmatch(leftover.name)
        if match is None or (name is not None and match["name"] != name):
            continue
        if match["host"] != this_host():
            if time.time() - _last_write(leftover) < ABANDONED_S:
                continue
        elif _alive(pid := int(match["pid"])) and not (name is None and pid == os.getpid()):
            continue  # a process of this one's id, which writes nothing now, lived before it, as in a container
        target = folder / match["name"]
        if not leftover.is_dir():
            leftover.unlink(missing_ok=True)
        elif match["kind"] == "old" and not target.exists():
            leftover.rename(target)  # killed between the two renames: the old folder is the whole one
        else:
            shutil.rmtree(leftover, ignore_errors=True)


@cache
def this_host() -> str:
    """8 hex digits of where this process's number means something: the host, and on Linux its process namespace."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def _prefix(path: Path) -> str:
    return f".{path.name}.{this_host()}.{os.getpid()}."


def _last_write(path: Path) -> float:
    """When `path`, or anything in it, was written to last, in seconds since 1970."""
    times = [0.0]
    for each in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):  # it may go while it is looked at
            times.append(each.lstat().st_mtime)
    return max(times)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot. For files that are replaced, never edited."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        MlxmathError: the file is absent or is not JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MlxmathError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise MlxmathError(f"{path} is not readable JSON: {error}") from error


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, for a name read from a file: relative and without a way out.

    Raises:
        MlxmathError: `name` is absolute or climbs out of `folder`.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or ":" in parts.parts[0]:
        raise MlxmathError(f"{folder} names the file {name!r}, which lies outside the folder; it is refused.")
    return folder / parts
