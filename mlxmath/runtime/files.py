"""Files that are either whole or absent: temporary name, fsync, rename; paths that stay inside their folder; JSON that
others may have written.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
import types
import typing
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

import psutil

from mlxmath.errors import MlxmathError
from mlxmath.parsing import HALF_A_CHARACTER
from mlxmath.parsing import parse_json as parse_json

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})\.(?P<pid>\d+)\.[^.]+\.(?P<kind>tmp|old)")
"""Names of temporary files and folders: that of what they become, the host and the process that write them, something
random."""
OF_A_NAME = ".mlxmath.lock"
"""How the locks of files and folders end that are replaced as a whole. Others' locks are not ours to remove."""
_MOST_JSON_BYTES = 200_000_000
"""Of a file that is read as a whole; the largest tokenizer.json has a fifth of that."""
_OWN = os.O_NOFOLLOW | os.O_NONBLOCK
"""A link is an error, and a pipe is not waited for."""
_LONGEST_NAME = 255
"""Bytes, on all file systems in use."""
ABANDONED_S = 24 * 3600.0
"""What another host has not written to for so long is taken for abandoned: its processes cannot be looked up."""
_writing: set[Path] = set()
"""Temporary files and folders of this process. A leftover of its own number that is not among them is of a process
before it, as in a container."""
_cleaned: set[Path] = set()


