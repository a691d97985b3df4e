"""Damage to safetensors and GGUF files: their headers taken apart, changed and put together again."""

import json
import struct
from random import Random
from typing import Any

from benchmarks.fuzzing.mutations import NUMBERS, TEXTS, damaged_bytes, damaged_value, hostile, written

_DTYPES = ("F64", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X")
_FLOATS = {"F32": "f", "F16": "e"}


def damaged_safetensors(random: Random, data: bytes) -> bytes:
    """A file whose header says something else, whose values are no weights, or whose bytes are others."""
    kind = random.randrange(10)
    size = int.from_bytes(data[:8], "little")
    body = data[8 + size :]
    if kind < 3:
        return damaged_bytes(random, data, 8 + size)
    header = json.loads(data[8 : 8 + size])
    if kind == 3:
        entry = random.choice([one for name, one in header.items() if name != "__metadata__"])
        start, end = entry["data_offsets"]
        if form := _FLOATS.get(entry["dtype"]):
            value = random.choice(
                (float("nan"), float("inf"), 3e38 if form == "f" else 6e4, -1e30 if form == "f" else -1)
            )
            count = (end - start) // struct.calcsize(form)
            body = body[:start] + struct.pack(form, value) * count + body[end:]
        return data[: 8 + size] + body
    if kind == 4:
        text = _twice(random, header)
    elif kind < 8:
        names = [name for name in header if name != "__metadata__"]
        for name in random.sample(names, random.choice((1, 1, 2))):
            header[name] = random.choice((
                lambda entry: damaged_value(random, entry),
                lambda entry: entry | {"data_offsets": [random.choice(NUMBERS), random.choice(NUMBERS)]},
                lambda entry: entry | {"data_offsets": header[random.choice(names)]["data_offsets"]}
                if isinstance(header[names[0]], dict) else entry,
                lambda entry: entry | {"shape": [*entry["shape"], random.choice(NUMBERS)]},
                lambda entry: entry | {"shape": [random.choice(NUMBERS), *entry["shape"][1:]]},
                lambda entry: entry | {"dtype": random.choice(_DTYPES)},
                lambda entry: entry | {"dtype": hostile(random)},
            ))(header[name])  # fmt: skip
        text = written(header)
    else:
        text = written(damaged_value(random, header))
    raw = text.encode("utf-8", "replace")
    length = len(raw) if random.random() < 0.9 else random.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(raw) - 1))
    return struct.pack("<Q", length) + raw + body


def _twice(random: Random, header: dict[str, Any]) -> str:
    name = random.choice(list(header))
    return json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}"


_SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9


