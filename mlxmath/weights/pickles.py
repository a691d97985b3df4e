"""Interprets the pickle inside a PyTorch file without running anything.

Python's own unpickler imports and calls whatever a pickle names. This one is a small stack machine that knows the
opcodes (https://github.com/python/cpython/blob/main/Lib/pickletools.py describes them) but resolves names only through
the caller's table, and calls only the functions that the table holds. It never imports, never builds a class of
someone else's, and never recurses.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any, NoReturn

from mlxmath.errors import MlxmathError

MAX_PICKLE_BYTES = 64 << 20
HASHABLE = (str, int, float, bytes, type(None))


class StateDict(dict[Any, Any]):
    """What an `OrderedDict` of the pickle becomes. Attributes set on it (`_metadata`) are ignored."""


@dataclass(frozen=True)
class Call:
    """A name of the table that may be called: `function` is the caller's own substitute for it."""

    function: Callable[..., Any]


Table = Mapping[tuple[str, str], Any]


def load(
    data: bytes | mmap,
    start: int,
    *,
    where: str,
    table: Table,
    persistent: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """Interpret one pickle.

    Args:
        data: the bytes it lies in.
        start: position of its first byte.
        where: the file, for messages.
        table: (module, name) -> a `Call` or a plain value.
        persistent: resolves a persistent id (a storage).

    Returns:
        The value, and the position after the pickle.

    Raises:
        MlxmathError: the pickle is damaged, or names something outside the table.
    """
    machine = _Machine(data, start, where, table, persistent)
    return machine.run(), machine.position


class _Machine:
    def __init__(
        self,
        data: bytes | mmap,
        start: int,
        where: str,
        table: Table,
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        self.data, self.position, self.where, self.table, self.persistent = data, start, where, table, persistent
        self.end = min(len(data), start + MAX_PICKLE_BYTES)
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        try:
            while True:
                code = self.take(1)
                if code == b".":
                    return self.pop()
                action = _ACTIONS.get(code)
                if action is None:
                    self.fail(f"the pickle opcode {code!r} is not one that a state dict needs")
                action(self)
        except (ValueError, TypeError, KeyError, struct.error) as error:  # numbers, text and arguments out of shape
            self.fail(f"{type(error).__name__} ({str(error)[:100]})")

    def fail(self, reason: str) -> NoReturn:
        raise MlxmathError(
            f"{self.where} is damaged or is not a PyTorch state dict: {reason}, at byte {self.position}."
        )

    def take(self, count: int) -> bytes:
        stop = self.position + count
        if count < 0 or stop > self.end:
            self.fail("its pickle ends too early")
        piece = self.data[self.position : stop]
        self.position = stop
        return piece

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def raw_line(self) -> bytes:
        stop = self.data.find(b"\n", self.position, self.end)
        if stop < 0:
            self.fail("its pickle ends too early")
        return self.take(stop - self.position + 1)[:-1]

    def line(self) -> str:
        return self.raw_line().decode("utf-8")

    def unicode_line(self) -> None:
        text = self.raw_line().decode("raw-unicode-escape")
        text.encode("utf-8")  # a lone surrogate is an error
        self.push(text)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.fail("its pickle takes from an empty stack")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            self.fail("its pickle has no mark")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def top(self, kind: type | tuple[type, ...]) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.fail("its pickle takes from an empty stack")
        if not isinstance(self.stack[-1], kind):
            self.fail(f"it changes a {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def memoize(self, index: int) -> None:
        self.memo[index] = self.top(object)

    def find(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            self.fail("a global's name is not text")
        found = self.table.get((module, name))
        if found is None:
            raise MlxmathError(
                f"{self.where} asks for {module[:80]}.{name[:80]}, which is no part of a state dict; a file can use "
                "such a name to run code. It was refused and nothing was run. Use the model's .safetensors files, or a "
                "file that holds only tensors."
            )
        self.push(found)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Call) or not isinstance(arguments, tuple):
            self.fail(f"it calls a {type(function).__name__}")
        self.push(function.function(*arguments))

    def build(self) -> None:
        state = self.pop()
        self.top(StateDict)
        if not isinstance(state, dict):
            self.fail(f"it sets a {type(state).__name__} as attributes")

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            self.fail("a dict has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, HASHABLE):
                self.fail(f"a dict has a {type(key).__name__} as key")
            target[key] = value

    def new_dict(self, items: list[Any]) -> None:
        self.push({})
        self.set_items(items)

    def resolve(self, identifier: Any) -> None:
        if self.persistent is None:
            self.fail("it refers to a storage where none can be")
        self.push(self.persistent(identifier))

    def pair(self) -> list[Any]:
        value, key = self.pop(), self.pop()
        return [key, value]

    def append_one(self) -> None:
        value = self.pop()
        self.top(list).append(value)

    def append_many(self) -> None:
        items = self.pop_mark()
        self.top(list).extend(items)

    def set_many(self) -> None:
        items = self.pop_mark()
        self.set_items(items)

    def add_to_set(self) -> None:
        items = self.pop_mark()
        self.top(list).extend(items)

    def last(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self.pop() for _ in range(count)]))

    def drop(self) -> None:
        if self.marks and len(self.stack) == self.marks[-1]:
            self.marks.pop()
        else:
            self.pop()

    def global_by_lines(self) -> None:
        module = self.line()
        self.find(module, self.line())

    def instance(self) -> None:  # INST: a name in lines, its arguments above the mark
        self.global_by_lines()
        function = self.pop()
        arguments = tuple(self.pop_mark())
        self.push(function)
        self.push(arguments)
        self.call()

    def global_by_stack(self) -> None:
        name = self.pop()
        self.find(self.pop(), name)

    def integer_line(self) -> None:
        text = self.line()
        self.push(text == "01" if text in ("00", "01") else int(text))

    def text_of(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:  # Python 2 kept bytes and text in one type
            return raw.decode("latin-1")

    def string_line(self) -> None:
        text = self.line().strip()
        if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"" or "\\" in text:
            self.fail("a string is not quoted")
        self.push(text[1:-1])


def _long(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _get(m: _Machine, index: int) -> None:
    if index not in m.memo:
        m.fail(f"its pickle refers to the unknown value {index}")
    m.push(m.memo[index])


_ACTIONS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"0": _Machine.drop,
    b"1": lambda m: m.pop_mark(),
    b"2": lambda m: m.push(m.top(object)),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": _Machine.integer_line,
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"L": lambda m: m.push(int(m.line().rstrip("L"))),
    b"\x8a": lambda m: m.push(_long(m.take(m.number("<B")))),
    b"\x8b": lambda m: m.push(_long(m.take(m.number("<i")))),
    b"F": lambda m: m.push(float(m.line())),
    b"G": lambda m: m.push(m.number(">d")),
    b"S": _Machine.string_line,
    b"T": lambda m: m.push(m.text_of(m.take(m.number("<i")))),
    b"U": lambda m: m.push(m.text_of(m.take(m.number("<B")))),
    b"V": _Machine.unicode_line,
    b"X": lambda m: m.push(m.take(m.number("<I")).decode("utf-8")),
    b"\x8c": lambda m: m.push(m.take(m.number("<B")).decode("utf-8")),
    b"\x8d": lambda m: m.push(m.take(m.number("<Q")).decode("utf-8")),
    b"B": lambda m: m.push(m.take(m.number("<I"))),
    b"C": lambda m: m.push(m.take(m.number("<B"))),
    b"\x8e": lambda m: m.push(m.take(m.number("<Q"))),
    b"]": lambda m: m.push([]),
    b"a": _Machine.append_one,
    b"e": _Machine.append_many,
    b"l": lambda m: m.push(m.pop_mark()),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.pop_mark())),
    b"\x85": lambda m: m.push(m.last(1)),
    b"\x86": lambda m: m.push(m.last(2)),
    b"\x87": lambda m: m.push(m.last(3)),
    b"}": lambda m: m.push({}),
    b"d": lambda m: m.new_dict(m.pop_mark()),
    b"s": lambda m: m.set_items(m.pair()),
    b"u": _Machine.set_many,
    b"\x8f": lambda m: m.push([]),  # a set, kept as a list: nothing here looks into one
    b"\x90": _Machine.add_to_set,
    b"\x91": lambda m: m.push(m.pop_mark()),
    b"g": lambda m: _get(m, int(m.line())),
    b"h": lambda m: _get(m, m.number("<B")),
    b"j": lambda m: _get(m, m.number("<I")),
    b"p": lambda m: m.memoize(int(m.line())),
    b"q": lambda m: m.memoize(m.number("<B")),
    b"r": lambda m: m.memoize(m.number("<I")),
    b"\x94": lambda m: m.memoize(len(m.memo)),
    b"c": _Machine.global_by_lines,
    b"\x93": _Machine.global_by_stack,
    b"R": _Machine.call,
    b"\x81": _Machine.call,  # NEWOBJ: class and arguments, the same for the few names of the table
    b"i": _Machine.instance,
    b"b": _Machine.build,
    b"P": lambda m: m.resolve(m.line()),
    b"Q": lambda m: m.resolve(m.pop()),
}
