"""The files of an exported model: safetensors, config.json, tokenizer, the template that it was trained in."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxmath.data.render import adds_bos
from mlxmath.errors import MlxmathError
from mlxmath.exporting.merge import Dense
from mlxmath.exporting.original import Original
from mlxmath.generation.model import load_generation_tokenizer
from mlxmath.models.load import check_finite
from mlxmath.runtime.console import Progress
from mlxmath.runtime.files import atomic_json, atomic_write, read_json
from mlxmath.weights.build import SHARD_BYTES, check_space
from mlxmath.weights.dtypes import DTYPES, Array, stored_as
from mlxmath.weights.opened import copy_companions
from mlxmath.weights.quantize import as_numpy
from mlxmath.weights.safetensor import Declared, SafetensorsWriter

CHAT_TEMPLATE = "chat_template.jinja"
_LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class Output(ABC):
    """Tensors that are written one after the other, and made together."""

    tensors: tuple[Declared, ...]

    @abstractmethod
    def blocks(self) -> Iterator[Array]:
        """Their values, a tensor each."""

    @property
    def num_bytes(self) -> int:
        """Of all of them."""
        return sum(DTYPES[dtype].itemsize * math.prod(shape) for _, dtype, shape in self.tensors)


@dataclass(frozen=True)
class OneTensor(Output):
    """A tensor in the type that is asked for."""

    dense: Dense

    def blocks(self) -> Iterator[Array]:
        """Its values."""
        array, dtype = self.dense.make(), self.tensors[0][1]
        if mx.issubdtype(array.dtype, mx.floating):
            check_finite(Path(self.dense.name), {"it": array})
            if dtype == "float16" and float(mx.abs(array).max()) > _LARGEST_FLOAT16:
                raise MlxmathError(
                    f"{self.dense.name} has values beyond the range of float16; choose --export-dtype bfloat16."
                )
            array = array.astype(getattr(mx, dtype))
        yield as_numpy(array)
        mx.clear_cache()


def one_tensor(dense: Dense, dtype: str) -> OneTensor:
    """A tensor as `dtype`, "auto": as it is stored."""
    return OneTensor(((dense.name, stored_as(dense.dtype, dtype), dense.shape),), dense)


def write_tensors(folder: Path, outputs: Sequence[Output], *, form: str, shard_bytes: int = SHARD_BYTES) -> None:
    """Write model.safetensors, or several such files and their index.

    Args:
        folder: where to.
        outputs: what.
        form: whose tensors they are, as the files' metadata say: "pt" or "mlx".
        shard_bytes: a file is not begun a tensor beyond this size.
    """
    total = sum(output.num_bytes for output in outputs)
    check_space(folder, total)
    shards: list[list[Output]] = [[]]
    begun = 0
    for output in sorted(outputs, key=lambda output: -DTYPES[output.tensors[0][1]].itemsize):  # aligned to their types
        if shards[-1] and begun + output.num_bytes > shard_bytes:
            shards.append([])
            begun = 0
        shards[-1].append(output)
        begun += output.num_bytes
    places: dict[str, str] = {}
    with Progress("writing", total, unit="B") as progress:
        for number, shard in enumerate(shards, 1):
            several = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            name = several if len(shards) > 1 else "model.safetensors"
            tensors = [tensor for output in shard for tensor in output.tensors]
            with SafetensorsWriter(folder / name, tensors, form=form) as writer:
                for output in shard:
                    for block in output.blocks():
                        writer.write(block)
                        progress.update(block.nbytes)
            places |= {tensor[0]: name for tensor in tensors}
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        atomic_json(folder / "model.safetensors.index.json", index)


def write_companions(folder: Path, original: Original, config: dict[str, Any]) -> None:
    """Write config.json, the tokenizer's files, the template that the model was trained in and where answers end."""
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    copy_companions(original.model, folder, trust_remote_code=False)
    tokenizer = load_generation_tokenizer(original.model, original.template)
    if original.adapter:
        atomic_write(folder / CHAT_TEMPLATE, original.template.chat_template(bos=adds_bos(tokenizer)))
    path = folder / "generation_config.json"
    settings = read_json(path) if path.is_file() else {}
    atomic_json(path, {**settings, "eos_token_id": sorted(tokenizer.eos_token_ids)})
