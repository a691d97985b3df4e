import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlxmath.errors import MlxmathError
from mlxmath.weights.torch_bin import open_torch
from tests.weights.handmade import (
    legacy_file,
    llama_arrays,
    name,
    number,
    numbers,
    state_dict,
    storage,
    tensor,
    text,
    torch_bin,
    zip_file,
)

FLOATS = np.arange(12, dtype=np.float32)


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "pytorch_model.bin"
        path.write_bytes(data)
        return path

    return write


def both_layouts(entries: dict[str, bytes]) -> list[bytes]:
    """The same state dict over one storage "0" of twelve floats, in the zip layout and the older one."""
    pickled = state_dict(entries)
    return [zip_file(pickled, {"0": FLOATS.tobytes()}), legacy_file(pickled, {"0": (12, FLOATS.tobytes())})]


@pytest.mark.parametrize("layout", [0, 1])
def test_every_way_to_lie_in_a_storage(put: Callable[[bytes], Path], layout: int) -> None:
    entries = {
        "plain": tensor("0", "float32", 12, (3, 4)),
        "tied": tensor("0", "float32", 12, (3, 4)),
        "transposed": tensor("0", "float32", 12, (4, 3), (1, 4)),
        "slice": tensor("0", "float32", 12, (2, 2), (4, 1), 5),
        "expanded": tensor("0", "float32", 12, (5, 2), (0, 1), 3),
        "scalar": tensor("0", "float32", 12, (), (), 7),
        "empty": tensor("0", "float32", 12, (0, 4)),
        "one": tensor("0", "float32", 12, (1, 1, 4), (99, 99, 1), 8),
    }
    file = open_torch(put(both_layouts(entries)[layout]))
    base = FLOATS.reshape(3, 4)
    expected = {
        "plain": base,
        "tied": base,
        "transposed": base.T,
        "slice": base[1:, 1:3],
        "expanded": np.broadcast_to(FLOATS[3:5], (5, 2)),
        "scalar": FLOATS[7],
        "empty": np.empty((0, 4)),
        "one": FLOATS[8:].reshape(1, 1, 4),
    }
    assert list(file.tensors) == list(expected)
    for label, array in expected.items():
        assert file.tensors[label].read().shape == array.shape
        np.testing.assert_array_equal(file.tensors[label].read(), array)
    assert file.tensors["plain"].place == file.tensors["tied"].place != file.tensors["transposed"].place


def test_blocks_of_strided_tensors_cover_all(put: Callable[[bytes], Path]) -> None:
    entries = {
        "t": tensor("0", "float32", 12, (4, 3), (1, 4)),
        "wide": tensor("0", "float32", 12, (1, 12), (12, 1)),
        "cube": tensor("0", "float32", 12, (3, 2, 2), (1, 6, 3)),
    }
    file = open_torch(put(both_layouts(entries)[0]))
    for label, reference in file.tensors.items():
        for block_bytes in (1, 4, 8, 12, 20, 1000):
            blocks = [block.copy() for block in reference.blocks(block_bytes=block_bytes)]
            assert all(block.nbytes <= max(block_bytes, 4) for block in blocks)
            np.testing.assert_array_equal(np.concatenate(blocks), file.tensors[label].read().reshape(-1))


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapped_checkpoint_and_other_entries(put: Callable[[bytes], Path], wrapper: str) -> None:
    inner = b"}(" + text("w") + tensor("0", "float32", 12, (12,)) + text("step") + number(3) + b"u"
    data = zip_file(state_dict({"epoch": number(1), wrapper: inner}), {"0": FLOATS.tobytes()})
    file = open_torch(put(data))
    assert list(file.tensors) == ["w"]
    assert file.num_ignored == 1


def test_attributes_of_an_ordered_dict_are_ignored(put: Callable[[bytes], Path]) -> None:
    entry = text("w") + tensor("0", "float32", 12, (12,))
    pickled = b"\x80\x02" + name("collections", "OrderedDict") + b")R(" + entry + b"u}" + text("_metadata") + b"}sb."
    assert list(open_torch(put(zip_file(pickled, {"0": FLOATS.tobytes()}))).tensors) == ["w"]


