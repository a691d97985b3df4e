"""Reads PyTorch state-dict files (`pytorch_model.bin`) without PyTorch and without running anything in them.

Two layouts: the zip archive of PyTorch 1.6 and later (`<prefix>/data.pkl`, one stored entry `<prefix>/data/<key>` for
each storage), and the older stream of pickles followed by the raw storages. Both are described by
https://github.com/pytorch/pytorch/blob/main/torch/serialization.py. Opening a file reads only its
pickle, as `torch_pickle.py` does.
"""

import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mlxmath.errors import MlxmathError
from mlxmath.weights.tensors import TensorRef, pieces, place_tensor
from mlxmath.weights.torch_pickle import ITEMSIZE, StateDictUnpickler, Tensor

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
WRAPPERS = ("state_dict", "model", "model_state_dict", "module")
MAX_PICKLE_BYTES = 64 << 20


class Region(NamedTuple):
    """Bytes of a file, and their CRC-32; 0 where none was written (`torch.serialization.set_crc32_options`)."""

    start: int
    size: int
    crc: int = 0


@dataclass(frozen=True)
class TorchFile:
    """An opened state dict.

    Attributes:
        tensors: where each tensor lies, in the state dict's order.
        num_ignored: entries that are no tensors.
        storages: the zip archive's storages by key; none of the older layout, which has no checksums.
    """

    tensors: Mapping[str, TensorRef]
    num_ignored: int
    storages: Mapping[str, Region]


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
            return (_open_zip if head.startswith(b"PK\x03\x04") else _open_legacy)(path, file)
    except FileNotFoundError:
        raise MlxmathError(f"{path} does not exist.") from None
    except (OSError, zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, EOFError) as error:
        raise MlxmathError(f"{path} cannot be read as a PyTorch file ({error}); download it again.") from error


def _open_zip(path: Path, file: BinaryIO) -> TorchFile:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise MlxmathError(f"{path} holds two entries of one name; it is damaged.")
    prefixes = [name[: -len("data.pkl")] for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(prefixes) != 1:
        raise MlxmathError(f"{path} is a zip archive without the data.pkl of a PyTorch file.")
    prefix = prefixes[0]

    def locate(name: str) -> Region:
        return _stored_entry(path, file, entries.get(prefix + name), prefix + name)

    def content(name: str, limit: int) -> bytes:
        region = locate(name)
        if region.size > limit:
            raise MlxmathError(f"{path}: its entry {name} has {region.size} bytes, more than any state dict's.")
        file.seek(region.start)
        data = file.read(region.size)
        if region.crc not in (0, zlib.crc32(data)):
            raise checksum_error(path, prefix + name)
        return data

    if prefix + "byteorder" in entries and content("byteorder", 64) != b"little":
        raise MlxmathError(f"{path} was written on a big-endian machine; save it again on a little-endian one.")
    pickled = StateDictUnpickler(path, io.BytesIO(content("data.pkl", MAX_PICKLE_BYTES)))
    value = pickled.load()
    regions = {key: locate(f"data/{key}") for key in pickled.storages}
    for key, storage in pickled.storages.items():
        if storage.num_elements * ITEMSIZE[storage.dtype] > regions[key].size:
            raise MlxmathError(
                f"{path}: storage {key} should have {storage.num_elements} elements of {storage.dtype} but holds "
                f"{regions[key].size} bytes; the file is damaged."
            )
    return TorchFile(*_state_dict(path, value, regions), regions)


def checksum_error(path: Path, entry: str) -> MlxmathError:
    """The error for an entry whose bytes have another CRC-32 than the archive says."""
    return MlxmathError(
        f"{path} is damaged: the checksum (CRC-32) of its entry {entry} is not the one that the archive records; "
        "download it again."
    )


def check_storages(path: Path, storages: Mapping[str, Region]) -> None:
    """Compare what a file's storages hold with the archive's checksums. They are read; for small files.

    Raises:
        MlxmathError: one has changed since it was written.
    """
    checksums = dict.fromkeys(storages, 0)
    for key, data in pieces(path, {key: (region.start, region.size) for key, region in storages.items()}):
        if key is not None:
            checksums[key] = zlib.crc32(data, checksums[key])
    for key, region in storages.items():
        if region.crc not in (0, checksums[key]):
            raise checksum_error(path, f"data/{key}")


def _stored_entry(path: Path, file: BinaryIO, entry: zipfile.ZipInfo | None, name: str) -> Region:
    """Where an uncompressed zip entry's bytes lie."""
    if entry is None:
        raise MlxmathError(f"{path} lacks its entry {name}; the file is damaged.")
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
        raise MlxmathError(
            f"{path}: its entry {name} is compressed or encrypted, which PyTorch never does; save the model again."
        )
    end = file.seek(0, 2)
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise MlxmathError(f"{path}: the header of its entry {name} is damaged.")
    start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))  # after its name and extra fields
    if start + entry.file_size > end:
        raise MlxmathError(f"{path} ends inside its entry {name}; the file is truncated.")
    return Region(start, entry.file_size, entry.CRC)