def real(path: Path) -> Path:
    """A path from the root on, without links; one of links that name each other ends there (`Path.resolve` raises)."""
    return Path(os.path.realpath(path))


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
        there = next(each for each in (path, *path.parents) if os.path.exists(each))  # noqa: PTH110  a name may be too long
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        free = f" ({shutil.disk_usage(there).free / 1e9:.2f} GB free there)" if is_full else ""
        raise MlxmathError(
            f"cannot write {path}: {error.strerror or error}{free}. Nothing there was changed; "
            f"{'free some space or ' if is_full else ''}choose another folder, then run the command again."
        ) from error


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success it replaces `path`, on any error it is removed.

    Raises:
        MlxmathError: the disk is full, the folder cannot be written, or `path` is a folder, a device or a pipe.
    """
    if os.path.exists(path) and not path.is_file():  # noqa: PTH110
        raise MlxmathError(f"cannot write {path}: it is {'a folder' if path.is_dir() else 'no file'}; expected a file.")
    with temporary_beside(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def own_file(path: Path) -> io.FileIO:
    """Open a file to be read and appended to, made if it is not there, without a buffer.

    Never what a link names: whoever has made the folder would have us write to any file of the user's.

    Raises:
        MlxmathError: it is a link, a pipe or a device, or cannot be written.
    """
    with disk_errors(path):
        try:
            file = io.FileIO(path, "ab+", opener=lambda name, flags: os.open(name, flags | _OWN, 0o666))
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):
                raise
            raise _no_file(path) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _no_file(path)
    return file


def _no_file(path: Path) -> MlxmathError:
    return MlxmathError(f"cannot write {path}: it is a link or no file; remove it, then run the command again.")


def write_all(file: IO[bytes], data: bytes) -> None:
    """Write to a file without a buffer, which may take a part at a time."""
    while data:
        data = data[file.write(data) :]


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path` in one step."""
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def atomic_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON in one step; half a character in a text, which has no bytes, as JSON's escape."""
    atomic_write(path, f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode("utf-8", "backslashreplace"))


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it takes `path`'s place, on any error it is removed.

    An existing folder at `path` is replaced only after the new one is complete; of a link the folder that it names.
    """
    path = real(path)
    with temporary_beside(path) as temporary:
        temporary.mkdir()
        yield temporary
        for file in (*temporary.rglob("*"), temporary):
            fsync_path(file)
        if path.exists():
            old = temporary.with_suffix(".old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`; what has it afterwards is removed, by a later run after a kill."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if (folder := real(path.parent)) not in _cleaned:
            _cleaned.add(folder)
            remove_leftovers(folder)
        temporary = _temporary(path)
        _writing.add(real(temporary))
        try:
            yield temporary
            fsync_path(path.parent)
        finally:
            with contextlib.suppress(OSError):
                remove(temporary)
            _writing.discard(real(temporary))


def remove_folder(path: Path) -> None:
    """Remove a folder that must not be there in part: a kill meanwhile leaves it whole, or a leftover."""
    temporary = _temporary(path)
    with contextlib.suppress(OSError):
        path.rename(temporary)
        shutil.rmtree(temporary)


def user_cache() -> Path:
    """The folder in which mlxmath remembers things of this user.

    https://specifications.freedesktop.org/basedir-spec: a relative $XDG_CACHE_HOME does not count.

    Raises:
        RuntimeError: the user has no home.
    """
    asked = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (asked if asked.is_absolute() else Path.home() / ".cache") / "mlxmath"


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.{this_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"


def remove(path: Path) -> None:
    """Remove a file, a folder or a link (not what it names), if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files, folders and locks in `folder` whose process no longer lives (it was killed).

    The folder may be shared between hosts: what another one writes stays, unless it has long been abandoned. What
    cannot be removed stays too. Whatever is written into a folder does this the first time.

    Args:
        folder: only what lies directly in it is looked at; it need not exist.
    """
    for leftover in folder.glob(".*.*.*"):
        match = _TEMPORARY.fullmatch(leftover.name)
        if match is None or _is_being_written(leftover, match["host"], int(match["pid"])):
            continue
        target = folder / match["name"]
        with contextlib.suppress(OSError):
            if match["kind"] == "old" and not target.exists():
                leftover.rename(target)  # killed between the two renames: the old folder is the whole one
            else:
                remove(leftover)
    for lock in folder.glob(f".*{OF_A_NAME}"):
        with contextlib.suppress(OSError), lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # whoever holds it lives
            if os.path.samestat(lock.stat(), os.fstat(file.fileno())):  # else it was removed, and is another's by now
                lock.unlink()


def _is_being_written(path: Path, host: str, pid: int) -> bool:
    if host != this_host():
        return time.time() - _last_write(path) < ABANDONED_S
    if pid == os.getpid():
        return real(path.with_suffix(".tmp")) in _writing
    try:
        return psutil.pid_exists(pid)
    except OverflowError:  # no process has such a number
        return False


@cache
def this_host() -> str:
    """8 hex digits of where this process's number means something: the host, and on Linux its process namespace."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


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


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        MlxmathError: the file is absent, is not JSON, or none that could be read: a pipe would be waited for.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no file")
        if found.st_size > _MOST_JSON_BYTES:
            raise ValueError(f"it has {found.st_size:,} bytes, of at most {_MOST_JSON_BYTES:,}")
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
        MlxmathError: `name` is absolute or climbs out of `folder`, or no file can have it.
    """
    if not name.isprintable() or any(len(part.encode()) > _LONGEST_NAME for part in name.split("/")):
        raise MlxmathError(f"{folder} names the file {name!a:.200}, which can be no file's name; it is refused.")
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or ":" in parts.parts[0]:
        raise MlxmathError(f"{folder} names the file {name!r}, which lies outside the folder; it is refused.")
    return folder / parts


def fits(value: Any, kind: Callable[..., Any]) -> bool:
    """Whether a JSON value is an object with a value of the right type for each field of a class, and maybe others."""
    return isinstance(value, dict) and all(name in value and _is(value[name], types_) for name, types_ in kinds(kind))


@cache
def kinds(kind: Hashable) -> tuple[tuple[str, tuple[type, ...]], ...]:
    """The fields of a class, each with the types that its JSON value may have."""
    return tuple((name, _allowed(hint)) for name, hint in typing.get_type_hints(kind).items())


def _allowed(hint: Any) -> tuple[type, ...]:
    if isinstance(hint, types.UnionType):
        return tuple(one for part in typing.get_args(hint) for one in _allowed(part))
    return (float, int) if hint is float else (typing.get_origin(hint) or hint,)


def _is(value: Any, allowed: tuple[type, ...]) -> bool:
    if isinstance(value, str) and not value.isascii() and HALF_A_CHARACTER.search(value):
        return False  # it has no bytes: no file could hold it
    return isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))
