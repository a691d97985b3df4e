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
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from mlxmath.data.chunk import targets_per_row
from mlxmath.data.render import Rendered
from mlxmath.errors import MlxmathError
from mlxmath.runtime.files import atomic_file, atomic_json

FORMAT_VERSION = 4
Stats = dict[str, int | float | str]

_MAGIC = b"mlxmath rows\r\n\x1a\n"
_HEADER = struct.Struct("<16sII14Q16s32s16s")  # magic, version, token bytes, seven (offset, size), three checksums
_HEADER_BYTES = 256  # the header's own checksum ends it
_ALIGN = 64
_MAX_PICKLE_BYTES = 1 << 20
_COPY_BYTES = 1 << 22
_ARRAYS = ("tokens", "mask", "offsets", "sources", "ranks", "questions")
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
    def targets_per_row(self) -> NDArray[np.int64]:
        """(R,) targets of each row."""
        return targets_per_row(self.mask, self.offsets)

    @cached_property
    def num_targets(self) -> int:
        """Targets in all rows together."""
        return int(np.count_nonzero(self.mask))

    def save(self, path: Path) -> None:
        """Write the rows to `path`, whole or not at all.

        Raises:
            MlxmathError: the disk is full or the folder cannot be written.
        """
        assert len(self) > 0, "a cache without rows is not written"
        with write_rows(path, self.tokens.dtype) as writer:
            rows = Rendered(self.tokens, self.mask, self.offsets, self.sources)  # type: ignore[arg-type]
            writer.add(rows, num_texts=len(self) if self.sources is None else int(self.sources[-1]) + 1)
            writer.stats.update(self.stats)
            writer.ranks, writer.questions = self.ranks, self.questions

    @classmethod
    def load(cls, path: Path) -> "TokenRows":
        """Map the rows of `path` into memory; nothing is copied.

        Raises:
            CacheError: the file is not one of ours, is damaged or has another version.
            FileNotFoundError: there is no such file.
        """
        return _load(path)


def token_dtype(vocab_size: int) -> "np.dtype[Any]":
    """The smallest type that holds every token id."""
    return np.dtype(np.uint16 if vocab_size < 1 << 16 else np.uint32)


