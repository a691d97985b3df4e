"""Damage: bytes, texts and JSON values changed at random, each reproducible by its seed."""

import copy
import json
from collections.abc import Callable, MutableMapping, MutableSequence
from pathlib import Path
from random import Random
from typing import Any

CANARY = Path("canary")
"""Made by code that runs out of an input; relative to the folder that inputs are tried in."""
CODE = f"open({str(CANARY)!r}, 'w')"
ATTACKS = (
    "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for x in range(999999999) %}{{ x }}{% endfor %}",
    "{{ 'a' * 999999999 }}",
    "{{ 1 // 0 }}",
    "{{ messages[99].content.x.y }}",
    "{{ raise_exception('\x1b[31mno') }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% include '/etc/passwd' %}",
    f"__import__('os').system('touch {CANARY}')",
    "$(touch canary)",
    "`touch canary`",
    "; touch canary",
    "<script>fetch('http://localhost:1')</script>",
    "(a+)+$",
)
"""Texts that do something where a text is taken for more than a text."""
TEXTS = (
    "", " ", "\n", "\0", "a\0b", "\x1b[2J\x1b]0;x\x07", "\ud800", "x\udfffy", "\u202e", "\ufeff", "é" * 3, "𝟛", "٣",
    "../../canary", "/etc/passwd", "C:\\x", "a/../../b", "con", ".", "..", "-1", "--help", "NaN", "true", "null",
    "9" * 5000, "x" * 70_000, "/" * 300, "y" * 300, "\\frac{1}{", "$" * 50, "(" * 3000, "{" * 3000, "%s%n{0}{x}",
    *ATTACKS,
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 64, 255, 65_535, 65_536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63),
    10**30, -(10**30), 0.0, -0.0, 0.5, 1e-320, 1e38, 1e308, -1e308,
)  # fmt: skip
_RAW = {
    "@raw0": "NaN", "@raw1": "-Infinity", "@raw2": "1e400", "@raw3": "1" * 5000, "@raw4": "-" + "8" * 400,
    "@raw5": "[" * 3000 + "]" * 3000, "@raw6": '{"a":' * 3000 + "1" + "}" * 3000, "@raw7": "[" * 200_000,
}  # fmt: skip
"""What Python does not write as JSON, by what stands for it meanwhile."""


def hostile(random: Random) -> Any:
    """A JSON value that nobody expects."""
    kind = random.randrange(10)
    if kind < 3:
        return random.choice(NUMBERS)
    if kind < 6:
        return random.choice(TEXTS)
    if kind < 7:
        return random.choice(tuple(_RAW))
    simple = (None, True, False, [], {}, [[]], [{}], {"": None}, [None] * 3, [1] * 70, {"a": {"b": []}}, [[1, 2], [3]])
    return copy.deepcopy(random.choice(simple))


def damaged_value(random: Random, value: Any) -> Any:
    """A JSON value with some of its parts replaced, removed, renamed, repeated or swapped."""
    root = [copy.deepcopy(value)]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        holder, key = _place(random, root)
        found = holder[key]
        action = random.randrange(12)
        if action < 5:
            holder[key] = hostile(random)
        elif action == 5 and isinstance(found, int | float):
            holder[key] = random.choice((-found, found + 1, found * 2, found / 3, str(found), [found], not found))
        elif action == 6 and isinstance(found, str):
            holder[key] = damaged_text(random, found)
        elif action == 7 and holder is not root:
            del holder[key]
        elif action == 8 and isinstance(holder, MutableMapping):
            holder[random.choice((str(key) + "x", *TEXTS[:30]))] = holder.pop(key)
        elif action == 9 and isinstance(found, MutableSequence):
            holder[key] = random.choice((list(found) * 2, list(found)[::-1], list(found)[:-1], [found]))
        elif action == 10:
            other, at = _place(random, root)
            holder[key] = copy.deepcopy(other[at])
        else:
            holder[key] = random.choice(([found], {"x": found}, str(found), None))
    return root[0]


def _place(random: Random, root: list[Any]) -> tuple[Any, Any]:
    """Where a part of a JSON value stands; those near the root more often."""
    holder: Any = root
    key: Any = 0
    while isinstance(holder[key], dict | list) and holder[key] and random.random() < 0.75:
        holder = holder[key]
        key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    return holder, key


