"""The tokenized dataset on disk: one file, loaded by `mmap`, from which nothing but data can come.

Layout of `cache/<fingerprint>.pkl`, all parts 64-byte aligned:

    header     magic, version, place and size of each part, checksums of the pickle, the rows, the questions, the header
    tokens     uint16 or uint32 (N,)
    mask       uint8 (N,)
    offsets    int64 (R + 1,)
    sources    int64 (R,)
    ranks      int32 (R,)
    questions  uint64 (P,)
    pickle     protocol 5: {"stats": {…}, "tokens": …, "mask": …, "offsets": …, …}, the arrays out-of-band

The pickle may use only the operations that plain values need; anything else (a class, a function call) is refused
before it is read. Header, pickle and bounds are checked at every load. The arrays' checksum is checked whenever the
file is not the one (by size, time and inode) for which `<fingerprint>.verified` says that it was checked before.

Shapes: N tokens in all rows together, R rows, P problems (those of which no row is left included).
"""

import contextlib
import hashlib
import io
import json
import mmap
import os
import pickle
import pickletools
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mlxmath.errors import MlxmathError
from mlxmath.runtime.files import atomic_json

FORMAT_VERSION = 4
Stats = dict[str, int | float | str]

MAGIC = b"mlxmath rows\r\n\x1a\n"
HEADER = struct.Struct("<16sII14Q16s32s16s")  # magic, version, token bytes, seven (offset, size), three checksums
HEADER_BYTES = 256  # the header's own checksum ends it
ALIGN = 64
_MAX_PICKLE_BYTES = 1 << 20
ARRAYS = ("tokens", "mask", "offsets", "sources", "ranks", "questions")
_TYPES = ("u1", "<i8", "<i8", "<i4", "<u8")  # of the arrays after the tokens
_PLAIN_OPERATIONS = frozenset((
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
    "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "EMPTY_DICT", "SETITEM", "SETITEMS",
    "NEXT_BUFFER", "READONLY_BUFFER",
))  # fmt: skip


class CacheError(MlxmathError):
    """A cache file that cannot be used; it is to be rebuilt."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged ({reason})")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class TokenRows:
    """Tokenized rows, laid end to end; the arrays may lie in a file and cannot be written."""

    tokens: NDArray[np.uint16] | NDArray[np.uint32]
    """(N,) uint16 where the vocabulary is below 65,536, else uint32."""
    mask: NDArray[np.uint8]
    """(N,) 1 where the token is a target."""
    offsets: NDArray[np.int64]
    """(R + 1,) row r is `tokens[offsets[r]:offsets[r + 1]]`."""
    stats: Stats = field(default_factory=dict)
    """What happened on the way here."""
    fingerprint: str = ""
    """16 hex digits of the rows' SHA-256: the same for the same rows, wherever their file lies."""
    sources: NDArray[np.int64] | None = None
    """(R,) ascending, the problem of each row: rows with the same number are parts of one. None: each row is one."""
    ranks: NDArray[np.int32] | None = None
    """(R,) the lower, the earlier in training; rows of the same rank in any order. None: all have the same."""
    questions: NDArray[np.uint64] | None = None
    """(P,) hash of each problem's question, of problems without a row too. None: each problem has its own."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]:
        """Tokens (L,) and mask (L,) of row `index`, from 0."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        span = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.tokens[span], self.mask[span]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(R,) tokens of each row."""
        return np.diff(self.offsets)

    @cached_property
    def questions_of_rows(self) -> NDArray[np.uint64]:
        """(R,) hash of each row's question."""
        problems = np.arange(len(self)) if self.sources is None else self.sources
        return problems.astype(np.uint64) if self.questions is None else self.questions[problems]

    @cached_property
    def num_targets(self) -> int:
        """Targets in all rows together."""
        return int(np.count_nonzero(self.mask))

    @classmethod
    def load(cls, path: Path) -> "TokenRows":
        """Map the rows of `path` into memory; nothing is copied.

        Raises:
            CacheError: the file is not one of ours, is damaged or has another version.
            FileNotFoundError: there is no such file.
        """
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            _expect(path, status.st_size >= HEADER_BYTES, f"{status.st_size} bytes long, shorter than a header")
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        header = bytes(view[: HEADER_BYTES - 16])
        magic, version, itemsize, *numbers, pickle_digest, digest, questions_digest = HEADER.unpack_from(header)
        _expect(path, magic == MAGIC, "not a file of mlxmath")
        _expect(path, short_digest(header) == view[HEADER_BYTES - 16 : HEADER_BYTES], "its header's checksum is wrong")
        _expect(
            path,
            version == FORMAT_VERSION and itemsize in (2, 4),
            f"format version {version}, this program reads {FORMAT_VERSION}",
        )
        spans = list(zip(numbers[::2], numbers[1::2], strict=True))
        _expect(
            path,
            all(n % ALIGN == 0 and n >= HEADER_BYTES and n + size <= status.st_size for n, size in spans),
            "cut short: it ends before its contents do",
        )
        types = [np.dtype(f"<u{itemsize}"), *map(np.dtype, _TYPES)]
        _expect(
            path,
            all(size and size % dtype.itemsize == 0 for (_, size), dtype in zip(spans, types, strict=False)),
            "its parts have sizes that their types cannot have",
        )
        *parts, dumped = [view[start : start + size] for start, size in spans]
        _expect(
            path,
            len(dumped) <= _MAX_PICKLE_BYTES and short_digest(dumped) == pickle_digest,
            "its description's checksum is wrong",
        )
        value = _unpickle(path, bytes(dumped), parts)
        arrays = {name: np.frombuffer(value[name], dtype) for name, dtype in zip(ARRAYS, types, strict=True)}
        rows = cls(**arrays, stats=value["stats"], fingerprint=digest.hex()[:16])
        _check_bounds(path, **arrays)
        if not _stamped(path, status):
            found = hashlib.sha256()
            for part in parts[:-1]:  # without questions: the same rows are called the same whatever is asked of them
                found.update(part)
            _expect(
                path,
                found.digest() == digest and short_digest(parts[-1]) == questions_digest,
                "its contents' checksum is wrong",
            )
            stamp(path, status)
        return rows


