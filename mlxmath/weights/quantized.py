"""Weights that come quantized: what mlx_lm reads as it is, what is unpacked while converting, and what is refused.

config.json names the method, under `quantization` as MLX writes it or under `quantization_config` as transformers does.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mlxmath.errors import InputError, MlxmathError
from mlxmath.weights.architecture import text_part
from mlxmath.weights.dtypes import FLOAT8, FLOATING, Array, convert
from mlxmath.weights.tensors import BLOCK_BYTES, TensorRef, row_major

MODES = ("affine", "mxfp4", "nvfp4", "mxfp8")
_MXFP4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
_MXFP8 = {"group_size": 32, "bits": 8, "mode": "mxfp8"}
_NVFP4 = {"group_size": 16, "bits": 4, "mode": "nvfp4"}
_KNOWN: dict[str, tuple[Literal["packed", "scaled"], dict[str, Any] | None]] = {
    "mxfp4": ("packed", _MXFP4), "mxfp8": ("packed", _MXFP8), "fbgemm_fp8": ("scaled", None),
    "modelopt NVFP4": ("packed", _NVFP4), "modelopt FP8": ("scaled", None),
    "compressed-tensors (nvfp4-pack-quantized)": ("packed", _NVFP4),
    "compressed-tensors (mxfp4-pack-quantized)": ("packed", _MXFP4),
    "compressed-tensors (pack-quantized)": ("packed", {"group_size": 32, "bits": 4, "mode": "affine"}),
}  # fmt: skip
"""Methods whose settings are always the same: how they are read, and "quantization" of the converted config.json."""
_BLOCK = 128
"""Rows and columns of a block, where config.json does not say."""
_SCALES = ("_scale_inv", "_scale")
_UNUSED = (".input_scale", ".activation_scale", ".k_scale", ".v_scale", ".q_scale", "_input_scale", "_activation_scale")


@dataclass(frozen=True)
class Stored:
    """How the weights of a source are quantized.

    Attributes:
        method: its name for the user; "" if they are not.
        how: "packed": mlx_lm reads it as it is; "rearranged": mlx_lm packs it anew on loading, so it is stored as that;
            "scaled": 8 bits an element with scales, dequantized while converting.
        settings: "quantization" of the converted config.json.
        block: rows and columns that share a scale ("scaled").
    """

    method: str = ""
    how: Literal["plain", "packed", "rearranged", "scaled"] = "plain"
    settings: dict[str, Any] | None = None
    block: tuple[int, int] = (_BLOCK, _BLOCK)


def stored(config: Mapping[str, Any]) -> Stored:
    """How a config.json says that the weights are quantized.

    Raises:
        InputError: by a method, or with settings, that neither mlx_lm nor this program can read.
    """
    ours = config.get("quantization")
    found = config.get("quantization_config") or text_part(config).get("quantization_config")
    if ours:
        return Stored("MLX", "packed", _settings(ours))
    if not found:
        return Stored()
    if not isinstance(found, dict):
        raise InputError("config.json: quantization_config is no table of settings; download the model again.")
    method = str(found.get("quant_method", "")).lower()
    if not method and {"bits", "group_size"} <= found.keys():
        return Stored("MLX", "packed", _settings(found))
    if method == "modelopt":
        nested = found.get("quantization")
        method = f"modelopt {(nested if isinstance(nested, dict) else found).get('quant_algo', '')}"
    if method == "compressed-tensors":
        form = str(found.get("format"))
        method = f"compressed-tensors ({form})"
        if form in ("float-quantized", "naive-quantized", "int-quantized") and (groups := _groups(found)) is not None:
            return Stored(method, "scaled", None, groups)
        if form == "dense":
            return Stored()
    if method in _KNOWN:
        return Stored(method, *_KNOWN[method])
    if method == "fp8":
        block = found.get("weight_block_size") or (_BLOCK, _BLOCK)
        if isinstance(block, list | tuple) and len(block) == 2 and all(type(n) is int and n > 0 for n in block):
            powers = found.get("scale_fmt") == "ue8m0" and list(block) == [32, 32]
            return Stored(method, "packed", _MXFP8) if powers else Stored(method, "scaled", None, (block[0], block[1]))
    if method == "awq" and found.get("bits", 4) == 4 and str(found.get("version", "gemm")).lower() == "gemm":
        _settings({"bits": 4, "group_size": found.get("group_size", 128)})
        return Stored(method, "rearranged", {"group_size": found.get("group_size", 128), "bits": 4, "mode": "affine"})
    if method == "bitnet":
        return Stored(method, "packed", dict(found))
    raise unreadable(method or "an unnamed method", found)


def unreadable(method: str, settings: Mapping[str, Any] | None = None, why: str = "") -> InputError:
    """The error for weights that nobody here can read."""
    bits = (settings or {}).get("bits")
    return InputError(
        f"--model is quantized by {method}{f' to {bits} bits' if isinstance(bits, int) else ''}, which mlx_lm cannot "
        f"read{why}. Nothing was written. Choose the unquantized model that it was made from, with --quantize 4 if it "
        "is to be small, or an MLX version of it (the hub's mlx-community)."
    )


def _is_small(number: Any) -> bool:
    """Whether it can be a count of bits, or of what they share a scale with."""
    return type(number) is int and 0 < number <= 1 << 10


def _settings(found: Any) -> dict[str, Any]:
    """MLX's own settings, checked."""
    if not isinstance(found, dict):
        raise InputError("config.json: its quantization is no table of settings; download the model again.")
    for table in (found, *found.values()):
        if isinstance(table, dict) and not (
            _is_small(table.get("bits", found.get("bits")))
            and _is_small(table.get("group_size", found.get("group_size")))
            and table.get("mode", "affine") in MODES
        ):
            raise InputError(
                f"config.json: its quantization {str(table)[:120]} is none of MLX's; expected bits, group_size and one "
                f"of the modes {', '.join(MODES)}."
            )
    return dict(found)