def written(value: Any) -> str:
    """JSON; what stands for something that Python does not write is put in."""
    text = json.dumps(value, ensure_ascii=True)
    for name, raw in _RAW.items():
        if name in text:
            text = text.replace(f'"{name}"', raw)
    return text


def damaged_json(random: Random, data: bytes) -> bytes:
    """A file of JSON: mostly other values, some with keys given twice, some no JSON any more."""
    if random.random() < 0.12:
        return damaged_bytes(random, data)
    text = written(damaged_value(random, json.loads(data)))
    if random.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + "," + text[1:]
    return random.choice((text.encode(),) * 20 + (text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode()))


def damaged_lines(random: Random, data: bytes) -> bytes:
    """JSON lines of which one or two are damaged, repeated or gone."""
    lines = data.splitlines()
    whole = set(lines)
    for _ in range(random.choice((1, 1, 2))):
        index = random.randrange(len(lines))
        action = random.randrange(8)
        if action < 5:
            lines[index] = damaged_json(random, lines[index]) if lines[index] in whole else b"{}"
        elif action == 5:
            lines[index] = damaged_bytes(random, lines[index] or b"x")
        elif action == 6:
            lines.insert(index, lines[index])
        elif len(lines) > 1:
            del lines[index]
    return b"\n".join(lines) + random.choice((b"\n", b"\n", b"", b"\n\n", b"\r\n"))


def damaged_text(random: Random, text: str) -> str:
    """A text with parts cut, repeated or replaced."""
    start, end = sorted(random.randrange(len(text) + 1) for _ in range(2))
    return random.choice((
        lambda: text[:start] + random.choice(TEXTS) + text[start:],
        lambda: text[:start] + text[end:],
        lambda: text[:end] + text[start:],
        lambda: text[:start],
        lambda: text[:start] + random.choice(TEXTS) + text[end:],
        lambda: random.choice(TEXTS),
        lambda: text * random.choice((2, 50)),
    ))()  # fmt: skip


def damaged_file_of_text(random: Random, data: bytes) -> bytes:
    """A file of text: CSV, TOML, a template."""
    if random.random() < 0.2:
        return damaged_bytes(random, data)
    text = data.decode()
    for _ in range(random.choice((1, 1, 2, 3))):
        text = damaged_text(random, text)
    return text.encode("utf-8", "surrogatepass" if random.random() < 0.5 else "replace")


def damaged_bytes(random: Random, data: bytes, head: int | None = None) -> bytes:
    """Bits flipped, spans overwritten, cut out, repeated; numbers made extreme; the end cut off.

    Args:
        random: what is drawn from.
        data: the whole file.
        head: damage falls into the first so many bytes three times out of four, where the file says what it holds.
    """
    result = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        size = len(result)
        if not size:
            break
        reach = min(size, head) if head and random.random() < 0.75 else size
        at = random.randrange(reach)
        span = random.choice((1, 2, 4, 8, 16, 100, 1000))
        action = random.randrange(11)
        if action < 3:
            result[at] ^= 1 << random.randrange(8)
        elif action < 6:
            width = random.choice((1, 2, 4, 8))
            number = random.choice((0, 1, 2, 0x7F, 0xFF, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1))
            result[at : at + width] = (number % 256**width).to_bytes(width, random.choice(("little", "big")))
        elif action == 6:
            result[at : at + span] = random.choice((b"\0", b"\xff", b"A")) * min(span, size - at)
        elif action == 7:
            del result[at : at + span]
        elif action == 8:
            result[at:at] = result[at : at + span]
        elif action == 9:
            result[at:at] = random.randbytes(span)
        else:
            del result[at:]
    return bytes(result)


def other_file(random: Random, data: bytes) -> bytes:
    """What is no file of that kind at all."""
    return random.choice((
        b"", b"\0", b"{}", b"[]", b"null", b"<html>not found</html>", data[: len(data) // 2], data * 2, b"PK\x03\x04",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", random.randbytes(300), b"\x80\x02.",
    ))  # fmt: skip


Damage = Callable[[Random, bytes], bytes]
