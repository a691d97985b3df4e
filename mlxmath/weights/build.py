"""Builds an MLX model folder out of a model folder of Hugging Face, a block of a tensor at a time."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.config.schema import ModelConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import Progress, duration, say, size
from mlxmath.runtime.files import atomic_folder, real, sha256
from mlxmath.weights.architecture import Built, shortened
from mlxmath.weights.dtypes import DTYPES, FLOAT8, Array, prevailing, stored_as
from mlxmath.weights.hub import Source, Weights
from mlxmath.weights.layout import Layout, check_built, plan_layout
from mlxmath.weights.manifest import FileRecord, Manifest, fingerprint, fingerprint_of_files, hashing, verify, versions
from mlxmath.weights.opened import open_source
from mlxmath.weights.packing import Chosen, Packing, asked_for
from mlxmath.weights.quantize import (
    Made,
    MadeTensor,
    plan_quantization,
    quantized_blocks,
    stored_rows,
)
from mlxmath.weights.quantized import Stored, natural_dtype, stored, unscaled
from mlxmath.weights.remade import remade
from mlxmath.weights.safetensor import Declared, SafetensorsWriter, is_mlx
from mlxmath.weights.tensors import TensorRef

SHARD_BYTES = 5_000_000_000
SPARE_BYTES = 64 << 20
"""Room left on the disk for tokenizer files and the file system's own needs."""


@dataclass(frozen=True)
class _Output:
    """Tensors of the output that come from one tensor of the source, or from one that mlx_lm makes of several.

    Attributes:
        tensors: (name, dtype, shape) of each.
        blocks: their elements, in that order.
    """

    tensors: tuple[Declared, ...]
    blocks: Callable[[], Iterator[Array]]

    @property
    def num_bytes(self) -> int:
        return sum(DTYPES[dtype].itemsize * math.prod(shape) for _, dtype, shape in self.tensors)


@dataclass(frozen=True)
class _Plan:
    outputs: Sequence[_Output]
    layout: Layout
    quantization: dict[str, Any] | None
    dtype: str
    notes: Sequence[str]
    made: Made | None
    remade: tuple[str, ...] | None


def build_model(
    config: ModelConfig, source: Source, chosen: Chosen | None = None, *, shard_bytes: int = SHARD_BYTES
) -> Manifest:
    """Write `config.mlx_path` from `source`, whole or not at all.

    Args:
        config: where to, the type of the weights, the quantization.
        source: the model folder.
        chosen: the form of each layer, where the configuration leaves that to a choice.
        shard_bytes: a safetensors file is not begun a tensor beyond this size.

    Raises:
        InputError: the settings do not fit the model.
        MlxmathError: the source is damaged or incomplete, or the disk is full. Nothing is left behind.
    """
    started = time.perf_counter()
    target = real(Path(config.mlx_path).expanduser())
    if target == source.folder or target in source.folder.parents:
        raise InputError(
            f"--mlx-path {config.mlx_path} would replace the model that it is made from; choose another folder."
        )
    opened = open_source(source, packed=config.quantize is None and config.dtype == "auto")
    weights = opened.weights
    plan = _plan(config, opened.config, stored(opened.config), weights, source.folder, chosen)
    if weights.num_ignored:
        say(f"  ignored {weights.num_ignored} entries of the weight files that are no tensors")
    for note in (*opened.notes, *plan.notes):
        say(f"  {note}")
    total = sum(output.num_bytes for output in plan.outputs)
    check_space(target, total + (plan.made.copied_bytes if plan.made else 0))
    say(f"  writing {size(total)} from {len(weights.files)} {opened.form} file(s) to {config.mlx_path}")
    with atomic_folder(target) as folder, hashing(weights, source.folder) as source_records:
        with plan.made.opened(folder) if plan.made else nullcontext():
            records, digests = _write_weights(folder, plan.outputs, shard_bytes)
        (folder / "config.json").write_text(json.dumps(plan.layout.config, indent=2) + "\n", encoding="utf-8")
        opened.write_companions(folder, trust_remote_code=config.trust_remote_code)
        known = {record.name for record in records}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            if name not in known:
                records.append(FileRecord(name=name, size=path.stat().st_size, sha256=sha256(path)))
        sources = source_records()
        manifest = Manifest(
            source=source.name,
            revision=source.revision,
            requested_revision=config.revision,
            source_files=tuple(sources),
            files=tuple(records),
            requested_dtype=config.dtype,
            dtype=plan.dtype,
            quantization=plan.quantization,
            quantize=None if config.quantize is None else str(config.quantize),
            calibration=chosen.calibration if chosen else None,
            quantization_of_source=config.quantize is None and plan.quantization is not None,
            num_parameters=sum(tensor.num_elements for tensor in plan.layout.tensors.values()),
            versions=versions(),
            fingerprint=fingerprint(digests, plan.quantization),
            also=(fingerprint_of_files(sources, plan.dtype, plan.quantization),),
            limits=plan.layout.limits,
            remade=plan.remade,
        )
        manifest.write(folder)
        checked = verify(folder)
        if isinstance(checked, str):
            raise MlxmathError(f"the converted model is not whole: {checked}. Run the command again.")
    say(f"  wrote {config.mlx_path}: {manifest.describe()}, in {duration(time.perf_counter() - started)}")
    return manifest