# What a hostile file tries. None of these names may even be looked up.
ATTACKS = {
    "reduce": name("os", "system") + b"(" + text("touch /tmp/mlxmath-pwned") + b"tR",
    "posix": name("posix", "system") + b"(" + text("touch /tmp/mlxmath-pwned") + b"tR",
    "eval": name("builtins", "eval") + b"(" + text("1") + b"tR",
    "global alone": name("builtins", "exec"),
    "dotted": name("torch", "hub.load"),
    "stack global": text("subprocess") + text("Popen") + b"\x93",
    "inst": b"(" + text("true") + b"ios\nsystem\n",
    "newobj": name("subprocess", "Popen") + b"(" + text("true") + b"t\x81",
    "load_from_bytes": name("torch.storage", "_load_from_bytes") + b"(C\x00tR",
    "setitem": name("collections", "OrderedDict") + b")R" + text("k") + name("os", "system") + b"(tRs",
    "as storage": name("torch._utils", "_rebuild_tensor_v2") + b"(" + name("os", "getcwd") + b")RtR",
    "persistent id": b"(" + text("storage") + name("os", "system") + text("0") + text("cpu") + number(1) + b"tQ",
    "module id": b"(" + text("module") + name("os", "system") + text("a") + text("b") + b"tQ",
    "numpy": name("numpy.core.multiarray", "_reconstruct"),
    "getattr": name("builtins", "getattr") + b"(" + name("os", "system") + b"tR",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("layout", [0, 1])
def test_code_is_refused_by_name(put: Callable[[bytes], Path], attack: str, layout: int) -> None:
    path = put(both_layouts({"w": tensor("0", "float32", 12, (12,)), "evil": ATTACKS[attack]})[layout])
    with pytest.raises(MlxmathError, match=r"asks for [\w.]+, .*nothing was run") as caught:
        open_torch(path)
    assert str(path) in str(caught.value)
    assert not Path("/tmp/mlxmath-pwned").exists()


OTHER_ABUSE = {
    "call a string": text("os.system") + b")R",
    "call a storage class": name("torch", "FloatStorage") + b")R",
    "build on a tensor": tensor("0", "float32", 12, (12,)) + b"}b",
    "build on a function": name("collections", "OrderedDict") + b"}b",
    "extension registry": b"\x82\x01",
    "newobj_ex": name("collections", "OrderedDict") + b")}\x92",
    "a function's own settings": name("torch._utils", "_rebuild_tensor_v2") + b"N}" + text("__defaults__") + b"Ns\x86b",
    "a far place of the memo": b"Nr\xff\xff\xff\xff" + b"h\x00",
    "more bytes than there are": b"\x8e" + struct.pack("<Q", 1 << 62),
    "a lone surrogate in a name": b"\x8c\x03\xed\xa0\x80\x8c\x01x\x93",
    "text persistent id": b"Pstorage\n",
    "unknown persistent id": text("storage") + b"Q",
    "list as key": b"}]Ns",
    "a tensor class as storage": b"("
    + text("storage")
    + name("torch", "Tensor")
    + text("0")
    + text("cpu")
    + number(1)
    + b"tQ",
    "an element type as storage": b"("
    + text("storage")
    + name("torch", "float8_e5m2")
    + text("0")
    + text("cpu")
    + number(1)
    + b"tQ",
    "wrapped twice": name("torch._tensor", "_rebuild_from_type_v2")
    + b"("
    + name("torch._tensor", "_rebuild_from_type_v2")
    + name("torch", "Tensor")
    + b")}tR",
    "huge integer in a shape": name("torch._utils", "_rebuild_tensor_v2")
    + b"("
    + storage("0", "float32", 12)
    + number(0)
    + b"(\x8b"
    + struct.pack("<i", 4000)
    + b"\x7f" * 4000
    + b"t"
    + numbers((1,))
    + b"\x89NtR",
}


@pytest.mark.parametrize("abuse", OTHER_ABUSE)
def test_other_abuse_is_an_error(put: Callable[[bytes], Path], abuse: str) -> None:
    with pytest.raises(MlxmathError):
        open_torch(put(zip_file(state_dict({"x": OTHER_ABUSE[abuse]}), {"0": FLOATS.tobytes()})))


def test_deeply_nested_values_do_not_crash(put: Callable[[bytes], Path]) -> None:
    deep = b"N" + b"\x85" * 300_000
    pickled = state_dict({"deep": deep, "w": tensor("0", "float32", 12, (12,))})
    assert open_torch(put(zip_file(pickled, {"0": FLOATS.tobytes()}))).num_ignored == 1
    with pytest.raises(MlxmathError, match="tuple as key"):
        open_torch(put(zip_file(b"\x80\x02}" + deep + b"Ns.", {})))


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((13,), (1,), 0),
        ((3, 4), (5, 1), 0),
        ((12,), (1,), 1),
        ((2,), (-1,), 4),
        ((-2,), (1,), 0),
        ((12,), (1,), -1),
        ((2,), (2**62,), 0),
        ((2**40, 2**40), (0, 0), 0),
        ((2**62,), (0,), 0),
        ((3, 4), (1,), 0),
        ((1,) * 40, (1,) * 40, 0),
    ],
)
@pytest.mark.parametrize("layout", [0, 1])
def test_a_tensor_outside_its_storage_is_named(
    put: Callable[[bytes], Path], shape: tuple[int, ...], stride: tuple[int, ...], offset: int, layout: int
) -> None:
    path = put(both_layouts({"w.bad": tensor("0", "float32", 12, shape, stride, offset)})[layout])
    with pytest.raises(MlxmathError, match=r"w\.bad") as caught:
        open_torch(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("dtype", ["complex64", "qint8"])
def test_unsupported_types_are_named(put: Callable[[bytes], Path], dtype: str) -> None:
    with pytest.raises(MlxmathError, match=f"'w' is of type {dtype}"):
        open_torch(put(zip_file(state_dict({"w": tensor("0", dtype, 1, (1,))}), {"0": bytes(8)})))


def test_foreign_files(put: Callable[[bytes], Path], tmp_path: Path) -> None:
    pickled = state_dict({"w": tensor("0", "float32", 12, (12,))})
    data = {"0": FLOATS.tobytes()}
    cases = {
        "empty": b"",
        "neither a zip": b"\x80\x02}.",
        "Git LFS": b"version https://git-lfs.example/spec/v1\noid sha256:00\nsize 3\n",
        "tar": bytes(257) + b"ustar" + bytes(300),
        "compressed": zip_file(pickled, data, compression=zipfile.ZIP_DEFLATED),
        "big-endian": zip_file(pickled, data, byteorder="big"),
        "written on a big-endian": legacy_file(pickled, {"0": (12, data["0"])}, little_endian=False),
        "lacks its entry model/data/0": zip_file(pickled, {}),
        "should have 12 elements": zip_file(pickled, {"0": bytes(40)}),
        "no tensors": zip_file(state_dict({"a": b"N"}), {}),
        "holds a list": zip_file(b"\x80\x02].", {}),
        "unknown storage": legacy_file(pickled, {"1": (12, data["0"])}),
        "the file says 11": legacy_file(pickled, {"0": (11, data["0"])}),
    }
    for message, content in cases.items():
        with pytest.raises(MlxmathError, match=message):
            open_torch(put(content))
    with pytest.raises(MlxmathError, match="does not exist"):
        open_torch(tmp_path / "absent.bin")


def test_two_entries_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "twice.bin"
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        for value in (b"\x80\x02}.", b"\x80\x02]."):
            archive.writestr("a/data.pkl", value)
    with pytest.raises(MlxmathError, match="two entries"):
        open_torch(path)


def read_all(path: Path) -> None:
    for reference in open_torch(path).tensors.values():
        if reference.num_bytes < 1 << 20:
            reference.read()


@pytest.mark.parametrize("layout", [0, 1])
def test_truncation_at_every_kind_of_place(put: Callable[[bytes], Path], layout: int) -> None:
    arrays = {label: array for label, array in llama_arrays().items() if "layers.1" not in label}
    if layout == 0:
        data = torch_bin(arrays)
    else:
        entries = {k: tensor(k, "float16", a.size, a.shape) for k, a in arrays.items()}
        data = legacy_file(state_dict(entries), {k: (a.size, a.tobytes()) for k, a in arrays.items()})
    rng = random.Random(layout)
    places = {*range(0, 600, 7), *(rng.randrange(len(data)) for _ in range(200)), len(data) - 1}
    for place in sorted(places):
        with pytest.raises(MlxmathError):
            read_all(put(data[:place]))


@pytest.mark.parametrize("layout", [0, 1])
def test_flipped_bytes_never_crash(put: Callable[[bytes], Path], layout: int) -> None:
    entries = {
        "a": tensor("0", "float32", 12, (3, 4)),
        "b": tensor("0", "float32", 12, (4, 3), (1, 4)),
        "c": name("torch._utils", "_rebuild_parameter") + b"(" + tensor("0", "float32", 12, (12,)) + b"\x88NtR",
    }
    data = both_layouts(entries)[layout]
    rng = random.Random(layout)
    failed = 0
    for _ in range(600):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        try:
            read_all(put(bytes(damaged)))
        except MlxmathError:
            failed += 1
    assert failed > 300
