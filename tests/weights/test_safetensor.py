import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlxmath.errors import MlxmathError
from mlxmath.weights.safetensor import SafetensorsWriter, open_safetensors

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(True),
    "empty": np.empty((0, 5), np.float16),
    "ä.c": np.arange(5, dtype=np.int64),
}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "x.safetensors")
    found = open_safetensors(tmp_path / "x.safetensors")
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name].read(), array, strict=True)


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with SafetensorsWriter(path, [(n, a.dtype.name, a.shape) for n, a in ARRAYS.items()]) as writer:
        for array in ARRAYS.values():
            writer.write(array)
    assert writer.num_bytes == path.stat().st_size
    for name, array in load_file(path).items():
        np.testing.assert_array_equal(array, ARRAYS[name], strict=True)
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert length % 8 == 0
    assert json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"] == {"format": "mlx"}


def with_header(path: Path, header: Any, data: bytes = bytes(16)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 16.0]}, "damaged"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}, "offsets"),
        ({"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}, "truncated"),
        ({"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}, "reaches 20 bytes"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}, "should take 12"),
        ({"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}, "damaged"),
        ({"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}, "beyond any memory"),
        ({"dtype": "F4", "shape": [16], "data_offsets": [0, 16]}, "type F4"),
        ([], "damaged"),
    ],
)
def test_damaged_entries_are_named(tmp_path: Path, entry: Any, message: str) -> None:
    path = with_header(tmp_path / "x.safetensors", {"w.bad": entry})
    with pytest.raises(MlxmathError, match=message) as caught:
        open_safetensors(path)
    assert "w.bad" in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("header", [b"[]", b"{", b"[" * 100_000, b'{"a":{},"a":{}}', b"\xff\xfe"])
def test_damaged_headers(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(MlxmathError, match=r"x\.safetensors"):
        open_safetensors(with_header(tmp_path / "x.safetensors", header))


def test_truncated_and_flipped_files_never_crash(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(ARRAYS, path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(MlxmathError):
            open_safetensors(path)
    rng = random.Random(0)
    for _ in range(400):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            for reference in open_safetensors(path).values():
                reference.read()
        except MlxmathError:
            pass


def test_a_file_cut_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": np.ones(1000, np.float32)}, path)
    reference = open_safetensors(path)["w"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MlxmathError, match="truncated"):
        reference.read()
    path.unlink()
    with pytest.raises(MlxmathError, match="cannot read"):
        reference.read()
