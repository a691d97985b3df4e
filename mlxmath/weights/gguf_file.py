"""The header of a GGUF file: metadata, and where each tensor lies. Every count, size and offset is checked before use.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Read by hand, since gguf's own reader believes
the numbers that it finds (a count of 2^60 ends in a lack of memory, an offset past the end in an empty array), and is
some 25 times slower on a vocabulary of 150,000.
"""

import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mlxmath.errors import MlxmathError
from mlxmath.weights.tensors import MAX_DIMENSIONS

MAGIC = b"GGUF"
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_SMALLEST_ENTRY = 8 + 1 + 4 + 1
"""Bytes of a metadata entry: length and text of its key, its type, its value."""
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8
_MAX_STRING = 16 << 20
_MAX_HEADER = 512 << 20
"""Of real models, a vocabulary of 262,144 with its scores takes some 10 MB."""
_MAX_ALIGNMENT = 1 << 20
_OF_SEVERAL = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in a file, not yet read.

    Attributes:
        path: the file.
        name: as the file has it.
        kind: name of its type in ggml: "F32", "Q4_0", ...
        shape: rows first, as everywhere but in the file itself.
        offset: position of its first byte in the file.
        num_bytes: that it takes there.
    """

    path: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class GgufFile:
    """A model in one GGUF file, or in several of one set.

    Attributes:
        paths: the files.
        metadata: of the first.
        tensors: of all, by name.
    """

    paths: tuple[Path, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def open_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file, and of the others of its set (`...-00001-of-00003.gguf`).

    Raises:
        MlxmathError: a file is no GGUF, of a version that is not read, damaged, cut off, or missing.
    """
    metadata, tensors = _read(path)
    paths = [path]
    count = metadata.get("split.count", 1)
    found = _OF_SEVERAL.fullmatch(path.name)
    if type(count) is not int or count > 1 or found:
        if found is None or type(count) is not int or count != int(found[3]):
            raise MlxmathError(
                f"{path}: its header says that it is one of {count!r} files, its name says otherwise; expected names "
                "like model-00001-of-00003.gguf. Give the files their own names again."
            )
        paths = [path.with_name(f"{found[1]}-{number:05d}-of-{found[3]}.gguf") for number in range(1, count + 1)]
        missing = [each.name for each in paths if not each.is_file()]
        if missing:
            raise MlxmathError(f"{path} is one of {count} files, of which {', '.join(missing[:5])} are missing.")
        opened = [_read(each) for each in paths]
        metadata, tensors = opened[0][0], _joined(opened)
    if not tensors:
        raise MlxmathError(f"{path} holds no tensors; expected a model.")
    return GgufFile(tuple(paths), metadata, tensors)


def _joined(parts: Iterable[tuple[dict[str, Any], dict[str, GgufTensor]]]) -> dict[str, GgufTensor]:
    result: dict[str, GgufTensor] = {}
    for _, tensors in parts:
        for name, tensor in tensors.items():
            if name in result:
                raise MlxmathError(f"{tensor.path}: tensor {name!r} is in {result[name].path.name} too.")
            result[name] = tensor
    return result