def _open_legacy(path: Path, file: BinaryIO) -> TorchFile:
    end = file.seek(0, 2)
    with mmap.mmap(file.fileno(), min(end, MAX_PICKLE_BYTES), access=mmap.ACCESS_READ) as head:
        if StateDictUnpickler(path, head).load() != MAGIC_NUMBER:
            raise MlxmathError(f"{path} is not a PyTorch file: neither a zip archive nor the older stream of pickles.")
        version, system = (StateDictUnpickler(path, head).load() for _ in range(2))
        if version != PROTOCOL_VERSION or not isinstance(system, dict):
            raise MlxmathError(f"{path} is damaged, or of a format that PyTorch has not had up to now.")
        if system.get("little_endian") is not True:
            raise MlxmathError(f"{path} was written on a big-endian machine; save it again on a little-endian one.")
        pickled = StateDictUnpickler(path, head)
        value, keys = pickled.load(), StateDictUnpickler(path, head).load()
        position = head.tell()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise MlxmathError(f"{path} is damaged: its list of storages is no list of names.")
    regions: dict[str, Region] = {}
    for key in keys:
        storage = pickled.storages.get(key)
        if storage is None or key in regions:
            raise MlxmathError(f"{path} is damaged: it holds an unknown storage {key[:80]!r}.")
        if position + 8 > end:
            raise MlxmathError(f"{path} ends before its storage {key[:80]!r}; the file is truncated.")
        file.seek(position)
        (count,) = struct.unpack("<q", file.read(8))
        size = count * ITEMSIZE[storage.dtype]
        if count < 0 or count != storage.num_elements or position + 8 + size > end:
            raise MlxmathError(
                f"{path}: storage {key[:80]!r} should have {storage.num_elements} elements of {storage.dtype}; the "
                f"file says {count} and has {end - position - 8} bytes left. It is truncated or damaged."
            )
        regions[key] = Region(position + 8, size)
        position += 8 + size
    return TorchFile(*_state_dict(path, value, regions), {})


def _state_dict(path: Path, value: Any, regions: Mapping[str, Region]) -> tuple[dict[str, TensorRef], int]:
    """Place the tensors of a state dict, or of one inside a checkpoint's usual wrapper; and how much else it holds."""
    if not isinstance(value, dict):
        raise MlxmathError(f"{path} holds a {type(value).__name__}; expected a state dict (names to tensors).")
    if not any(isinstance(entry, Tensor) for entry in value.values()):
        value = next((value[name] for name in WRAPPERS if isinstance(value.get(name), dict)), value)
    tensors = {}
    for name, tensor in value.items():
        if not isinstance(tensor, Tensor):
            continue
        if not isinstance(name, str) or not name.isprintable():
            raise MlxmathError(f"{path} names a tensor {type(name).__name__} {name!a:.80}; expected text.")
        storage = tensor.storage
        if storage.key not in regions:
            raise MlxmathError(f"{path}: tensor {name!r} has no storage in the file; it is damaged.")
        itemsize, region = ITEMSIZE[storage.dtype], regions[storage.key]
        place = (region.start + storage.view_start * itemsize, min(region.size, storage.num_elements * itemsize))
        tensors[name] = place_tensor(
            path, name, tensor.dtype, tensor.shape, tensor.stride, element=tensor.element, storage=place
        )
    if not tensors:
        raise MlxmathError(f"{path} holds no tensors; expected a state dict (names to tensors).")
    return tensors, len(value) - len(tensors)