def _plan(
    config: ModelConfig, model_config: dict[str, Any], form: Stored, weights: Weights, folder: Path,
    by_layer: Chosen | None,
) -> _Plan:  # fmt: skip
    """Decide every tensor of the output before any is read."""
    if form.how not in ("plain", "scaled") and (config.quantize is not None or config.dtype != "auto"):
        raise InputError(
            f"--model {config.model} is quantized already ({form.method}: {json.dumps(form.settings)[:120]}); use it "
            "as it is, without --quantize and --dtype."
        )
    notes: list[str] = []
    tensors = weights.tensors
    natural = natural_dtype(model_config)
    if form.how != "packed":
        tensors, num_scaled = unscaled(tensors, form.block, natural)
        if num_scaled:
            wanted = natural if config.dtype == "auto" else config.dtype
            notes.append(f"{num_scaled} weights of 8 bits ({form.method or 'with scales'}) become {wanted}")
    layout = plan_layout(model_config, tensors, folder)
    notes += layout.notes
    built, output_config, tensors = layout.built, layout.config, layout.tensors
    quantized = form.settings
    chosen: Mapping[str, Packing] = {}
    entries: dict[str, TensorRef | MadeTensor] = dict(tensors)
    made = None
    if config.quantize is not None or form.how == "rearranged":
        made = Made(output_config, tensors, built)
        entries = {
            name: tensors[built.origins[name]] if name in built.origins else made.tensor(name, array)
            for name, array in built.arrays.items()
        }
    if config.quantize is not None:
        packing = asked_for(config) or Packing(4)
        plan = plan_quantization(built, packing, by_layer.packings if by_layer else None)
        if plan.skipped:
            notes.append(
                f"not quantized, since the group size does not divide their rows: {shortened(plan.skipped, 4)}"
            )
        quantized, chosen = plan.settings, plan.packings
    if quantized is not None and form.method != "bitnet":
        output_config["quantization"] = output_config["quantization_config"] = quantized

    dtypes = {name: stored_as(tensor.dtype, config.dtype) for name, tensor in entries.items()}
    wide = natural if config.dtype == "auto" else config.dtype
    for name, tensor in entries.items():
        if tensor.dtype in FLOAT8:
            dtypes[name] = "uint8" if form.how == "packed" else wide
    if config.dtype != "auto" and any(dtypes[name] != tensor.dtype for name, tensor in entries.items()):
        for name in _kept_floats(built, entries):
            dtypes[name] = stored_as(entries[name].dtype, "auto")
    widened = sum(tensor.dtype == "float64" for tensor in entries.values())
    if widened and config.dtype == "auto":
        notes.append(f"{widened} float64 tensors become float32: MLX has float64 on the CPU alone")

    dtype = prevailing((dtypes[name], tensor.num_elements) for name, tensor in entries.items())
    for key in ("dtype", "torch_dtype"):
        if key in output_config and quantized is None:
            output_config[key] = dtype

    outputs = [_output(name, tensor, dtypes[name], chosen.get(name)) for name, tensor in entries.items()]
    outputs.sort(key=lambda output: -DTYPES[output.tensors[0][1]].itemsize)  # keeps every tensor aligned to its type
    if quantized is not None:
        declared = [tensor for output in outputs for tensor in output.tensors]
        check_built(output_config, declared, folder, asked=config.quantize is not None)
    if made is not None and made.names:
        notes.append(
            f"{len(made.names)} tensors are put together as mlx_lm does on loading, the largest of "
            f"{size(made.largest)}; it is held in memory, with what it is made of, while it is written"
        )
    is_hugging_face_s = not any(path.suffix == ".safetensors" and is_mlx(path) for path in weights.files)
    is_known = form.how != "packed" and is_hugging_face_s
    as_made = None if not is_known else () if made is None else remade(built, tensors, chosen)
    if made is not None and not made.names:
        made = None
    return _Plan(outputs, layout, quantized, dtype, notes, made, as_made)


