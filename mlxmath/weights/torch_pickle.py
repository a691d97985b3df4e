"""What a PyTorch file's pickle says, found out without running anything in it.

A pickle can name any function and call it. Here it gets only the names of `TABLE`, and for PyTorch's own functions
(https://github.com/pytorch/pytorch/blob/main/torch/_utils.py) stand-ins that note down what a tensor is made of. What
they return are tuples, since nothing that a pickle can do changes one.
"""

import io
import mmap
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mlxmath.errors import MlxmathError
from mlxmath.weights.dtypes import DTYPES

MAX_NUMBERS = 64
"""More dimensions than any tensor has: a longer shape is damaged."""
STORAGE_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8", "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64", "QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32",
}  # fmt: skip
ITEMSIZE = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {
    "complex64": 8, "complex128": 16, "qint8": 1, "quint8": 1, "qint32": 4,
}  # fmt: skip
"""Element sizes of every type that a storage can have, supported or not."""
TORCH_DTYPES = (*DTYPES, "complex32", "complex64", "complex128", "float8_e4m3fnuz", "float8_e5m2fnuz",
                "float4_e2m1fn_x2")  # fmt: skip


class Kind(NamedTuple):
    """A storage class or an element type named in the pickle."""

    dtype: str


class Storage(NamedTuple):
    """A run of elements; `key` names it in the file."""

    key: str
    dtype: str
    num_elements: int
    view_start: int = 0  # of a view into another storage (old files), in elements


class Tensor(NamedTuple):
    """A tensor before its storage has been found: numbers count elements."""

    storage: Storage
    dtype: str
    element: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class StateDict(dict[Any, Any]):
    """What a dict of the pickle becomes. Its keys are plain: to hash a deeply nested one would end the process."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str | int | float | bytes | None):
            raise ValueError(f"a dict has a {type(key).__name__} as key")
        super().__setitem__(key, value)


def _is_plain(numbers: tuple[Any, ...]) -> bool:
    """Whether all are integers of at most 64 bits."""
    return all(type(number) is int and -(1 << 63) <= number < 1 << 63 for number in numbers)


def _rebuild_tensor(storage: Any, element: Any, shape: Any, stride: Any, *_: Any, dtype: str | None = None) -> Tensor:
    """Stand-in for `torch._utils._rebuild_tensor` and `_v2` (requires_grad, hooks and metadata follow)."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor's storage, shape or stride is not one")
    if len(shape) > MAX_NUMBERS or len(stride) > MAX_NUMBERS or not _is_plain((element, *shape, *stride)):
        raise ValueError("a tensor's shape, stride or offset is not of integers")
    if len(_) > 2 and isinstance(_[2], dict) and any(_[2].get(bit) for bit in ("conj", "neg")):
        raise ValueError("a tensor is a lazily negated or conjugated view")
    return Tensor(storage, dtype or storage.dtype, element, shape, stride)


def _rebuild_tensor_v3(
    storage: Any, element: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *more: Any
) -> Tensor:
    """Stand-in for `torch._utils._rebuild_tensor_v3`: an untyped storage and the element type."""
    if not isinstance(dtype, Kind):
        raise ValueError("a tensor's element type is not one")
    return _rebuild_tensor(storage, element, shape, stride, grad, hooks, *more, dtype=dtype.dtype)


def _rebuild_parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ValueError("a parameter is not a tensor")
    return tensor


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """Stand-in for `torch._tensor._rebuild_from_type_v2`: a tensor with Python attributes, which are ignored."""
    if function not in (_rebuild_tensor, _rebuild_tensor_v3, _rebuild_parameter) or not isinstance(kind, Kind):
        raise ValueError("a tensor's class is not one")
    return _rebuild_parameter(function(*arguments))


TABLE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): lambda: StateDict(),
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Tensor"): Kind("a tensor class"),
    ("torch.nn.parameter", "Parameter"): Kind("a tensor class"),
    ("torch.storage", "UntypedStorage"): Kind("uint8"),
    **{(module, name): Kind(dtype) for name, dtype in STORAGE_DTYPES.items() for module in ("torch", "torch.cuda")},
    **{("torch", name): Kind(name) for name in TORCH_DTYPES},
}
"""Everything that a file may name, and what takes its place here."""


