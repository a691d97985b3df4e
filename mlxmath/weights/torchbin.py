"""Reads PyTorch state-dict files (`pytorch_model.bin`) without PyTorch and without running anything in them.

Two layouts: the zip archive of PyTorch 1.6 and later (`<prefix>/data.pkl`, one stored entry `<prefix>/data/<key>` for
each storage), and the older stream of pickles followed by the raw storages. Both are described by
https://github.com/pytorch/pytorch/blob/main/torch/serialization.py. Opening a file reads only its pickle.
"""

import mmap
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.errors import MlxmathError
from mlxmath.weights import pickles
from mlxmath.weights.dtypes import Array
from mlxmath.weights.tensors import TensorRef, place_tensor
from mlxmath.weights.torchtypes import ITEMSIZE, TABLE, Kind, Storage, Tensor, is_plain

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
WRAPPERS = ("state_dict", "model", "model_state_dict", "module")


@dataclass(frozen=True)
class TorchFile:
    """An opened state dict.

    Attributes:
        path: the file.
        tensors: where each tensor lies, in the state dict's order.
        num_ignored: entries that are no tensors.
    """

    path: Path
    tensors: Mapping[str, TensorRef]
    num_ignored: int

    def read(self, name: str) -> Array:
        """Read one tensor (bfloat16 as uint16 bit patterns) and no other byte of the file."""
        return self.tensors[name].read()


def open_torch(path: Path) -> TorchFile:
    """Open a state dict; its tensors are not read.

    Raises:
        MlxmathError: the file is missing, damaged, of a foreign kind, or its pickle names anything but tensors.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
            if not head:
                raise MlxmathError(f"{path} is empty.")
            if head.startswith(b"version https://git-lfs"):
                raise MlxmathError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in its folder.")
            if head[257:262] == b"ustar":
                raise MlxmathError(f"{path} has the tar layout of PyTorch before 0.2; save it again with a newer one.")
            if head.startswith(b"PK\x03\x04"):
                return _open_zip(path)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _open_legacy(path, data)
    except FileNotFoundError:
        raise MlxmathError(f"{path} does not exist.") from None
    except (OSError, zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, EOFError) as error:
        raise MlxmathError(f"{path} cannot be read as a PyTorch file ({error}); download it again.") from error


def _open_zip(path: Path) -> TorchFile:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise MlxmathError(f"{path} holds two entries of one name; it is damaged.")
    prefixes = [
        name.removesuffix("data.pkl") for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(prefixes) != 1:
        raise MlxmathError(f"{path} is a zip archive without the data.pkl of a PyTorch file.")
    prefix = prefixes[0]
    with path.open("rb") as file:

        def locate(name: str) -> tuple[int, int]:
            return _stored_entry(path, file, entries.get(prefix + name), prefix + name)

        def content(name: str, limit: int) -> bytes:
            start, size = locate(name)
            if size > limit:
                raise MlxmathError(f"{path}: its entry {name} has {size} bytes, more than any state dict's.")
            file.seek(start)
            return file.read(size)

        if prefix + "byteorder" in entries and content("byteorder", 64) != b"little":
            raise MlxmathError(f"{path} was written on a big-endian machine; save it again on a little-endian one.")
        storages: dict[str, Storage] = {}
        pickled = content("data.pkl", pickles.MAX_PICKLE_BYTES)
        value, _ = pickles.load(
            pickled, 0, where=str(path), table=TABLE, persistent=lambda found: _storage(path, found, storages)
        )
        places = {}
        for key, storage in storages.items():
            start, size = locate(f"data/{key}")
            if storage.num_elements * ITEMSIZE[storage.dtype] > size:
                raise MlxmathError(
                    f"{path}: storage {key} should have {storage.num_elements} elements of {storage.dtype} but holds "
                    f"{size} bytes; the file is damaged."
                )
            places[key] = (start, size)
    return _state_dict(path, value, places)


def _stored_entry(path: Path, file: Any, entry: zipfile.ZipInfo | None, name: str) -> tuple[int, int]:
    """Position and size of an uncompressed zip entry's bytes."""
    if entry is None:
        raise MlxmathError(f"{path} lacks its entry {name}; the file is damaged.")
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
        raise MlxmathError(
            f"{path}: its entry {name} is compressed or encrypted, which PyTorch never does; save the model again."
        )
    file.seek(0, 2)
    end = file.tell()
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise MlxmathError(f"{path}: the header of its entry {name} is damaged.")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = entry.header_offset + 30 + name_length + extra_length
    if start + entry.file_size > end:
        raise MlxmathError(f"{path} ends inside its entry {name}; the file is truncated.")
    return start, entry.file_size