class _PlainUnpickler(pickle.Unpickler):
    """Admits no class, no function, no reference to anything outside."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for the object {pid!r}")


def _unpickle(path: Path, dumped: bytes, arrays: list[memoryview]) -> dict[str, Any]:
    """The description, if it consists of plain values and refers to each array once."""
    try:
        foreign = next((op.name for op, _, _ in pickletools.genops(dumped) if op.name not in _PLAIN_OPERATIONS), None)
        _expect(path, foreign is None, f"its description holds the operation {foreign}, not only plain values")
        value = _PlainUnpickler(io.BytesIO(dumped), buffers=[array.toreadonly() for array in arrays]).load()
    except (pickle.UnpicklingError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise CacheError(path, f"its description cannot be read: {error}") from None
    _expect(
        path,
        isinstance(value, dict) and set(value) == {"stats", *ARRAYS} and isinstance(value["stats"], dict),
        "its description lacks a part",
    )
    _expect(
        path,
        all(isinstance(value[name], memoryview) for name in ARRAYS),
        "its description does not refer to its arrays",
    )
    _expect(
        path,
        all(isinstance(name, str) and isinstance(item, int | float | str) for name, item in value["stats"].items()),
        "its statistics are not numbers and texts",
    )
    return dict(value)


def _check_bounds(path: Path, tokens: Any, mask: Any, offsets: Any, sources: Any, ranks: Any, questions: Any) -> None:
    _expect(
        path,
        len(offsets) > 0 and offsets[0] == 0 and bool((np.diff(offsets) > 0).all()),
        "its row boundaries are out of order",
    )
    _expect(path, offsets[-1] == len(tokens) == len(mask), "its row boundaries do not fit its tokens")
    _expect(
        path,
        len(sources) == len(offsets) - 1 and sources[0] >= 0 and bool((np.diff(sources) >= 0).all()),
        "its rows' sources are out of order",
    )
    _expect(path, len(ranks) == len(sources), "its rows have no ranks")
    _expect(path, sources[-1] < len(questions), "its rows have no questions")


def _expect(path: Path, good: bool, reason: str) -> None:
    """Refuse a file, for this reason, that is not good."""
    if not good:
        raise CacheError(path, reason)


def short_digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _identity(status: os.stat_result) -> dict[str, int]:
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}


def _stamped(path: Path, status: os.stat_result) -> bool:
    """Whether this very file was verified before."""
    try:
        return bool(json.loads(path.with_suffix(".verified").read_text()) == _identity(status))
    except (OSError, ValueError):
        return False


def stamp(path: Path, status: os.stat_result) -> None:
    with contextlib.suppress(MlxmathError):  # a cache that cannot be written is verified at every load
        atomic_json(path.with_suffix(".verified"), _identity(status))