_ADMITTED = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES
    SHORT_BINBYTES BINBYTES8 EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS
    GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL INST REDUCE PERSID BINPERSID
"""
_INSTEAD = {"EMPTY_SET": "EMPTY_LIST", "ADDITEMS": "APPENDS", "FROZENSET": "LIST", "NEWOBJ": "REDUCE"}
"""Opcodes that do what another does."""


class _Opcodes(dict[int, Callable[[Any], None]]):
    def __missing__(self, code: int) -> Any:
        raise ValueError(f"the pickle opcode {bytes([code])!r} is not one that a state dict needs")


def _build(unpickler: Any) -> None:
    """Attributes of a dict (`_metadata`) are ignored; nothing else may be given any."""
    state = unpickler.stack.pop()
    if not isinstance(unpickler.stack[-1], StateDict) or not isinstance(state, dict):
        raise ValueError(f"it sets a {type(state).__name__} as attributes of a {type(unpickler.stack[-1]).__name__}")


class StateDictUnpickler(pickle._Unpickler):
    """Python's own unpickler with the opcodes, the names and the storages of a state dict only.

    It is the one in Python: that in C sets aside memory for whatever position of the memo a file names, and hashes
    keys however deeply they are nested. Sets become lists, since nothing here looks into one.

    Attributes:
        storages: what the pickle refers to, by key.
    """

    dispatch = _Opcodes(
        {
            getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, does)[0]]
            for name, does in ({name: name for name in _ADMITTED.split()} | _INSTEAD).items()
        }
        | {pickle.EMPTY_DICT[0]: lambda unpickler: unpickler.append(StateDict()), pickle.BUILD[0]: _build}
    )

    def __init__(self, path: Path, file: io.BytesIO | mmap.mmap) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.path, self.file = path, file
        self.storages: dict[str, Storage] = {}

    def load(self) -> Any:
        """Interpret one pickle.

        Raises:
            MlxmathError: it is damaged, or names something outside the table.
        """
        try:
            return super().load()
        except (pickle.UnpicklingError, ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError,
                MemoryError, struct.error) as error:  # fmt: skip
            raise MlxmathError(
                f"{self.path} is damaged or is not a PyTorch state dict: {type(error).__name__} ({str(error)[:100]}), "
                f"at byte {self.file.tell()}."
            ) from None

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the table."""
        found = TABLE.get((module, name))
        if found is None:
            asked = f"{module[:80]}.{name[:80]}".encode(errors="replace").decode()
            raise MlxmathError(
                f"{self.path} asks for {asked}, which is no part of a state dict; a file can use such a name to run "
                "code. It was refused and nothing was run. Use the model's .safetensors files, or a file that holds "
                "only tensors."
            )
        return found

    def persistent_load(self, pid: Any) -> Storage:
        """The storage of a persistent id: ("storage", class, key, device, elements[, view])."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise MlxmathError(f"{self.path} refers to something that is not a storage; it was refused.")
        _, kind, key, _, count, view = (*pid, None)[:6]
        if not (isinstance(kind, Kind) and kind.dtype in ITEMSIZE and isinstance(key, str) and _is_plain((count,))):
            raise MlxmathError(f"{self.path} is damaged: a storage's class, key or size is not one.")
        known = self.storages.setdefault(key, Storage(key, kind.dtype, count))
        if count < 0 or (known.dtype, known.num_elements) != (kind.dtype, count):
            raise MlxmathError(f"{self.path} is damaged: storage {key[:80]!r} is described in two ways.")
        if view is None:
            return known
        if not isinstance(view, tuple) or len(view) != 3 or not _is_plain(view[1:]) or min(view[1:]) < 0:
            raise MlxmathError(f"{self.path} is damaged: a view of storage {key[:80]!r} is not one.")
        if view[1] + view[2] > count:
            raise MlxmathError(f"{self.path} is damaged: a view reaches beyond storage {key[:80]!r}.")
        return Storage(key, kind.dtype, view[2], view[1])
