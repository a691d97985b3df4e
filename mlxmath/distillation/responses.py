"""What a teacher has answered: a JSON line each, written as it comes, never written twice, never rewritten.

A folder holds `settings.json` and `responses.jsonl`. Each line names the fingerprint of the teacher and of the way it
was asked; lines of another fingerprint do not count. How many samples and which problems are asked for may change from
run to run: what is there is used.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import warn
from mlxmath.runtime.files import disk_errors, own_file, write_all
from mlxmath.runtime.locks import locked
from mlxmath.runtime.sealed import lines_of, read_record, sealed_json, sealed_line, unsealed_json

SETTINGS, RESPONSES = "settings.json", "responses.jsonl"
_FORMAT = 1
_SYNC_EVERY_S = 5.0


@dataclass(frozen=True)
class Response:
    """A teacher's solution to a problem, before it is judged."""

    fingerprint: str
    key: str
    """Of the problem: `Question.key`. Solutions to one problem compete."""
    sample: int
    id: str
    problem: str
    answer: str
    """The gold answer."""
    response: str
    """The solution, its reasoning before it as `<think>…</think>`."""
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    seconds: float = 0.0
    attempts: int = 1
    """Requests that it took."""


def identify(identity: Mapping[str, Any]) -> str:
    """16 hex digits of everything that answers depend on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def answered_by(folder: Path) -> tuple[str, str]:
    """The name of the model at an endpoint, else "teacher", and the fingerprint of the answers that count in a folder.

    Raises:
        MlxmathError: settings.json is absent or damaged.
    """
    identity = unsealed_json(folder / SETTINGS, ("format", "identity")).get("identity")
    if not isinstance(identity, dict):
        raise MlxmathError(f"{folder / SETTINGS} is damaged: it does not say who answered.")
    return str(identity["model"]) if "url" in identity and "model" in identity else "teacher", identify(identity)


def read_responses(folder: Path) -> list[Response]:
    """The answers in a folder, each once, while somebody may be writing more.

    Raises:
        MlxmathError: settings.json is absent or damaged.
    """
    _, own = answered_by(folder)
    found: dict[tuple[str, int], Response] = {}
    with (folder / RESPONSES).open("rb") as file:
        for line in lines_of(file):
            response = read_record(Response, line)
            if response is not None and response.fingerprint == own:
                found.setdefault((response.key, response.sample), response)
    return list(found.values())


@contextmanager
def open_responses(
    folder: Path, identity: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False
) -> Iterator["Responses"]:
    """The answers in a folder, open for more; no other process can open them meanwhile.

    Args:
        folder: made if it is not there.
        identity: everything that answers depend on; written to the folder, or compared with what it holds.
        resume: use the answers that are there.
        overwrite: remove them.

    Raises:
        InputError: another process is distilling into the folder, or it holds answers to other settings, or to these
            and neither `resume` nor `overwrite` is given. Nothing was changed.
    """
    path = folder / RESPONSES
    with locked(folder, "--output-path", "mlxmath distill"), ExitStack() as opened:
        with disk_errors(path):
            file = opened.enter_context(own_file(path))
            if overwrite:
                file.truncate(0)
            is_new = overwrite or not ((folder / SETTINGS).exists() or file.tell())
            is_known = not is_new and _holds(folder, identity, resume=resume)
            reader = opened.enter_context(path.open("rb"))
        responses = Responses(file, reader, path, identify(identity))
        if responses.left_out and not responses and not is_known:
            raise _damaged(folder, "none of the answers beside it is to these settings")
        if not is_known:
            sealed_json(folder / SETTINGS, {"format": _FORMAT, "identity": dict(identity)})
        yield responses
        responses.sync()


def _holds(folder: Path, identity: Mapping[str, Any], *, resume: bool) -> bool:
    """Whether settings.json is whole, and of these settings; without it each answer still says what it belongs to."""
    path = folder / SETTINGS
    try:
        there: Any = unsealed_json(path, ("format", "identity")).get("identity")
    except MlxmathError:
        there = None
    if not isinstance(there, dict):
        if not resume:
            raise _damaged(folder, "use the answers beside it that are to these settings with --resume")
        warn(f"{path} is damaged or gone; the answers beside it that are to these settings count")
        return False
    if name := next((name for name in {**identity, **there} if there.get(name) != identity.get(name)), None):
        raise InputError(
            f"{folder} holds answers to other settings ({name}: {str(there.get(name))[:60]!r} there, "
            f"{str(identity.get(name))[:60]!r} here); choose another --output-path, or replace it with --overwrite."
        )
    if not resume:
        raise InputError(f"{folder} holds answers already; use them with --resume, or start anew with --overwrite.")
    return True


def _damaged(folder: Path, what: str) -> MlxmathError:
    return MlxmathError(
        f"{folder / SETTINGS} is damaged or gone; {what}; choose another --output-path, or start anew with --overwrite."
    )


class Responses:
    """The answers in a folder that were made with one fingerprint. Only where each stands is kept in memory."""

    def __init__(self, file: IO[bytes], reader: BinaryIO, path: Path, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.prompt_tokens = self.completion_tokens = 0
        self.left_out = 0
        """Lines that were half-written, damaged or of another fingerprint."""
        self._file, self._reader, self._path = file, reader, path
        self._offsets: dict[tuple[str, int], int] = {}
        self._synced_s = time.monotonic()
        offset, line = 0, b"\n"
        for line in reader:
            response = read_record(Response, line)
            if response is None or response.fingerprint != fingerprint:
                self.left_out += bool(line.strip())
            else:
                self._note(response, offset)
            offset += len(line)
        if not line.endswith(b"\n"):  # killed while writing it: the next line begins anew
            self._write(b"\n")

    def _note(self, response: Response, offset: int) -> None:
        if self._offsets.setdefault((response.key, response.sample), offset) == offset:
            self.prompt_tokens += response.prompt_tokens
            self.completion_tokens += response.completion_tokens or 0

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def get(self, key: tuple[str, int]) -> Response | None:
        """The answer to a task, read from the file."""
        if key not in self._offsets:
            return None
        self._reader.seek(self._offsets[key])
        return read_record(Response, self._reader.readline())

    def append(self, response: Response) -> None:
        """Write an answer and hand it to the system: a killed process loses nothing, a dead machine a few seconds.

        Raises:
            MlxmathError: the disk is full. What could be written is not counted, and left out when it is read again.
        """
        offset = self._write(sealed_line(asdict(response)))
        if time.monotonic() - self._synced_s > _SYNC_EVERY_S:
            self.sync()
        self._note(response, offset)

    def sync(self) -> None:
        """Wait until the disk has everything."""
        with disk_errors(self._path):
            os.fsync(self._file.fileno())
        self._synced_s = time.monotonic()

    def _write(self, line: bytes) -> int:
        """Append bytes; where they begin."""
        with disk_errors(self._path):
            offset = self._file.seek(0, os.SEEK_END)
            write_all(self._file, line)
        return offset