class _Reader:
    """Just enough to take a whole GGUF file apart."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self) -> bytes:
        size = self.number("<Q")
        self.at += size
        return self.data[self.at - size : self.at]

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.number("<I"), self.number("<Q")
            return inner, [self.value(inner) for _ in range(count)]
        return self.number(_SCALARS[kind])


def _packed(kind: int, value: Any) -> bytes:
    if kind == _TEXT:
        return struct.pack("<Q", len(value)) + value
    if kind == _ARRAY:
        return struct.pack("<IQ", value[0], len(value[1])) + b"".join(_packed(value[0], each) for each in value[1])
    return struct.pack(_SCALARS[kind], value)


def damaged_gguf(random: Random, data: bytes) -> bytes:
    """A file with other metadata, other tensors, or other bytes."""
    reader = _Reader(data)
    magic = data[:4]
    reader.at = 4
    version, num_tensors, num_entries = reader.number("<I"), reader.number("<Q"), reader.number("<Q")
    entries = []
    for _ in range(num_entries):
        key, kind = reader.text(), reader.number("<I")
        entries.append([key, kind, reader.value(kind)])
    tensors = []
    for _ in range(num_tensors):
        name, dims = reader.text(), reader.number("<I")
        shape = [reader.number("<Q") for _ in range(dims)]
        tensors.append([name, shape, reader.number("<I"), reader.number("<Q")])
    end = reader.at
    body = data[(end + 31) // 32 * 32 :]
    if random.random() < 0.3:
        return damaged_bytes(random, data, end)
    for _ in range(random.choice((1, 1, 2))):
        if random.random() < 0.55:
            _change_entry(random, entries)
        else:
            _change_tensor(random, tensors)
    if random.random() < 0.05:
        version = random.choice((0, 1, 2, 4, 2**31, 3 << 24))
    counts = [len(tensors), len(entries)]
    if random.random() < 0.05:
        counts[random.randrange(2)] = random.choice((0, 1, 2**31, 2**62, 2**64 - 1))
    head = magic + struct.pack("<IQQ", version, *counts)
    head += b"".join(
        _packed(_TEXT, key) + struct.pack("<I", kind) + _packed(kind, value) for key, kind, value in entries
    )
    for name, shape, kind, offset in tensors:
        head += _packed(_TEXT, name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
        head += struct.pack("<IQ", kind, offset)
    return head + b"\0" * (-len(head) % 32) + body


def _text(random: Random) -> bytes:
    return random.choice((random.choice(TEXTS).encode("utf-8", "surrogatepass"), b"\xff\xfe", b""))


def _whole(random: Random, bits: int = 64) -> int:
    return int(random.choice([n for n in NUMBERS if isinstance(n, int) and n >= 0])) % 2**bits


def _change_entry(random: Random, entries: list[list[Any]]) -> None:
    at = random.randrange(len(entries))
    key, kind, value = entries[at]
    action = random.randrange(10)
    if action == 0:
        del entries[at]
    elif action == 1:
        entries.append(list(entries[at]))
    elif action == 2:
        entries[at][0] = random.choice((_text(random), key + b"x", random.choice(entries)[0]))
    elif kind == _ARRAY and action < 8:
        inner, values = value
        place = random.randrange(len(values)) if values else 0
        new = _text(random) if inner == _TEXT else _scalar(random, inner)
        entries[at][2] = inner, random.choice((
            [*values[:place], new, *values[place + 1 :]], values[:place], values + values[:1], [],
            [new] * 5, values * 2,
        ))  # fmt: skip
    elif action < 8 and kind != _ARRAY:
        entries[at][2] = _text(random) if kind == _TEXT else _scalar(random, kind)
    else:
        entries[at][1], entries[at][2] = random.choice((
            (_TEXT, _text(random)), (4, _whole(random, 32)), (10, _whole(random)), (7, True), (12, float("nan")),
            (6, float("inf")), (_ARRAY, (_TEXT, [])), (_ARRAY, (4, [1, 2, 3])), (_ARRAY, (_ARRAY, [(4, [1])])),
            (11, -1),
        ))  # fmt: skip


def _scalar(random: Random, kind: int) -> Any:
    form = _SCALARS[kind]
    if form in ("<f", "<d"):
        return random.choice((0.0, -1.0, 1e30, float("nan"), float("inf"), 1e-30))
    if form == "?":
        return random.random() < 0.5
    bits = 8 * struct.calcsize(form)
    number = random.choice((_whole(random, bits), 2**bits - 1, 2 ** (bits - 1)))
    return number - 2**bits if form[-1].islower() and number >= 2 ** (bits - 1) else number


def _change_tensor(random: Random, tensors: list[list[Any]]) -> None:
    at = random.randrange(len(tensors))
    name, shape, _, offset = tensors[at]
    action = random.randrange(8)
    if action == 0:
        del tensors[at]
    elif action == 1:
        tensors.append(list(tensors[at]))
    elif action == 2:
        tensors[at][0] = random.choice((_text(random), name + b"x", random.choice(tensors)[0], b"blk.99.ffn_up.weight"))
    elif action < 5 and shape:
        place = random.randrange(len(shape))
        shape[place] = random.choice((_whole(random), shape[place] * 2, shape[place] + 1, shape[place] // 2))
    elif action == 5:
        tensors[at][1] = random.choice(([], shape * 3, [1, *shape], shape[::-1], [0], [2**32, 2**32]))
    elif action == 6:
        tensors[at][2] = random.choice((0, 1, 2, 3, 8, 10, 12, 14, 16, 24, 28, 30, 31, 34, 39, 99, 2**31))
    else:
        tensors[at][3] = random.choice((_whole(random), offset + 1, offset + 32, 0))
