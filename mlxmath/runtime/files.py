"""Files that are either whole or absent: temporary name, fsync, rename; paths that stay inside their folder; JSON that
others may have written.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
import types
import typing
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

import psutil

from mlxmath.errors import MlxmathError
from mlxmath.parsing import HALF_A_CHARACTER
from mlxmath.parsing import parse_json as parse_json

T = TypeVar("T")
_SUM = "checksum"
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})\.(?P<pid>\d+)\.[^.]+\.(?P<kind>tmp|old)")
"""Names of temporary files and folders: that of what they become, the host and the process that write them, something
random."""
_LONGEST_NAME = 255
"""Bytes, on all file systems in use."""
ABANDONED_S = 24 * 3600.0
"""What another host has not written to for so long is taken for abandoned: its processes cannot be looked up."""
_writing: set[Path] = set()
"""Temporary files and folders of this process. A leftover of its own number that is not among them is of a process
before it, as in a container."""
_cleaned: set[Path] = set()


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
        there = next(each for each in (path, *path.parents) if each.exists())
        free = f"{shutil.disk_usage(there).free / 1e9:.2f} GB free there"
        raise MlxmathError(
            f"cannot write {path}: {error.strerror or error} ({free}). Nothing there was changed; "
            "free some space or choose another folder, then run the command again."
        ) from error


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success it replaces `path`, on any error it is removed.

    Raises:
        MlxmathError: the disk is full or the folder cannot be written.
    """
    with _beside(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path` in one step."""
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def atomic_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON in one step; half a character in a text, which has no bytes, as JSON's escape."""
    atomic_write(path, f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode("utf-8", "backslashreplace"))


def sealed_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object as JSON with a checksum over all of it, for `unsealed_json`."""
    atomic_json(path, value | {_SUM: _checksum(value)})


def unsealed_json(path: Path, unsealed: Sequence[str]) -> dict[str, Any]:
    """Read what `sealed_json` wrote.

    Args:
        path: the file.
        unsealed: names of which an object without a checksum may have no others: 0.1.0 wrote none.

    Raises:
        MlxmathError: the file is absent or damaged.
    """
    value = read_json(path)
    if not isinstance(value, dict) or (
        value.pop(_SUM) != _checksum(value) if _SUM in value else not value.keys() <= set(unsealed)
    ):
        raise MlxmathError(f"{path} is damaged")
    return value


def _checksum(value: dict[str, Any]) -> str:
    read_back = json.loads(json.dumps(value))  # keys are text then
    return hashlib.sha256(json.dumps(read_back, sort_keys=True).encode()).hexdigest()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it takes `path`'s place, on any error it is removed.

    An existing folder at `path` is replaced only after the new one is complete.
    """
    with _beside(path) as temporary:
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
def _beside(path: Path) -> Iterator[Path]:
    """A temporary name for `path`, in its folder, where whatever has that name afterwards is removed."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if (folder := path.parent.resolve()) not in _cleaned:
            _cleaned.add(folder)
            remove_leftovers(folder)
        temporary = _temporary(path)
        _writing.add(temporary.resolve())
        try:
            yield temporary
            fsync_path(path.parent)
        finally:
            _remove(temporary)
            _writing.discard(temporary.resolve())


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A name beside `path` for a folder that is removed afterwards, or by a later run if this one is killed."""
    with _beside(path) as temporary:
        yield temporary


def remove_folder(path: Path) -> None:
    """Remove a folder that must not be there in part: a kill meanwhile leaves it whole, or a leftover."""
    temporary = _temporary(path)
    with contextlib.suppress(OSError):
        path.rename(temporary)
        shutil.rmtree(temporary)


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.{this_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders in `folder` whose process no longer lives (it was killed).

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
                _remove(leftover)


def _is_being_written(path: Path, host: str, pid: int) -> bool:
    if host != this_host():
        return time.time() - _last_write(path) < ABANDONED_S
    if pid == os.getpid():
        return path.with_suffix(".tmp").resolve() in _writing
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
        MlxmathError: `name` is absolute or climbs out of `folder`, or no file can have it.
    """
    if not name.isprintable() or any(len(part.encode()) > _LONGEST_NAME for part in name.split("/")):
        raise MlxmathError(f"{folder} names the file {name!a:.200}, which can be no file's name; it is refused.")
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or ":" in parts.parts[0]:
        raise MlxmathError(f"{folder} names the file {name!r}, which lies outside the folder; it is refused.")
    return folder / parts


def read_record(kind: Callable[..., T], line: str | bytes) -> T | None:
    """A JSON line as a dataclass, None unless it is an object with a value of the right type for each field."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return kind(**{name: row[name] for name, _ in _kinds(kind)}) if fits(row, kind) else None


def fits(value: Any, kind: Callable[..., Any]) -> bool:
    """Whether a JSON value is an object with a value of the right type for each field of a class, and maybe others."""
    return isinstance(value, dict) and all(name in value and _is(value[name], types_) for name, types_ in _kinds(kind))


@cache
def _kinds(kind: Hashable) -> tuple[tuple[str, tuple[type, ...]], ...]:
    return tuple((name, _allowed(hint)) for name, hint in typing.get_type_hints(kind).items())


def _allowed(hint: Any) -> tuple[type, ...]:
    if isinstance(hint, types.UnionType):
        return tuple(one for part in typing.get_args(hint) for one in _allowed(part))
    return (float, int) if hint is float else (hint,)


def _is(value: Any, allowed: tuple[type, ...]) -> bool:
    if isinstance(value, str) and not value.isascii() and HALF_A_CHARACTER.search(value):
        return False  # it has no bytes: no file could hold it
    return isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))
