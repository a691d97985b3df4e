"""What a teacher has answered: a JSON line each, written as it comes, never written twice, never rewritten.

A folder holds `settings.json` (written first) and `responses.jsonl`. Each line names the fingerprint of the teacher and
of the way it was asked; lines of another fingerprint do not count. How many samples and which problems are asked for
may change from run to run: what is there is used.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.files import atomic_json, disk_errors, read_json
from mlxmath.runtime.records import read_record

SETTINGS, RESPONSES = "settings.json", "responses.jsonl"
_FORMAT = 1
_SYNC_COUNT, _SYNC_SECONDS = 16, 5.0


@dataclass(frozen=True)
class Response:
    """A teacher's answer to one task."""

    fingerprint: str
    key: str
    """Of the problem: `Question.key`."""
    sample: int
    id: str
    problem: str
    answer: str
    """The gold answer."""
    response: str
    """The solution, its reasoning before it as `<think>…</think>`."""
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    attempts: int
    """Requests that it took."""


def identify(identity: Mapping[str, Any]) -> str:
    """16 hex digits of everything that answers depend on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def claim(folder: Path, identity: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Make a folder this teacher's own: write its settings, or check that those found there are the same.

    Raises:
        InputError: the folder holds answers to other settings, or to these and neither `resume` nor `overwrite` is
            given.
    """
    path = folder / SETTINGS
    if path.exists() and not overwrite:
        found = read_json(path)
        there = found.get("identity") if isinstance(found, dict) else None
        if not isinstance(there, dict):
            raise MlxmathError(f"{path} is damaged; choose another --output-path, or start anew with --overwrite.")
        if different := [name for name in {**identity, **there} if there.get(name) != identity.get(name)]:
            name = different[0]
            raise InputError(
                f"{folder} holds answers to other settings ({name}: {str(there.get(name))[:60]!r} there, "
                f"{str(identity.get(name))[:60]!r} here); choose another --output-path, or replace it with --overwrite."
            )
        if not resume:
            raise InputError(f"{folder} holds answers already; use them with --resume, or start anew with --overwrite.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESPONSES).unlink(missing_ok=True)
    atomic_json(path, {"format": _FORMAT, "identity": dict(identity)})


class Responses:
    """The answers in a folder that were made with one fingerprint. Only where each stands is kept in memory."""

    def __init__(self, file: IO[bytes], path: Path, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.prompt_tokens = self.completion_tokens = 0
        self.left_out = 0
        """Lines that were half-written, damaged or of another fingerprint."""
        self._file, self._path = file, path
        self._offsets: dict[tuple[str, int], int] = {}
        self._unsynced, self._synced = 0, time.monotonic()
        self._scan()

    def _scan(self) -> None:
        self._file.seek(0)
        offset, line = 0, b"\n"
        for line in self._file:
            response = parse(line)
            if response is None or response.fingerprint != self.fingerprint:
                self.left_out += bool(line.strip())
            else:
                self._note(response, offset)
            offset += len(line)
        if not line.endswith(b"\n"):  # killed while writing it: the next line begins anew
            self._file.write(b"\n")
            self._file.flush()

    def _note(self, response: Response, offset: int) -> None:
        key = (response.key, response.sample)
        if key not in self._offsets:
            self._offsets[key] = offset
            self.prompt_tokens += response.prompt_tokens
            self.completion_tokens += response.completion_tokens

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def get(self, key: tuple[str, int]) -> Response | None:
        """The answer to a task, read from the file."""
        if key not in self._offsets:
            return None
        self._file.seek(self._offsets[key])
        return parse(self._file.readline())

    def append(self, response: Response) -> None:
        """Write an answer and hand it to the system: a killed process loses nothing, a dead machine a few seconds."""
        with disk_errors(self._path):
            offset = self._file.seek(0, os.SEEK_END)
            self._file.write((json.dumps(asdict(response), ensure_ascii=False) + "\n").encode("utf-8", "replace"))
            self._file.flush()
            self._unsynced += 1
            if self._unsynced >= _SYNC_COUNT or time.monotonic() - self._synced > _SYNC_SECONDS:
                self.sync()
        self._note(response, offset)

    def sync(self) -> None:
        """Wait until the disk has everything."""
        os.fsync(self._file.fileno())
        self._unsynced, self._synced = 0, time.monotonic()


@contextmanager
def open_responses(folder: Path, fingerprint: str) -> Iterator[Responses]:
    """The answers in a folder, open for more; no other process can open them meanwhile.

    Raises:
        InputError: another process has them open.
    """
    path = folder / RESPONSES
    with disk_errors(path):
        file = path.open("a+b")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder}: another process is distilling into it; wait for it or choose another --output-path."
            ) from None
        responses = Responses(file, path, fingerprint)
        yield responses
        with disk_errors(path):
            responses.sync()


def parse(line: bytes) -> Response | None:
    """A line as an answer; None if it is not a whole one."""
    return read_record(Response, line)