def _kept_floats(built: Built, names: Iterable[str]) -> frozenset[str]:
    """Tensors whose type the model itself wants unchanged (mlx_lm's `cast_predicate`)."""
    predicate = getattr(built.model, "cast_predicate", None)
    if predicate is None:
        return frozenset()
    kept = {origin for name, origin in built.origins.items() if not predicate(name)}
    return frozenset(name for name in names if name in kept or not predicate(name))


def _output(name: str, tensor: TensorRef | MadeTensor, dtype: str, packing: Packing | None) -> _Output:
    if packing is None:
        return _Output(((name, dtype, tensor.shape),), lambda: tensor.blocks_as(dtype))
    rows_of = stored_rows if isinstance(tensor, TensorRef) else MadeTensor.rows
    return _Output(
        tuple(packing.declared(name, dtype, tensor.shape)),
        lambda: quantized_blocks(rows_of(tensor, dtype), packing),  # type: ignore[arg-type]
    )


def check_space(target: Path, needed: int) -> None:
    """Refuse to write what has no room on the disk."""
    parent = next(path for path in target.parents if path.exists())
    free = shutil.disk_usage(parent).free
    if needed + SPARE_BYTES > free:
        raise MlxmathError(
            f"cannot write {target}: the model takes {size(needed)}, and {size(free)} are free there. Nothing was "
            "written; free some space or choose another folder."
        )


def _write_weights(
    folder: Path, outputs: Sequence[_Output], shard_bytes: int
) -> tuple[list[FileRecord], dict[str, str]]:
    """Write the safetensors files, and their index if they are several; the tensors' digests are returned too."""
    shards: list[list[_Output]] = [[]]
    begun = 0
    for output in outputs:
        if shards[-1] and begun + output.num_bytes > shard_bytes:
            shards.append([])
            begun = 0
        shards[-1].append(output)
        begun += output.num_bytes
    total = sum(output.num_bytes for output in outputs)
    records = []
    weight_map: dict[str, str] = {}
    digests: dict[str, str] = {}
    with Progress("converting", total, unit="B") as progress:
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
            tensors = [tensor for output in shard for tensor in output.tensors]
            with SafetensorsWriter(folder / name, tensors) as writer:
                for output in shard:
                    for block in output.blocks():
                        writer.write(block)
                        progress.update(block.nbytes)
            records.append(FileRecord(name=name, size=writer.num_bytes, sha256=writer.sha256))
            weight_map |= {tensor[0]: name for tensor in tensors}
            digests |= writer.digests
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return records, digests
