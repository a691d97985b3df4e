"""What a PyTorch file's pickle may name, and the inert stand-ins for it.

PyTorch's own functions of these names are in
https://github.com/pytorch/pytorch/blob/main/torch/_utils.py. The stand-ins only note down what a tensor is made of.
"""

from dataclasses import dataclass
from typing import Any

from mlxmath.weights.dtypes import DTYPES
from mlxmath.weights.pickles import Call, StateDict

MAX_NUMBERS = 64
"""More dimensions than any tensor has: a longer shape is damaged."""
STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
}
ITEMSIZE = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {
    "complex64": 8,
    "complex128": 16,
    "qint8": 1,
    "quint8": 1,
    "qint32": 4,
}
"""Element sizes of every type that a storage can have, supported or not."""
TORCH_DTYPES = (*DTYPES, "complex32", "complex64", "complex128", "float8_e4m3fnuz", "float8_e5m2fnuz",
                "float4_e2m1fn_x2")  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A storage class or an element type named in the pickle."""

    dtype: str


@dataclass(frozen=True)
class Storage:
    """A run of elements; `key` names it in the file."""

    key: str
    dtype: str
    num_elements: int
    view_start: int = 0  # of a view into another storage (old files), in elements


@dataclass(frozen=True)
class Tensor:
    """A tensor before its storage has been found: numbers count elements."""

    storage: Storage
    dtype: str
    element: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def is_plain(numbers: tuple[Any, ...]) -> bool:
    """Whether all are integers of at most 64 bits."""
    return all(type(number) is int and -(1 << 63) <= number < 1 << 63 for number in numbers)


def _rebuild_tensor(storage: Any, element: Any, shape: Any, stride: Any, *_: Any, dtype: str | None = None) -> Tensor:
    """Stand-in for `torch._utils._rebuild_tensor` and `_v2` (requires_grad, hooks and metadata follow)."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor's storage, shape or stride is not one")
    if len(shape) > MAX_NUMBERS or len(stride) > MAX_NUMBERS or not is_plain((element, *shape, *stride)):
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
    if not isinstance(function, Call) or not isinstance(kind, Kind) or not isinstance(arguments, tuple):
        raise ValueError("a tensor's class is not one")
    if function.function is _rebuild_from_type:
        raise ValueError("a tensor is wrapped twice")
    return _rebuild_parameter(function.function(*arguments))


def _ordered_dict() -> StateDict:
    return StateDict()


def _size(values: Any) -> tuple[Any, ...]:
    if not isinstance(values, tuple | list) or len(values) > MAX_NUMBERS:
        raise ValueError("a shape is not one")
    return tuple(values)


TABLE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Call(_ordered_dict),
    ("torch", "Size"): Call(_size),
    ("torch._utils", "_rebuild_tensor"): Call(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Call(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Call(_rebuild_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): Call(_rebuild_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Call(_rebuild_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): Call(_rebuild_from_type),
    ("torch", "Tensor"): Kind("a tensor class"),
    ("torch.nn.parameter", "Parameter"): Kind("a tensor class"),
    ("torch.storage", "UntypedStorage"): Kind("uint8"),
    **{(module, name): Kind(dtype) for name, dtype in STORAGE_DTYPES.items() for module in ("torch", "torch.cuda")},
    **{("torch", name): Kind(name) for name in TORCH_DTYPES},
}
"""Everything that a file may name, and what takes its place here."""
