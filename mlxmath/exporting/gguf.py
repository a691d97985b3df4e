"""`--to gguf`: the merged model for llama.cpp, in 16 bits or quantized; or the adapter alone.

Tensors are made, quantized and written one at a time. Weights become the type of --gguf-type; vectors stay in float32,
and a row that the type's blocks do not divide takes the next larger type, as llama.cpp's own quantizer has it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGML_QUANT_VERSION

from mlxmath.data.render import adds_bos
from mlxmath.errors import InputError
from mlxmath.exporting.check import Answers
from mlxmath.exporting.gguf_adapter import write_adapter
from mlxmath.exporting.gguf_metadata import Described, Value, describe, read_config
from mlxmath.exporting.gguf_types import FILE_TYPES, quantized, type_of
from mlxmath.exporting.gguf_vocabulary import END_KEYS, Vocabulary, vocabulary_of
from mlxmath.exporting.llama_cpp import LlamaCpp, require_llama_cpp
from mlxmath.exporting.merge import Dense, merged_tensors
from mlxmath.exporting.original import Job, Original, refuse_flags
from mlxmath.generation.model import load_generation_tokenizer
from mlxmath.runtime.console import Progress
from mlxmath.runtime.files import disk_errors
from mlxmath.weights.build import check_space
from mlxmath.weights.dtypes import Array


@dataclass(frozen=True)
class Planned:
    """A tensor of the file."""

    name: str
    parts: tuple[Dense, ...]
    """One, or that of each expert."""
    type: Type

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all parts together."""
        shape = self.parts[0].shape
        return (len(self.parts), *shape) if ".experts." in self.parts[0].name else shape

    @property
    def num_bytes(self) -> int:
        """In the file."""
        block, size = GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block * size


def write(job: Job) -> list[str]:
    """Write the model or its adapter; see `Target`."""
    refuse_flags(job.settings, "dequantize", "requantize", "export_dtype")
    original, settings = job.original, job.settings
    if settings.check:
        require_llama_cpp()
    if settings.adapter_only:
        return write_adapter(job)
    described = describe(read_config(original.model))
    tensors = planned(described, merged_tensors(original.load(), original.model), settings.gguf_type)
    path = job.folder / f"model-{settings.gguf_type}.gguf"
    writer = GGUFWriter(None, described.family.architecture)
    writer.add_type("model")
    writer.add_name(original.model.resolve().name)
    writer.add_file_type(FILE_TYPES[settings.gguf_type][2])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    _add(writer, described.metadata, f"{described.family.architecture}.")
    rows = next(each.shape[0] for each in tensors if each.name == "token_embd.weight")
    ends = _add_vocabulary(writer, original, rows)
    _write_tensors(writer, path, tensors, described)
    counts: dict[str, int] = {}
    for each in tensors:
        counts[each.type.name] = counts.get(each.type.name, 0) + 1
    notes = [f"{path.name}: " + ", ".join(f"{number} tensors in {name}" for name, number in counts.items())]
    notes += described.notes
    if len(ends) > len(END_KEYS):
        notes.append(f"a GGUF file names {len(END_KEYS)} tokens that end an answer; this model has {len(ends)}")
    return notes


def reopened(job: Job) -> Answers:
    """The written model in llama.cpp."""
    (path,) = job.folder.glob("*.gguf")
    tokenizer = load_generation_tokenizer(job.original.model, job.original.template)
    longest = job.settings.check_tokens + 4096
    ends, stops = sorted(tokenizer.eos_token_ids), job.original.template.stop_strings
    return LlamaCpp(path, tokenizer.decode, ends, longest, stops)


def planned(described: Described, tensors: Sequence[Dense], gguf_type: str) -> list[Planned]:
    """The tensors of the file and their types.

    Raises:
        InputError: the model has one that its architecture in llama.cpp has not.
    """
    named: dict[str, list[Dense]] = {}
    for dense in tensors:
        name = described.family.to_gguf(dense.name.removeprefix("language_model."))
        if name is None:
            if re.search(r"rotary_emb|vision|multi_modal", dense.name):
                continue
            raise InputError(
                f"--to: {dense.name} has no place in a GGUF file of llama.cpp's {described.family.architecture}; "
                "export with --to hf instead."
            )
        named.setdefault(name, []).append(dense)
    for parts in named.values():
        parts.sort(key=lambda dense: int(re.findall(r"\.experts\.(\d+)\.|$", dense.name)[0] or 0))
    is_tied = "output.weight" not in named
    blocks = int(described.metadata["block_count"])
    return [
        Planned(name, tuple(parts), type_of(name, parts[0].shape, gguf_type, is_tied=is_tied, num_blocks=blocks))
        for name, parts in named.items()
    ]


def _write_tensors(writer: GGUFWriter, path: Path, tensors: Sequence[Planned], described: Described) -> None:
    """Write the file: what it holds, then a tensor at a time."""
    total = sum(each.num_bytes for each in tensors)
    check_space(path.parent, total)
    for name, values in described.tensors.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for each in tensors:
        writer.add_tensor_info(each.name, each.shape, np.dtype(np.float32), each.num_bytes, each.type)
    with disk_errors(path), Progress("writing", total, unit="B") as progress:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in described.tensors.values():
            writer.write_tensor_data(values)
        for each in tensors:
            made = [quantized(_as_stored(dense, described), each.type, each.name) for dense in each.parts]
            stored = np.ascontiguousarray(made[0] if len(made) == 1 else np.stack(made))
            assert stored.nbytes == each.num_bytes
            writer.write_tensor_data(stored)
            progress.update(each.num_bytes)
            mx.clear_cache()
        writer.close()


def _as_stored(dense: Dense, described: Described) -> Array:
    """A tensor's values as llama.cpp has them: rows of q and k in its order, Gemma's norms with 1 added."""
    name = described.family.to_gguf(dense.name.removeprefix("language_model.")) or ""
    values = np.asarray(dense.make().astype(mx.float32))
    if (order := described.row_order(name, values.shape[0])) is not None:
        values = values[order]
    return values + np.float32(described.family.added(name))


def _add(writer: GGUFWriter, entries: Mapping[str, Value], start: str) -> None:
    for key, value in entries.items():
        if isinstance(value, bool):
            writer.add_bool(start + key, value)
        elif isinstance(value, int):
            writer.add_uint32(start + key, value)
        elif isinstance(value, float):
            writer.add_float32(start + key, value)
        else:
            writer.add_string(start + key, value)


def _add_vocabulary(writer: GGUFWriter, original: Original, num_rows: int) -> list[int]:
    """Add the tokenizer, and the chat template that the model was trained in; the tokens that end an answer."""
    tokenizer = load_generation_tokenizer(original.model, original.template)
    ends = ends_of(tokenizer, original)
    vocabulary: Vocabulary = vocabulary_of(original.model, tokenizer, ends, num_rows)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_token_scores(vocabulary.scores)
    _add(writer, vocabulary.settings, "tokenizer.ggml.")
    writer.add_chat_template(original.template.chat_template(bos=adds_bos(tokenizer)))
    return ends


def ends_of(tokenizer: Any, original: Original) -> list[int]:
    """Tokens that end an answer: the template's, the tokenizer's, and the others that the model's files name."""
    stop = original.template.stop
    first = [tokenizer.convert_tokens_to_ids(stop)] if stop else []
    return list(dict.fromkeys([*first, tokenizer.eos_token_id, *sorted(tokenizer.eos_token_ids)]))
