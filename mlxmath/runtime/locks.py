"""Folders that one process at a time writes to."""

import contextlib
import fcntl
import io
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlxmath.errors import InputError
from mlxmath.runtime.console import warn
from mlxmath.runtime.files import disk_errors

_LOCK = ".lock"


@contextmanager
def locked(folder: Path, option: str, command: str) -> Iterator[None]:
    """Keep a folder to this process (and this thread): nobody else can lock it meanwhile.

    The lock is the system's (flock on `folder/.lock`): it ends with its process, however that ends, so a file that a
    killed one left behind locks nothing. Where the file system has no locks, a warning says so.

    Args:
        folder: made if it is not there.
        option: what names the folder, for the error.
        command: who holds it, for others' errors.

    Raises:
        InputError: somebody holds it; the error says who.
        MlxmathError: the folder cannot be written.
    """
    is_new = not folder.exists()
    with _locked_file(folder / _LOCK, option) as file:
        with contextlib.suppress(OSError):  # a full disk is told where it matters
            file.truncate(0)
            file.write(f"`{command}`, process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (folder / _LOCK).unlink()
                if is_new:
                    folder.rmdir()  # if nothing came of it


def _locked_file(path: Path, option: str) -> io.FileIO:
    while True:
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab+", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read(200).decode("utf-8", "replace") or "another process"
            raise InputError(
                f"{option}: {path.parent} is in use by {holder}; wait until it ends, or choose another folder."
            ) from None
        except OSError as error:
            warn(f"{path.parent} cannot be locked ({error.strerror}): let no other process write to it meanwhile")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()  # the one who held it has removed it since