def _read(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    try:
        with path.open("rb") as file:
            return _Header(path, file).read()
    except OSError as error:
        raise MlxmathError(f"cannot read {path}: {error.strerror or error}") from error


class _Header:
    """Reads one file's header; what is left of the file bounds every count."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._size = path.stat().st_size
        self._position = 0

    def read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        if self._bytes(4, "its first four bytes") != MAGIC:
            raise MlxmathError(f"{self._path} is no GGUF file: it does not begin with 'GGUF'.")
        version = self._number("<I")
        if version not in (2, 3):
            swapped = version & 0xFFFF == 0 and version
            what = "is written for big-endian machines" if swapped else f"is of version {version}"
            raise MlxmathError(f"{self._path} {what}; expected GGUF of version 2 or 3, little-endian. Convert it anew.")
        num_tensors, num_entries = self._number("<Q"), self._number("<Q")
        self._bounded(num_entries, _SMALLEST_ENTRY, "metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = self._string("the name of a metadata entry")
            if key in metadata:
                raise self._damaged(f"the metadata {key[:60]!r} is there twice")
            metadata[key] = self._value(key, self._number("<I"))
        self._bounded(num_tensors, _SMALLEST_TENSOR, "tensors")
        infos = [self._tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._damaged(f"its alignment is {alignment!r}, expected a power of two")
        return metadata, self._placed(infos, -(-self._position // alignment) * alignment, alignment)

    def _placed(
        self, infos: list[tuple[str, list[int], int, int]], start: int, alignment: int
    ) -> dict[str, GgufTensor]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        kinds = {int(kind): kind for kind in GGMLQuantizationType}
        tensors: dict[str, GgufTensor] = {}
        for name, dimensions, number, offset in infos:
            kind = kinds.get(number)
            if kind is None or kind not in GGML_QUANT_SIZES:
                raise MlxmathError(
                    f"{self._path}: tensor {name[:80]!r} is of ggml's type {number}, which gguf does not know; a newer "
                    "gguf (`pip install -U gguf`) may, or choose another file of the model."
                )
            if name in tensors:
                raise self._damaged(f"tensor {name[:80]!r} is there twice")
            per_block, block_bytes = GGML_QUANT_SIZES[kind]
            if dimensions[0] % per_block:
                raise self._damaged(
                    f"tensor {name[:80]!r} has rows of {dimensions[0]}, no multiple of {kind.name}'s {per_block}"
                )
            num_bytes = math.prod(dimensions) // per_block * block_bytes
            if offset % alignment:
                raise self._damaged(f"tensor {name[:80]!r} lies at {offset}, which is not aligned to {alignment}")
            if start + offset + num_bytes > self._size:
                raise MlxmathError(
                    f"{self._path} ends at {self._size:,} bytes, but tensor {name[:80]!r} reaches to "
                    f"{start + offset + num_bytes:,}: the file is cut off or damaged. Download it again."
                )
            tensors[name] = GgufTensor(
                self._path, name, kind.name, tuple(reversed(dimensions)), start + offset, num_bytes
            )
        end = 0
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise self._damaged(f"tensor {tensor.name[:80]!r} lies inside another one")
            end = tensor.offset + tensor.num_bytes
        return tensors

    def _tensor(self) -> tuple[str, list[int], int, int]:
        """Name, dimensions (columns first), number of the type and offset."""
        name = self._string("the name of a tensor")
        count = self._number("<I")
        if not 1 <= count <= MAX_DIMENSIONS:
            raise self._damaged(f"tensor {name[:80]!r} has {count} dimensions")
        dimensions = [self._number("<Q") for _ in range(count)]
        if not all(0 < n < 1 << 48 for n in dimensions) or math.prod(dimensions) >= 1 << 56:
            raise self._damaged(f"tensor {name[:80]!r} has the dimensions {dimensions}")
        return name, dimensions, self._number("<I"), self._number("<Q")

    def _value(self, key: str, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string(key)
        if kind != _ARRAY:
            raise self._damaged(f"the metadata {key[:60]!r} is of type {kind}, which GGUF does not have")
        inner, count = self._number("<I"), self._number("<Q")
        if inner == _STRING:
            self._bounded(count, 8, f"entries of {key[:60]!r}")
            return [self._string(key) for _ in range(count)]
        if inner not in _SCALARS:
            raise self._damaged(f"the metadata {key[:60]!r} is a list of type {inner}, which is not read")
        code = _SCALARS[inner][1:]
        self._bounded(count, struct.calcsize(code), f"entries of {key[:60]!r}")
        return list(struct.unpack(f"<{count}{code}", self._bytes(count * struct.calcsize(code), key)))

    def _string(self, what: str) -> str:
        count = self._number("<Q")
        if count > _MAX_STRING:
            raise self._damaged(f"{what[:60]} is a text of {count:,} bytes")
        try:
            return self._bytes(count, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged(f"{what[:60]} is no UTF-8") from None

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._bytes(struct.calcsize(code), "its header"))[0]

    def _bytes(self, count: int, what: str) -> bytes:
        if count > self._size - self._position:
            raise self._ended(what)
        if count > _MAX_HEADER - self._position:
            raise self._damaged(f"its header is of more than {_MAX_HEADER >> 20} MB")
        data = self._file.read(count)
        if len(data) != count:
            raise self._ended(what)
        self._position += count
        return data

    def _bounded(self, count: int, smallest: int, what: str) -> None:
        if count * smallest > self._size - self._position:
            raise self._damaged(f"it claims {count:,} {what}, more than the file has room for")

    def _ended(self, what: str) -> MlxmathError:
        return MlxmathError(
            f"{self._path} ends after {self._size:,} bytes, inside {what[:60]}: the file is cut off or damaged. "
            "Download it again."
        )

    def _damaged(self, what: str) -> MlxmathError:
        return MlxmathError(f"{self._path} is damaged: {what}. Download it again.")
