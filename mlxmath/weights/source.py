"""The weights of a model folder: which files, and where each tensor lies in them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlxmath.errors import MlxmathError
from mlxmath.runtime.console import size
from mlxmath.runtime.files import inside, read_json
from mlxmath.weights.safetensor import open_safetensors
from mlxmath.weights.tensors import TensorRef
from mlxmath.weights.torch_bin import Region, open_torch

FORMATS = (("model", "safetensors"), ("pytorch_model", "bin"))
"""Stem and suffix of the weight files, the preferred first."""
MAX_TIMES = 100
"""How many times the size of its files a model may have: names share tensors, and tensors repeat numbers."""
MAX_SMALL_BYTES = 64 << 20
"""Up to this size it may have it in any case."""


@dataclass(frozen=True)
class Weights:
    """The tensors of a model folder, in the order in which they lie in its files.

    Attributes:
        files: the weight files.
        tensors: where each tensor lies.
        num_ignored: entries of the files that are no tensors.
        storages: file -> where its storages lie by key, if they have checksums.
    """

    files: tuple[Path, ...]
    tensors: Mapping[str, TensorRef]
    num_ignored: int
    storages: Mapping[Path, Mapping[str, Region]]


def weight_files(folder: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    """The weight files of a model folder (safetensors before .bin), and the index's map of tensors to files.

    Raises:
        MlxmathError: there are none, one is missing, or an index is damaged or names a file outside the folder.
    """
    for stem, suffix in FORMATS:
        single = folder / f"{stem}.{suffix}"
        index = folder / f"{stem}.{suffix}.index.json"
        if single.is_file():
            return (single,), {}
        if index.is_file():
            return _indexed(folder, index)
        numbered = sorted(folder.glob(f"{stem}-*-of-*.{suffix}"))
        if numbered:
            return _numbered(numbered), {}
    raise MlxmathError(
        f"{folder} holds no weights: expected model.safetensors or pytorch_model.bin, or their numbered files."
    )


def _indexed(folder: Path, index: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise MlxmathError(f"{index} has no weight_map from tensors to files; download it again.")
    files = tuple(inside(folder, name) for name in sorted(set(names.values())))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise MlxmathError(
            f"{folder} lacks {len(missing)} of the {len(files)} weight files that {index.name} names: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Download the model again."
        )
    return files, names


def _numbered(files: list[Path]) -> tuple[Path, ...]:
    """Files `...-00001-of-00002...` without an index: check that all are there."""
    for file in files:
        found = re.search(r"-(\d+)-of-(\d+)\.", file.name)
        if found is None or int(found[2]) != len(files):
            raise MlxmathError(
                f"{file.parent} holds {len(files)} weight files, but {file.name} counts otherwise; a file is missing "
                "or left over. Download the model again."
            )
    return tuple(files)


def open_weights(folder: Path) -> Weights:
    """Open all weight files of a model folder without reading the tensors.

    Raises:
        MlxmathError: as `weight_files`; a file is damaged; a tensor is missing or occurs twice; small files stand for
            a huge model.
    """
    files, index = weight_files(folder)
    tensors: dict[str, TensorRef] = {}
    num_ignored = 0
    storages: dict[Path, Mapping[str, Region]] = {}
    for file in files:
        if file.suffix == ".bin":
            opened = open_torch(file)
            found, num_ignored, storages[file] = opened.tensors, num_ignored + opened.num_ignored, opened.storages
        else:
            found = open_safetensors(file)
        for name, tensor in sorted(found.items(), key=lambda item: item[1].offset):
            if name in tensors:
                raise MlxmathError(f"{folder}: tensor {name!r} is in both {tensors[name].path.name} and {file.name}.")
            tensors[name] = tensor
    for name, file_name in index.items():
        if name not in tensors or tensors[name].path != inside(folder, file_name):
            raise MlxmathError(
                f"{folder / file_name} lacks the tensor {name!r} that the index places there; download it again."
            )
    if not tensors:
        raise MlxmathError(f"{folder}: its weight files hold no tensors.")
    stored, meant = sum(file.stat().st_size for file in files), sum(tensor.num_bytes for tensor in tensors.values())
    if meant > max(MAX_TIMES * stored, MAX_SMALL_BYTES):
        largest = max(tensors.values(), key=lambda tensor: tensor.num_bytes)
        raise MlxmathError(
            f"{largest.path}: the weights would take {size(meant)}, out of files of {size(stored)}: tensors repeat "
            f"numbers, the largest {largest.name!r} of shape {largest.shape} in steps of {largest.stride}. That is no "
            "model; save it again with contiguous tensors, or choose another."
        )
    return Weights(files, tensors, num_ignored, storages)
