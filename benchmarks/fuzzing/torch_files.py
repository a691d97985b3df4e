"""Damage to PyTorch's files: in the zip, in its pickle, in what the pickle says of tensors, and pickles that call."""

import io
import struct
import zipfile
import zlib
from random import Random

import numpy as np

from benchmarks.fuzzing.mutations import CODE, NUMBERS, TEXTS, damaged_bytes
from tests.weights.handmade import (
    llama_arrays,
    name,
    number,
    numbers,
    state_dict,
    storage,
    tensor,
    text,
    zip_file,
)

_CALLS = (
    ("os", "system", text("touch canary")),
    ("posix", "system", text("touch canary")),
    ("nt", "system", text("touch canary")),
    ("builtins", "eval", text(CODE)),
    ("builtins", "exec", text(CODE)),
    ("__builtin__", "eval", text(CODE)),
    ("subprocess", "check_output", text("touch")),
    ("runpy", "run_path", text("x.py")),
    ("importlib", "import_module", text("this")),
    ("torch.hub", "load", text("x")),
    ("torch", "load", text("x")),
    ("torch.storage", "_load_from_bytes", b"C\x04" + b"cos\n"),
    ("numpy", "load", text("x")),
    ("builtins", "getattr", text("__class__")),
    ("operator", "attrgetter", text("__globals__")),
    ("collections", "OrderedDict", number(10**9)),
    ("builtins", "bytearray", number(1 << 40)),
    ("torch._utils", "_rebuild_tensor_v2", number(1)),
    ("torch._utils", "_rebuild_parameter", text("x")),
    ("torch._utils", "_rebuild_tensor_v2.__globals__", text("x")),
    ("mlxmath.weights.torch_pickle", "StateDict", text("x")),
)


def damaged_torch(random: Random, data: bytes) -> bytes:
    """A .bin of the layout since PyTorch 1.6."""
    ways = (
        _anywhere,
        _anywhere,
        _in_the_pickle,
        _in_the_pickle,
        _numbers,
        _numbers,
        _numbers,
        _calling,
        _calling,
        _zip,
    )
    return random.choice(ways)(random, data)


def _anywhere(random: Random, data: bytes) -> bytes:
    if random.random() < 0.5:
        return damaged_bytes(random, data)
    tail = 2000  # where a zip says what it holds
    return data[:-tail] + damaged_bytes(random, data[-tail:])


def _entries(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {entry: archive.read(entry) for entry in archive.namelist()}


def _written(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return buffer.getvalue()


def _in_the_pickle(random: Random, data: bytes) -> bytes:
    """Other opcodes, in a whole zip."""
    entries = _entries(data)
    return _written(entries | {"model/data.pkl": damaged_bytes(random, entries["model/data.pkl"])})


def _extreme(random: Random, usual: int) -> int:
    found = random.choice((*(n for n in NUMBERS if isinstance(n, int)), usual * 2, usual + 1, -usual))
    return max(min(found, 2**126), -(2**126))


def _numbers(random: Random, _: bytes) -> bytes:
    """Tensors whose shape, stride, place or length cannot be."""
    arrays = llama_arrays()
    entries, storages = {}, {}
    chosen = random.choice(list(arrays))
    for key, (label, array) in enumerate(arrays.items()):
        shape, count, offset = array.shape, array.size, 0
        stride: tuple[int, ...] = tuple(step // array.itemsize for step in array.strides)
        dtype = str(array.dtype)
        if label == chosen:
            which = random.randrange(7)
            at = random.randrange(len(shape))
            if which == 0:
                shape = (*shape[:at], _extreme(random, shape[at]), *shape[at + 1 :])
            elif which == 1:
                stride = (*stride[:at], _extreme(random, stride[at]), *stride[at + 1 :])
            elif which == 2:
                offset = _extreme(random, 1)
            elif which == 3:
                count = _extreme(random, count)
            elif which == 4:
                shape, stride = random.choice((((), ()), (shape, stride[:-1]), (shape * 40, stride * 40), ((0,), (1,))))
            elif which == 5:
                dtype = random.choice(("float32", "int64", "bool", "complex64", "qint8", "bfloat16"))
            else:
                array = random.choice((array * np.float16("nan"), array + np.float16("inf"), array[:1]))
        entries[label] = tensor(str(key), dtype, count, shape, stride, offset)
        storages[str(key)] = array.tobytes()
    if random.random() < 0.2:
        entries[random.choice(TEXTS[:28]).encode("utf-8", "replace").decode()] = entries[chosen]
    return zip_file(state_dict(entries), storages)


def _calling(random: Random, data: bytes) -> bytes:
    """Pickles that ask for what no state dict needs."""
    module, attribute, argument = random.choice(_CALLS)
    called = name(module, attribute) + b"(" + argument + b"tR"
    ways = (
        called,
        name(module, attribute) + argument + b"\x85R",
        b"(" + argument + f"i{module}\n{attribute}\n".encode(),
        b"(" + name(module, attribute) + argument + b"o",
        name(module, attribute) + b"(" + argument + b"t\x81",
        name("collections", "OrderedDict") + b")R}" + text("x") + called + b"sb",
        text(module) + text(attribute) + b"\x93(" + argument + b"tR",
        b"\x82\x01",
        b"P" + b"os\n",
        b"(" + text("storage") + name(module, attribute) + text("0") + text("cpu") + number(1) + b"tQ",
        storage("0", "float32", 1) * 3,
        b"(" * 100_000,
        b"]" + b"]\x94a" * 2000,
        number(1) + b"p99999999999\n",
        b"\x8d" + struct.pack("<Q", 2**60),
        b"\x96" + struct.pack("<Q", 2**40),
        b"I" + b"9" * 10_000 + b"\n",
        b"F1e999999\n",
        numbers(tuple(range(3000))),
    )
    pickled = state_dict({"model.embed_tokens.weight": random.choice(ways)})
    return _written(_entries(data) | {"model/data.pkl": pickled})


def _zip(random: Random, data: bytes) -> bytes:
    """Zips that are not what PyTorch writes."""
    entries = _entries(data)
    big = b"\0" * (30 << 20)
    label = random.choice(list(entries))
    without = {entry: content for entry, content in entries.items() if entry != label}
    return random.choice((
        lambda: _written(entries, zipfile.ZIP_DEFLATED),
        lambda: _written(entries, zipfile.ZIP_BZIP2),
        lambda: _written(without),
        lambda: _written(without | {label.replace("model", "../model"): entries[label]}),
        lambda: _written(without | {label.replace("/", "\\"): entries[label]}),
        lambda: _written(without | {label + "\x1b[31m": entries[label]}),
        lambda: _written(entries | {"model/data.pkl": big}, zipfile.ZIP_DEFLATED),
        lambda: _written(entries | {"model/version": big}, zipfile.ZIP_DEFLATED),
        lambda: _written(entries | {"model/byteorder": b"big"}),
        lambda: _written(dict.fromkeys(entries, b"")),
        lambda: _written({}),
        lambda: _written({f"other/{number}": b"" for number in range(5000)}),
        lambda: _written(entries) + data,
        lambda: data + b"PK\x05\x06" + b"\xff" * 18,
        lambda: zlib.compress(data),
    ))()  # fmt: skip
