"""Reads and writes the safetensors format tensor by tensor (https://huggingface.co/docs/safetensors).

A file is: the header's length (8 bytes, little-endian), the header (JSON: name -> dtype, shape, data_offsets), then the
tensors' bytes side by side.
"""

import hashlib
import json
import math
import struct
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

from mlxmath.errors import MlxmathError
from mlxmath.weights.dtypes import BY_CODE, DTYPES, Array
from mlxmath.weights.tensors import TensorRef, pieces, place_tensor, row_major

MAX_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"
Declared = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape of a tensor."""


def open_safetensors(path: Path) -> dict[str, TensorRef]:
    """Where each tensor of a file lies; only the header is read.

    Raises:
        MlxmathError: the file is missing, truncated or damaged, or holds a type that MLX cannot.
    """
    header, start, size = _read_header(path)
    header.pop(_METADATA, None)
    return {name: _entry(path, name, entry, start, size) for name, entry in header.items()}


def is_mlx(path: Path) -> bool:
    """Whether a file says that its tensors are as MLX's programs have them, not as Hugging Face's.

    Raises:
        MlxmathError: the file is missing, truncated or damaged.
    """
    metadata = _read_header(path)[0].get(_METADATA)
    return isinstance(metadata, dict) and metadata.get("format") == "mlx"


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header, where the tensors' bytes begin, and the file's size."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(8)
            if prefix + file.read(15) == b"version https://git-lfs":
                raise MlxmathError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in its folder.")
            file.seek(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise MlxmathError(f"{path} is not a safetensors file, or is truncated ({size} bytes).")
            header = json.loads(file.read(length), object_pairs_hook=_without_doubles)
    except FileNotFoundError:
        raise MlxmathError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise MlxmathError(f"{path} cannot be read as a safetensors file: {error}; download it again.") from error
    if not isinstance(header, dict):
        raise MlxmathError(f"{path} has no safetensors header; download it again.")
    return header, 8 + length, size


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return result


def _entry(path: Path, name: str, entry: Any, start: int, size: int) -> TensorRef:
    fields = entry if isinstance(entry, dict) else {}
    code: Any = fields.get("dtype")
    shape: Any = fields.get("shape")
    offsets: Any = fields.get("data_offsets")
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if not isinstance(code, str) or any(type(n) is not int or not 0 <= n < 1 << 63 for n in numbers):
        raise MlxmathError(f"{path}: the header's entry for tensor {name!r} is damaged.")
    if len(offsets) != 2 or not offsets[0] <= offsets[1]:
        raise MlxmathError(f"{path}: tensor {name!r} has damaged offsets {offsets}.")
    if start + offsets[1] > size:
        raise MlxmathError(
            f"{path} is truncated: tensor {name!r} ends at byte {start + offsets[1]}, the file at {size}. "
            "Download it again."
        )
    dtype = BY_CODE.get(code, code)
    dims = tuple(shape)
    region = (start + offsets[0], offsets[1] - offsets[0])
    reference = place_tensor(path, name, dtype, dims, row_major(dims), element=0, storage=region)
    if reference.num_bytes != region[1]:
        raise MlxmathError(
            f"{path}: tensor {name!r} of shape {dims} should take {reference.num_bytes} bytes, not {region[1]}."
        )
    return reference


def _num_bytes(tensor: Declared) -> int:
    return DTYPES[tensor[1]].itemsize * math.prod(tensor[2])


def _head(tensors: Sequence[Declared], form: str = "mlx") -> tuple[bytes, int]:
    """What stands in a file before the tensors' bytes, and how many these are."""
    header: dict[str, Any] = {_METADATA: {"format": form}}
    position = 0
    for name, dtype, shape in tensors:
        start, position = position, position + _num_bytes((name, dtype, shape))
        header[name] = {"dtype": DTYPES[dtype].code, "shape": list(shape), "data_offsets": [start, position]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, position


def write_hollow(path: Path, tensors: Sequence[Declared]) -> None:
    """Write a file that has the header of these tensors, and a hole where their bytes would be."""
    head, num_bytes = _head(tensors)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + num_bytes)


class SafetensorsWriter:
    """Writes one file: the header at once, then the tensors' bytes in the order in which they were declared.

    Use as a context manager; `num_bytes`, `sha256` and `digests` describe the finished file.
    """

    def __init__(self, path: Path, tensors: Sequence[Declared], form: str = "mlx") -> None:
        """
        Args:
            path: the file to write.
            tensors: (name, dtype, shape) of each.
            form: whose tensors they are, as the metadata say.
        """
        head, num_bytes = _head(tensors, form)
        self._file = path.open("wb", buffering=0)
        self._hash = hashlib.sha256()
        self._names = [name for name, _, _ in tensors]
        self._contents = _content_hashes(tensors)
        self._ends = list(accumulate((_num_bytes(tensor) for tensor in tensors), initial=len(head)))[1:]
        self._beside = ThreadPoolExecutor(1)  # hashing takes as long as writing
        self._path = path
        self._expected = len(head) + num_bytes
        self.num_bytes = 0
        self._write(head)

    def write(self, block: Array) -> None:
        """Append the bytes of a contiguous array, all of one tensor."""
        if not block.size:
            return
        data = memoryview(block.reshape(-1).view("u1").data)
        number = bisect_right(self._ends, self.num_bytes)
        assert self.num_bytes + len(data) <= self._ends[number], "more bytes than the tensor has"
        digested = self._beside.submit(self._contents[self._names[number]].update, data)
        self._write(data)
        digested.result()

    def _write(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        rest = memoryview(data)
        self.num_bytes += len(rest)
        while rest:
            rest = rest[self._file.write(rest) :]

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of what was written."""
        return self._hash.hexdigest()

    @property
    def digests(self) -> dict[str, str]:
        """Name of each tensor -> hex SHA-256 of its type, shape and bytes."""
        return {name: content.hexdigest() for name, content in self._contents.items()}

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._beside.shutdown()
        self._file.close()
        assert kind is not None or self.num_bytes == self._expected, f"{self._path} was not written whole"


def _content_hashes(tensors: Sequence[Declared]) -> dict[str, Any]:
    """Name of each tensor -> SHA-256 of its type and shape, to be continued with its bytes."""
    return {name: hashlib.sha256(json.dumps([dtype, list(shape)]).encode()) for name, dtype, shape in tensors}


def digest_file(path: Path, tensors: Mapping[str, TensorRef]) -> tuple[str, dict[str, str]]:
    """Hex SHA-256 of a safetensors file, and those of its tensors as `SafetensorsWriter.digests`, in one pass.

    Raises:
        MlxmathError: the file cannot be read, or is shorter than it was.
    """
    ordered = sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.num_bytes))
    whole = hashlib.sha256()
    contents = _content_hashes([(tensor.name, tensor.dtype, tensor.shape) for tensor in ordered])
    for name, data in pieces(path, {tensor.name: (tensor.offset, tensor.num_bytes) for tensor in ordered}):
        whole.update(data)
        if name is not None:
            contents[name].update(data)
    return whole.hexdigest(), {name: content.hexdigest() for name, content in contents.items()}