_MOST_DEPTH = 20
"""Of tables and lists in one another; config.json needs some five."""


def check_tables(config: Mapping[str, Any]) -> None:
    """Refuse a config.json that ends the process: MLX divides by the size of a group, Python gives up on deep nesting.

    Raises:
        MlxmathError: it is nested too deeply, or its quantization is of other types or sizes than there are.
    """
    inner = text_part(config)
    if _is_deep(config, _MOST_DEPTH):
        raise MlxmathError("config.json is nested too deeply; it is damaged, or of no model.")
    for found in (each.get(name) for each in (config, inner) for name in ("quantization", "quantization_config")):
        if not isinstance(found, dict):
            continue
        for table in (found, *found.values()):
            for name in ("bits", "group_size") if isinstance(table, dict) else ():
                number = table.get(name)
                if number is not None and not _is_small(number) and "quant_method" not in found:
                    raise MlxmathError(f"config.json: quantization: {name}: expected bits or a size, found {number!r}")
        for name in ("modules_to_not_convert", "ignore"):
            kept = found.get(name) or []
            if not isinstance(kept, list) or not all(isinstance(each, str) for each in kept):
                raise MlxmathError(f"config.json: quantization: {name}: expected names of layers, found {kept!r}")


def _is_deep(value: Any, most: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not most or any(_is_deep(each, most - 1) for each in inner)


def _groups(found: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a scale, as compressed-tensors says; None for what is not 8 bits and symmetric."""
    groups = found.get("config_groups")
    sizes: set[tuple[Any, ...]] = set()
    for group in groups.values() if isinstance(groups, dict) else ():
        table = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(table, dict) or table.get("num_bits", 8) != 8 or not table.get("symmetric", True):
            return None
        block = table.get("block_structure") or (1, table.get("group_size") or _BLOCK)
        if not isinstance(block, list | tuple) or not all(type(n) is int and n > 0 for n in block):
            return None
        sizes.add(tuple(block) if table.get("strategy") in ("block", "group") else (_BLOCK, _BLOCK))
    size = sizes.pop() if sizes else (_BLOCK, _BLOCK)
    return size if not sizes and len(size) == 2 else None


@dataclass(frozen=True)
class ScaledTensor(TensorRef):
    """A weight (..., M, N) of 8 bits an element, whose blocks of `block` rows and columns have each a scale.

    It is read as what it stands for, value times scale in float32, rounded to `dtype`.

    Attributes:
        weight: its elements: float8 or int8.
        scale: (..., M / block rows, N / block columns), rounded up.
        block: rows and columns.
    """

    weight: TensorRef
    scale: TensorRef
    block: tuple[int, int]

    @classmethod
    def of(cls, weight: TensorRef, scale: TensorRef, block: tuple[int, int], dtype: str) -> "ScaledTensor":
        """
        Args:
            weight: (..., M, N).
            scale: (..., M / rows, N / columns), rounded up.
            block: rows and columns.
            dtype: what it is read as, if no other type is asked for.
        """
        shape = weight.shape
        return cls(weight.path, weight.name, dtype, shape, row_major(shape), weight.offset, weight, scale, block)

    @property
    def place(self) -> tuple[Any, ...]:
        """See `TensorRef.place`."""
        return (*self.weight.place, *self.scale.place)

    @property
    def contiguous(self) -> bool:
        """Its elements do not lie in a file."""
        return False

    def _values(self, multiple: int) -> Iterator[Array]:
        *_, num_rows, num_columns = self.shape
        kind = "float8_e8m0fnu" if self.scale.dtype == "uint8" else self.scale.dtype
        scale = convert(self.scale.read(), kind, "float32")[0].reshape(-1, *self.scale.shape[-2:])
        row = 0
        for block in self.weight.blocks(multiple=math.lcm(num_columns, multiple), block_bytes=BLOCK_BYTES // 4):
            values = convert(block, self.weight.dtype, "float32")[0].reshape(-1, num_columns)
            rows = np.arange(row, row + len(values))
            of_rows = scale[rows // num_rows % len(scale), rows % num_rows // self.block[0]]
            values *= np.repeat(of_rows, self.block[1], axis=1)[:, :num_columns]
            row += len(values)
            yield values.reshape(-1)

    def blocks(self, *, multiple: int = 1, block_bytes: int = BLOCK_BYTES) -> Iterator[Array]:  # noqa: ARG002
        """See `TensorRef.blocks`."""
        return self.blocks_as(self.dtype, multiple=multiple)

    def blocks_as(self, dtype: str, *, multiple: int = 1) -> Iterator[Array]:
        """See `TensorRef.blocks_as`."""
        for values in self._values(multiple):
            yield self._converted(values, "float32", dtype)


def unscaled(tensors: Mapping[str, TensorRef], block: tuple[int, int], dtype: str) -> tuple[dict[str, TensorRef], int]:
    """Weights of 8 bits and their scales, as the weights that they stand for.

    Args:
        tensors: of the source.
        block: rows and columns that share a scale, unless a scale's shape says otherwise.
        dtype: type of the weights that are made.

    Returns:
        The tensors without scales, and how many weights were made.

    Raises:
        InputError: a scale does not fit its weight.
    """
    names = {}
    for name, tensor in tensors.items():
        if tensor.dtype in FLOAT8 or tensor.dtype == "int8":
            candidates = (*(name + end for end in _SCALES), f"{name.removesuffix('.weight')}.scale")
            scale = next((candidate for candidate in candidates if candidate in tensors), None)
            if scale:
                names[name] = scale
    used = set(names.values())
    result: dict[str, TensorRef] = {}
    for name, tensor in tensors.items():
        if name in names:
            result[name] = _scaled(tensor, tensors[names[name]], block, dtype)
        elif name not in used and not name.endswith(_UNUSED):
            result[name] = tensor
    return result, len(names)


def _scaled(weight: TensorRef, scale: TensorRef, block: tuple[int, int], dtype: str) -> TensorRef:
    shape = scale.shape
    if math.prod(shape) == 1:
        shape = (1,) * len(weight.shape)
    elif len(shape) < len(weight.shape) and shape == weight.shape[: len(shape)]:
        shape = (*shape, *(1,) * (len(weight.shape) - len(shape)))
    sizes = []
    for n, scales, usual in zip(weight.shape[-2:], shape[-2:], block, strict=False):
        options = (usual, n) if scales == 1 else (usual, 1)
        sizes.append(next((size for size in options if -(-n // size) == scales), 0))
    leading = shape[:-2] in (weight.shape[:-2], (1,) * len(weight.shape[:-2]))
    if len(shape) != len(weight.shape) or len(sizes) != 2 or 0 in sizes or not leading:
        raise InputError(
            f"{weight.path}: the scale {scale.name} of shape {scale.shape} does not fit {weight.name} of shape "
            f"{weight.shape} in blocks of {block[0]} x {block[1]}; download the model again."
        )
    scale = TensorRef(scale.path, scale.name, scale.dtype, shape, _strides(scale, shape), scale.offset)
    return ScaledTensor.of(weight, scale, (sizes[0], sizes[1]), dtype)


def _strides(scale: TensorRef, shape: tuple[int, ...]) -> tuple[int, ...]:
    given = iter(stride for n, stride in zip(scale.shape, scale.stride, strict=True) if n != 1)
    return tuple(next(given) if n != 1 else 1 for n in shape)


def natural_dtype(config: Mapping[str, Any]) -> str:
    """The floating type that the model is meant to have, as config.json says; bfloat16 if it does not."""
    for table in (config, text_part(config)):
        for key in ("dtype", "torch_dtype"):
            if isinstance(table.get(key), str) and table[key] in FLOATING - {"float64"}:
                return str(table[key])
    return "bfloat16"
