"""Other names for functions of a library that is loaded into this process.

The linker looks names up in shared objects, so one is made, in memory, that holds nothing but a table of symbols with
absolute addresses (SHN_ABS; glibc takes these as they are since 2.28, older than any that MLX runs on). See the System
V ABI, chapters 4 and 5: file header, program headers, then hash table, symbols, names and the dynamic section.
"""

import ctypes
import os
import struct
from collections.abc import Mapping
from pathlib import Path

_LOAD, _DYNAMIC, _READ_WRITE = 1, 2, 6
_HASH, _STRTAB, _SYMTAB, _STRSZ, _SYMENT = 4, 5, 6, 10, 11
_GLOBAL_FUNCTION, _ABSOLUTE = 0x12, 0xFFF1
_CLOSE_ON_EXEC = 1
_HEADER_BYTES, _PROGRAM_HEADER_BYTES, _SYMBOL_BYTES = 64, 56, 24


def make_global(functions: Mapping[str, int]) -> None:
    """Give functions names that whatever is loaded from now on finds. Linux on 64-bit little-endian processors only.

    Args:
        functions: addresses by name.

    Raises:
        OSError: this system does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)  # os.memfd_create is missing where Python was built for an older glibc
    if (descriptor := libc.memfd_create(b"symbols", _CLOSE_ON_EXEC)) < 0:
        raise OSError(ctypes.get_errno(), "memfd_create failed")
    try:
        os.write(descriptor, _shared_object(functions))
        ctypes.CDLL(f"/proc/self/fd/{descriptor}", mode=ctypes.RTLD_GLOBAL)
    finally:
        os.close(descriptor)


def _shared_object(functions: Mapping[str, int]) -> bytes:
    names, symbols = b"\0", bytes(_SYMBOL_BYTES)
    for name, address in functions.items():
        symbols += struct.pack("<IBBHQQ", len(names), _GLOBAL_FUNCTION, 0, _ABSOLUTE, address, 0)
        names += name.encode() + b"\0"
    count = len(functions) + 1
    chain = (*range(2, count), 0)  # all names in one bucket, each followed by the next
    table = struct.pack(f"<{3 + count}I", 1, count, 1, 0, *chain)
    at, parts = _HEADER_BYTES + 2 * _PROGRAM_HEADER_BYTES, []
    places = []
    for part in (table, symbols, names):
        places.append(at)
        parts.append(part + bytes(-len(part) % 8))
        at += len(parts[-1])
    entries = {_HASH: places[0], _SYMTAB: places[1], _STRTAB: places[2], _STRSZ: len(names), _SYMENT: _SYMBOL_BYTES}
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in (*entries.items(), (0, 0)))
    with Path("/proc/self/exe").open("rb") as program:
        machine = program.read(20)[18:]
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<H", 3) + machine
    header += struct.pack("<IQQQIHHHHHH", 1, 0, 64, 0, 0, _HEADER_BYTES, _PROGRAM_HEADER_BYTES, 2, 64, 0, 0)
    size = at + len(dynamic)
    header += struct.pack("<IIQQQQQQ", _LOAD, _READ_WRITE, 0, 0, 0, size, size, 1 << 16)
    header += struct.pack("<IIQQQQQQ", _DYNAMIC, _READ_WRITE, at, at, at, len(dynamic), len(dynamic), 8)
    return header + b"".join(parts) + dynamic
