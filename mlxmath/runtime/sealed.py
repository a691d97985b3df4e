"""What a later run reads back: JSON with a checksum over all of it, a file or a line.

A file that no longer fits its checksum is an error, a line that does not is left out. What has no checksum is of an
earlier version, or of another program.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from mlxmath.errors import MlxmathError
from mlxmath.runtime.files import atomic_json, fits, kinds, parse_json, read_json

T = TypeVar("T")
_SUM = "checksum"
_DIGITS = 16
_MOST_LINE_BYTES = 32_000_000
_END = b'"}\n'
_BEFORE = -len(f', "{_SUM}": "') - _DIGITS - len(_END)
"""Where the checksum of a line begins."""


def sealed_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object as JSON with a checksum over all of it, for `unsealed_json`."""
    atomic_json(path, value | {_SUM: _checksum(value)})


def unsealed_json(path: Path, unsealed: Collection[str] | None) -> dict[str, Any]:
    """Read what `sealed_json` wrote.

    Args:
        path: the file.
        unsealed: names of which an object without a checksum may have no others, as one of an earlier version has
            (None: it may have any).

    Raises:
        MlxmathError: the file is absent or damaged.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise MlxmathError(f"{path} is damaged: it is no object of JSON")
    if _SUM in value:
        if value.pop(_SUM) != _checksum(value):
            raise MlxmathError(f"{path} is damaged: its checksum is not that of what it holds")
    elif unsealed is not None and not value.keys() <= set(unsealed):
        raise MlxmathError(f"{path} is damaged: it has no checksum")
    return value


def resealed(value: Any) -> Any:
    """A JSON value that was changed, with the checksum of what it holds now if it had one."""
    if not isinstance(value, dict) or _SUM not in value:
        return value
    rest = {name: inner for name, inner in value.items() if name != _SUM}
    return rest | {_SUM: _checksum(rest)}


def _checksum(value: dict[str, Any]) -> str:
    read_back = json.loads(json.dumps(value))  # keys are text then
    return hashlib.sha256(json.dumps(read_back, sort_keys=True).encode()).hexdigest()


def sealed_line(value: dict[str, Any]) -> bytes:
    """An object as a line of JSON with a checksum over it. Half a character, which has no bytes, becomes "?"."""
    data = _as_bytes(value)
    return data[:-1] + f', "{_SUM}": "{_short(data)}"}}\n'.encode()


def unsealed_line(line: bytes) -> dict[str, Any] | None:
    """The object in a line; None if it is none, or not what was written."""
    try:
        value = parse_json(line)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    checksum = value.pop(_SUM, None)
    if checksum is None or (line.endswith(_END) and checksum == _short(line[:_BEFORE] + b"}")):
        return value  # as `sealed_line` wrote it, which is quicker found than by writing it again
    return value if checksum == _short(_as_bytes(value)) else None


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one too long to be ours, which could fill the memory, its pieces."""
    return iter(partial(file.readline, _MOST_LINE_BYTES), b"")


def read_record(kind: Callable[..., T], line: bytes) -> T | None:
    """A line as a dataclass; None unless it is an object with a value of the right type for each field."""
    row = unsealed_line(line)
    return kind(**{name: row[name] for name, _ in kinds(kind)}) if row is not None and fits(row, kind) else None


def _as_bytes(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]