def _open_legacy(path: Path, data: mmap.mmap) -> TorchFile:
    where = str(path)
    magic, position = pickles.load(data, 0, where=where, table=TABLE)
    if magic != MAGIC_NUMBER:
        raise MlxmathError(f"{path} is not a PyTorch file: neither a zip archive nor the older stream of pickles.")
    version, position = pickles.load(data, position, where=where, table=TABLE)
    system, position = pickles.load(data, position, where=where, table=TABLE)
    if version != PROTOCOL_VERSION or not isinstance(system, dict):
        raise MlxmathError(f"{path} is damaged, or of a format that PyTorch has not had up to now.")
    if system.get("little_endian") is not True:
        raise MlxmathError(f"{path} was written on a big-endian machine; save it again on a little-endian one.")
    storages: dict[str, Storage] = {}
    value, position = pickles.load(
        data, position, where=where, table=TABLE, persistent=lambda found: _storage(path, found, storages)
    )
    keys, position = pickles.load(data, position, where=where, table=TABLE)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise MlxmathError(f"{path} is damaged: its list of storages is no list of names.")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        storage = storages.get(key)
        if storage is None or key in places:
            raise MlxmathError(f"{path} is damaged: it holds an unknown storage {key[:80]!r}.")
        if position + 8 > len(data):
            raise MlxmathError(f"{path} ends before its storage {key[:80]!r}; the file is truncated.")
        (count,) = struct.unpack("<q", data[position : position + 8])
        size = count * ITEMSIZE[storage.dtype]
        if count < 0 or count != storage.num_elements or position + 8 + size > len(data):
            raise MlxmathError(
                f"{path}: storage {key[:80]!r} should have {storage.num_elements} elements of {storage.dtype}; the "
                f"file says {count} and has {len(data) - position - 8} bytes left. It is truncated or damaged."
            )
        places[key] = (position + 8, size)
        position += 8 + size
    return _state_dict(path, value, places)


def _storage(path: Path, found: Any, storages: dict[str, Storage]) -> Storage:
    """Resolve a persistent id: ("storage", class, key, device, elements[, view])."""
    if not isinstance(found, tuple) or len(found) not in (5, 6) or found[0] != "storage":
        raise MlxmathError(f"{path} refers to something that is not a storage; it was refused.")
    kind, key, count = found[1], found[2], found[4]
    if (
        not isinstance(kind, Kind)
        or kind.dtype not in ITEMSIZE
        or not isinstance(key, str)
        or not is_plain((count,))
        or count < 0
    ):
        raise MlxmathError(f"{path} is damaged: a storage's class, key or size is not one.")
    known = storages.setdefault(key, Storage(key, kind.dtype, count))
    if (known.dtype, known.num_elements) != (kind.dtype, count):
        raise MlxmathError(f"{path} is damaged: storage {key[:80]!r} is described in two ways.")
    if len(found) == 6 and found[5] is not None:  # a view of that storage
        view = found[5]
        if not isinstance(view, tuple) or len(view) != 3 or not is_plain(view[1:]) or min(view[1:]) < 0:
            raise MlxmathError(f"{path} is damaged: a view of storage {key[:80]!r} is not one.")
        if view[1] + view[2] > count:
            raise MlxmathError(f"{path} is damaged: a view reaches beyond storage {key[:80]!r}.")
        return Storage(key, kind.dtype, view[2], view[1])
    return known


def _state_dict(path: Path, value: Any, places: Mapping[str, tuple[int, int]]) -> TorchFile:
    """Name the tensors of a state dict, or of one inside a checkpoint's usual wrapper."""
    if not isinstance(value, dict):
        raise MlxmathError(f"{path} holds a {type(value).__name__}; expected a state dict (names to tensors).")
    if not any(isinstance(entry, Tensor) for entry in value.values()):
        for wrapper in WRAPPERS:
            if isinstance(value.get(wrapper), dict):
                value = value[wrapper]
                break
    tensors = {}
    for name, tensor in value.items():
        if not isinstance(tensor, Tensor):
            continue
        if not isinstance(name, str):
            raise MlxmathError(f"{path} names a tensor {type(name).__name__} {name}; expected text.")
        storage = tensor.storage
        if storage.key not in places:
            raise MlxmathError(f"{path}: tensor {name!r} has no storage in the file; it is damaged.")
        itemsize = ITEMSIZE[storage.dtype]
        start, size = places[storage.key]
        region = (start + storage.view_start * itemsize, min(size, storage.num_elements * itemsize))
        tensors[name] = place_tensor(
            path, name, tensor.dtype, tensor.shape, tensor.stride, element=tensor.element, storage=region
        )
    if not tensors:
        raise MlxmathError(f"{path} holds no tensors; expected a state dict (names to tensors).")
    return TorchFile(path, tensors, len(value) - len(tensors))