def fingerprint(key: Mapping[str, Any]) -> str:
    """The name of the cache file for rows made from `key` (values that JSON can hold): 24 hex digits."""
    text = json.dumps({"format": FORMAT_VERSION, **key}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class RowWriter:
    """Appends rows to a cache file; memory holds the batch at hand and sixteen bytes a row."""

    def __init__(self, file: BinaryIO, masks: BinaryIO, dtype: "np.dtype[Any]") -> None:
        self.stats: Stats = {}
        self.ranks: NDArray[np.int32] | None = None
        """(R,) of all rows; to be set before the end if they have any."""
        self.questions: NDArray[np.uint64] | None = None
        """(P,) of all problems; likewise."""
        self._file, self._masks, self._dtype = file, masks, dtype
        self._offsets = [np.zeros(1, np.int64)]
        self._sources: list[NDArray[np.int64]] = []
        self._num_tokens = self._num_sources = 0
        self._digest = hashlib.sha256()
        file.write(bytes(_HEADER_BYTES))

    def add(self, rows: Rendered, num_texts: int) -> None:
        """Append the rows of a batch of texts; some of these may have none."""
        self._write(np.ascontiguousarray(rows.tokens, self._dtype))
        self._masks.write(np.ascontiguousarray(rows.mask, np.uint8).data)
        self._offsets.append(rows.offsets[1:] + self._num_tokens)
        self._num_tokens += len(rows.tokens)
        sources = np.arange(len(rows.offsets) - 1) if rows.sources is None else rows.sources
        self._sources.append(sources + self._num_sources)
        self._num_sources += num_texts

    @property
    def sources(self) -> NDArray[np.int64]:
        """(R,) the text of each row, numbered from 0 over all batches."""
        return np.concatenate(self._sources)

    def finish(self) -> None:
        """Write what follows the tokens, and the header."""
        spans = [(_HEADER_BYTES, self._num_tokens * self._dtype.itemsize)]
        start = self._pad()
        self._masks.seek(0)
        while block := self._masks.read(_COPY_BYTES):
            self._digest.update(block)
            self._file.write(block)
        spans.append((start, self._num_tokens))
        start = self._pad()
        sources = self.sources
        ranks = np.zeros(len(sources), np.int32) if self.ranks is None else self.ranks
        for part in (np.concatenate(self._offsets), sources, np.ascontiguousarray(ranks, np.int32)):
            self._write(part)
            spans.append((start, part.nbytes))
            start = self._pad()
        questions = np.arange(self._num_sources, dtype=np.uint64) if self.questions is None else self.questions
        numbers = np.ascontiguousarray(questions, "<u8").tobytes()
        self._file.write(numbers)
        spans.append((start, len(numbers)))
        start = self._pad()
        value = {"stats": self.stats, **{name: pickle.PickleBuffer(b"") for name in _ARRAYS}}
        dumped = pickle.dumps(value, protocol=5, buffer_callback=lambda _: None)
        self._file.write(dumped)
        spans.append((start, len(dumped)))
        header = _HEADER.pack(
            _MAGIC,
            FORMAT_VERSION,
            self._dtype.itemsize,
            *(number for span in spans for number in span),
            _short_digest(dumped),
            self._digest.digest(),
            _short_digest(numbers),
        )
        header = header.ljust(_HEADER_BYTES - 16, b"\0")
        self._file.seek(0)
        self._file.write(header + _short_digest(header))

    def _write(self, array: NDArray[Any]) -> None:
        data = array.view(np.uint8).data
        self._file.write(data)
        self._digest.update(data)

    def _pad(self) -> int:
        """Fill up to the next aligned position."""
        position = self._file.tell()
        self._file.write(bytes(-position % _ALIGN))
        return self._file.tell()


@contextmanager
def write_rows(path: Path, dtype: "np.dtype[Any]") -> Iterator[RowWriter]:
    """Write a cache file batch by batch; it appears at `path` when the block ends without an error.

    Raises:
        MlxmathError: the disk is full or the folder cannot be written.
    """
    with atomic_file(path) as file, tempfile.TemporaryFile(dir=path.parent) as masks:
        writer = RowWriter(file, masks, dtype)
        yield writer
        writer.finish()
    with path.open("rb") as file:
        _stamp(path, os.fstat(file.fileno()))


class _PlainUnpickler(pickle.Unpickler):
    """Admits no class, no function, no reference to anything outside."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for the object {pid!r}")


def _load(path: Path) -> TokenRows:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size < _HEADER_BYTES:
            raise CacheError(path, f"{status.st_size} bytes long, shorter than a header")
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    header = bytes(view[: _HEADER_BYTES - 16])
    magic, version, itemsize, *numbers, pickle_digest, digest, questions_digest = _HEADER.unpack_from(header)
    if magic != _MAGIC:
        raise CacheError(path, "not a file of mlxmath")
    if _short_digest(header) != view[_HEADER_BYTES - 16 : _HEADER_BYTES]:
        raise CacheError(path, "its header's checksum is wrong")
    if version != FORMAT_VERSION or itemsize not in (2, 4):
        raise CacheError(path, f"format version {version}, this program reads {FORMAT_VERSION}")
    spans = list(zip(numbers[::2], numbers[1::2], strict=True))
    if any(start % _ALIGN or start < _HEADER_BYTES or start + size > status.st_size for start, size in spans):
        raise CacheError(path, "cut short: it ends before its contents do")
    if any(size == 0 or size % width for (_, size), width in zip(spans, (itemsize, 1, 8, 8, 4, 8), strict=False)):
        raise CacheError(path, "its parts have sizes that their types cannot have")
    *arrays, dumped = [view[start : start + size] for start, size in spans]
    if len(dumped) > _MAX_PICKLE_BYTES or _short_digest(dumped) != pickle_digest:
        raise CacheError(path, "its description's checksum is wrong")
    value = _unpickle(path, bytes(dumped), arrays)
    rows = TokenRows(
        tokens=np.frombuffer(value["tokens"], np.dtype(f"<u{itemsize}")),
        mask=np.frombuffer(value["mask"], np.uint8),
        offsets=np.frombuffer(value["offsets"], "<i8"),
        stats=value["stats"],
        fingerprint=digest.hex()[:16],
        sources=np.frombuffer(value["sources"], "<i8"),
        ranks=np.frombuffer(value["ranks"], "<i4"),
        questions=np.frombuffer(value["questions"], "<u8"),
    )
    _check_bounds(path, rows)
    if not _stamped(path, status):
        found = hashlib.sha256()
        *of_rows, questions = arrays  # apart, so that the same rows have the same fingerprint whatever is asked of them
        for array in of_rows:
            found.update(array)
        if found.digest() != digest or _short_digest(questions) != questions_digest:
            raise CacheError(path, "its contents' checksum is wrong")
        _stamp(path, status)
    return rows


def _unpickle(path: Path, dumped: bytes, arrays: list[memoryview]) -> dict[str, Any]:
    """The description, if it consists of plain values and refers to each array once."""
    try:
        foreign = next((op.name for op, _, _ in pickletools.genops(dumped) if op.name not in _PLAIN_OPERATIONS), None)
        if foreign is not None:
            raise CacheError(path, f"its description holds the operation {foreign}, not only plain values")
        value = _PlainUnpickler(io.BytesIO(dumped), buffers=[array.toreadonly() for array in arrays]).load()
    except (pickle.UnpicklingError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise CacheError(path, f"its description cannot be read: {error}") from None
    if not isinstance(value, dict) or set(value) != {"stats", *_ARRAYS} or not isinstance(value["stats"], dict):
        raise CacheError(path, "its description lacks a part")
    if not all(isinstance(value[name], memoryview) for name in _ARRAYS):
        raise CacheError(path, "its description does not refer to its arrays")
    for name, item in value["stats"].items():
        if not isinstance(name, str) or not isinstance(item, int | float | str):
            raise CacheError(path, "its statistics are not numbers and texts")
    return value


def _check_bounds(path: Path, rows: TokenRows) -> None:
    offsets = rows.offsets
    if len(offsets) == 0 or offsets[0] != 0 or not (np.diff(offsets) > 0).all():
        raise CacheError(path, "its row boundaries are out of order")
    if offsets[-1] != len(rows.tokens) or len(rows.tokens) != len(rows.mask):
        raise CacheError(path, "its row boundaries do not fit its tokens")
    sources = rows.sources
    if sources is None or len(sources) != len(rows) or sources[0] < 0 or not (np.diff(sources) >= 0).all():
        raise CacheError(path, "its rows' sources are out of order")
    if rows.ranks is None or len(rows.ranks) != len(rows):
        raise CacheError(path, "its rows have no ranks")
    if rows.questions is None or sources[-1] >= len(rows.questions):
        raise CacheError(path, "its rows have no questions")


def _short_digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _identity(status: os.stat_result) -> dict[str, int]:
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}


def _stamped(path: Path, status: os.stat_result) -> bool:
    """Whether this very file was verified before."""
    try:
        return bool(json.loads(path.with_suffix(".verified").read_text()) == _identity(status))
    except (OSError, ValueError):
        return False


def _stamp(path: Path, status: os.stat_result) -> None:
    with contextlib.suppress(MlxmathError):  # a cache that cannot be written is verified at every load
        atomic_json(path.with_suffix(".verified"), _identity(status))
