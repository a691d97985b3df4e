"""Folders and files that one process at a time writes to.

A lock is the system's (flock): it ends with its process, however that ends, so a file that a killed one left behind
locks nothing. On NFS it counts between hosts too (Linux asks the server for it). Where a file system has no locks, a
warning says so.
"""

import contextlib
import fcntl
import io
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from mlxmath.errors import InputError
from mlxmath.runtime.console import say, warn
from mlxmath.runtime.files import OF_A_NAME, disk_errors, own_file, real, remove_leftovers

_LOCK = ".lock"
_MOMENT_S = 0.02
_HOLDER = re.compile(r"`([^`]*)`, process (\d{1,18}) on (.*) since .*")


@dataclass(frozen=True)
class Holder:
    """Who keeps a folder to itself."""

    command: str
    pid: int
    host: str
    created: float | None
    """When the process began, which tells it from a later one of its number; None: it is another user's, or on another
    host, where nobody can tell whether it still lives."""


def holder(folder: Path) -> Holder | None:
    """Who holds a folder that `locked` keeps. It takes no lock, which whoever wants it just now would find taken.

    What the file says is believed of a process that has it open: it may be left over, or written by somebody else.
    """
    lock = folder / _LOCK
    try:
        if not lock.is_file():  # a pipe would be waited for
            return None
        with lock.open("rb") as file:
            found = _HOLDER.fullmatch(file.read(500).decode("utf-8", "replace"))
    except OSError:
        return None
    if found is None:
        return None
    command, pid, host = found[1], int(found[2]), found[3]
    if host != socket.gethostname():
        return Holder(command, pid, host, None)
    try:
        process = psutil.Process(pid)
        has_it = any(Path(one.path).name == _LOCK and lock.samefile(one.path) for one in process.open_files())
        return Holder(command, pid, host, process.create_time()) if has_it else None
    except psutil.AccessDenied:
        return Holder(command, pid, host, None)
    except (psutil.Error, OverflowError, OSError):
        return None


@contextmanager
def locked(folder: Path, option: str, command: str) -> Iterator[None]:
    """Keep a folder to this process (and this thread): nobody else can lock it meanwhile.

    Args:
        folder: made if it is not there. What killed runs left half-written in it is removed.
        option: what names the folder, for the error.
        command: who holds it, for others' errors.

    Raises:
        InputError: somebody holds it; the error says who, where and since when.
        MlxmathError: the folder cannot be written.
    """
    is_new = not folder.exists()
    try:
        with _held(folder / _LOCK, folder, command, option):
            remove_leftovers(folder)
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if nothing came of it


@contextmanager
def making(path: Path, command: str, option: str | None = None) -> Iterator[bool]:
    """Make a file or a folder that is replaced as a whole, while nobody else makes it.

    Args:
        path: what is made. The lock lies beside it.
        command: who makes it, for others.
        option: what names it, if two are not to make it one after the other; None waits for the other one.

    Yields:
        Whether somebody else held it until now, so that it may be there.

    Raises:
        InputError: `option` is given and somebody holds it; the error says who, where and since when.
        MlxmathError: its folder cannot be written.
    """
    path = real(path)
    with _held(path.with_name(f".{path.name}{OF_A_NAME}"), path, command, option) as waited:
        yield waited


@contextmanager
def _held(lock: Path, what: Path, command: str, option: str | None) -> Iterator[bool]:
    file, waited = _locked_file(lock, what, option)
    with file:
        with contextlib.suppress(OSError):  # a full disk is told where it matters
            file.truncate(0)
            since = datetime.now(UTC).isoformat(" ", "seconds").removesuffix("+00:00")
            file.write(f"`{command}`, process {os.getpid()} on {socket.gethostname()} since {since} UTC".encode())
        try:
            yield waited
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()


def _locked_file(lock: Path, what: Path, option: str | None) -> tuple[io.FileIO, bool]:
    waited = has_tried = False
    while True:
        with disk_errors(lock.parent):
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = own_file(lock)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            said = file.read(300)
            if not said and not has_tried:  # `remove_leftovers` holds a lock for a moment, and writes nothing in it
                has_tried = True
                file.close()
                time.sleep(_MOMENT_S)
                continue
            holder = said.decode("utf-8", "replace") or "another process"
            if option is not None:
                file.close()
                raise InputError(
                    f"{option}: {what} is in use by {holder}; wait until it ends, or choose another folder."
                ) from None
            if not waited:
                say(f"{what} is being made by {holder}; waiting for it")
            waited = True
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            warn(f"{what} cannot be locked ({error.strerror}): let no other process write to it meanwhile")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(lock.stat(), os.fstat(file.fileno())):
                return file, waited
        file.close()  # the one who held it has removed it since
