"""`--to gguf`: the merged model for llama.cpp, in 16 bits or quantized; or the adapter alone.

Tensors are made, quantized and written one at a time. Weights become the type of --gguf-type; vectors stay in float32,
and a row that the type's blocks do not divide takes the next larger type, as llama.cpp's own quantizer has it.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, LlamaFileType, quants
from gguf.constants import GGML_QUANT_SIZES, GGML_QUANT_VERSION

from mlxmath.data.render import adds_bos
from mlxmath.errors import InputError, MlxmathError
from mlxmath.exporting.check import Answers
from mlxmath.exporting.gguf_metadata import Described, Value, describe
from mlxmath.exporting.gguf_vocabulary import Vocabulary, vocabulary_of
from mlxmath.exporting.llama_cpp import LlamaCpp, require_llama_cpp
from mlxmath.exporting.merge import Dense, merged_tensors, parts_of
from mlxmath.exporting.original import Job, Original, refuse_flags
from mlxmath.generation.model import load_generation_tokenizer
from mlxmath.models.lora.layers import AdapterLayer, DoRALinear
from mlxmath.runtime.console import Progress
from mlxmath.runtime.files import disk_errors, read_json
from mlxmath.weights.architecture import text_part
from mlxmath.weights.build import check_space
from mlxmath.weights.dtypes import Array
from mlxmath.weights.gguf_names import rows_to_gguf
from mlxmath.weights.k_quants import quantize_q4_k, quantize_q6_k

ADAPTER = "adapter.gguf"
_FILE_TYPES = {
    "f16": (Type.F16, Type.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (Type.BF16, Type.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, Type.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q6_k": (Type.Q6_K, Type.Q6_K, LlamaFileType.MOSTLY_Q6_K),
    "q4_k_m": (Type.Q4_K, Type.Q6_K, LlamaFileType.MOSTLY_Q4_K_M),
    "q4_0": (Type.Q4_0, Type.Q6_K, LlamaFileType.MOSTLY_Q4_0),
}
"""Of each --gguf-type: the type of weights, that of the head (of a tied one: of the embedding), the file's."""
_LARGER = {Type.Q4_K: Type.Q5_0, Type.Q6_K: Type.Q8_0}
"""Where rows are no multiple of 256."""
_LARGEST_F16 = 65504.0


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
    refuse_flags(job.settings, "dequantize", "requantize")
    original, settings = job.original, job.settings
    if settings.check:
        require_llama_cpp()
    if settings.adapter_only:
        return _write_adapter(job)
    described = described_model(original)
    tensors = planned(described, merged_tensors(original.load(), original.model), settings.gguf_type)
    path = job.folder / f"model-{settings.gguf_type}.gguf"
    writer = GGUFWriter(None, described.family.architecture)
    writer.add_type("model")
    writer.add_name(original.model.resolve().name)
    writer.add_file_type(_FILE_TYPES[settings.gguf_type][2])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    _add(writer, described.metadata, f"{described.family.architecture}.")
    rows = next(each.shape[0] for each in tensors if each.name == "token_embd.weight")
    _add_vocabulary(writer, original, rows)
    _write_tensors(writer, path, tensors, described)
    counts: dict[str, int] = {}
    for each in tensors:
        counts[each.type.name] = counts.get(each.type.name, 0) + 1
    return [f"{path.name}: " + ", ".join(f"{number} tensors in {name}" for name, number in counts.items())]


def reopened(job: Job) -> Answers:
    """The written model in llama.cpp."""
    (path,) = job.folder.glob("*.gguf")
    tokenizer = load_generation_tokenizer(job.original.model, job.original.template)
    longest = job.settings.check_tokens + 4096
    ends, stops = sorted(tokenizer.eos_token_ids), job.original.template.stop_strings
    return LlamaCpp(path, tokenizer.decode, ends, longest, stops)


def described_model(original: Original) -> Described:
    """The metadata of a model; see `describe`."""
    config = read_json(original.model / "config.json")
    return describe(text_part(config) or config)


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
    is_tied = "output.weight" not in named
    blocks = int(described.metadata["block_count"])
    return [
        Planned(name, tuple(parts), type_of(name, parts[0].shape, gguf_type, is_tied=is_tied, num_blocks=blocks))
        for name, parts in named.items()
    ]


def type_of(name: str, shape: Sequence[int], gguf_type: str, *, is_tied: bool, num_blocks: int) -> Type:
    """The type of a tensor, as `llama_tensor_get_type` in llama.cpp's src/llama-quant.cpp chooses it."""
    usual, of_head, _ = _FILE_TYPES[gguf_type]
    if len(shape) < 2 or name.endswith("ffn_gate_inp.weight"):
        return Type.F32
    chosen = of_head if name == "output.weight" or (is_tied and name == "token_embd.weight") else usual
    if gguf_type == "q4_k_m" and re.search(r"attn_v|attn_qkv|ffn_down", name):
        number = int(name.split(".")[1])
        eighth = num_blocks // 8
        if number < eighth or number >= 7 * num_blocks // 8 or (number - eighth) % 3 == 2:
            chosen = Type.Q6_K
    if shape[-1] % GGML_QUANT_SIZES[chosen][0]:
        chosen = _LARGER.get(chosen, Type.F16)
    return chosen if shape[-1] % GGML_QUANT_SIZES[chosen][0] == 0 else Type.F16


def quantized(values: Array, type_: Type, name: str) -> Array:
    """Values (…, C) in float32 as the bytes of a type.

    Raises:
        MlxmathError: they are no numbers, or beyond the type's range.
    """
    if not np.isfinite(values).all():
        raise MlxmathError(f"{name} has values that are no finite numbers; the model or its adapter is damaged.")
    if type_ == Type.F32:
        return values
    if type_ == Type.F16:
        if np.abs(values).max(initial=0) > _LARGEST_F16:
            raise MlxmathError(f"{name} has values beyond the range of 16-bit floats; choose --gguf-type bf16.")
        return values.astype(np.float16)
    own = {Type.Q4_K: quantize_q4_k, Type.Q6_K: quantize_q6_k}.get(type_)
    return own(values) if own else quants.quantize(values, type_)


def _write_tensors(writer: GGUFWriter, path: Path, tensors: Sequence[Planned], described: Described) -> None:
    """Write the file: what it holds, then a tensor at a time."""
    total = sum(each.num_bytes for each in tensors)
    check_space(path.parent, total)
    for name, values in described.tensors.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for each in tensors:
        writer.add_tensor_info(each.name, each.shape, np.dtype(np.float32), each.num_bytes, each.type)
    with disk_errors(path), Progress("writing", total, unit="B") as progress:
        _begin(writer, path)
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


def _begin(writer: GGUFWriter, path: Path) -> None:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _as_stored(dense: Dense, described: Described) -> Array:
    """A tensor's values as llama.cpp has them: rows of q and k in its order, Gemma's norms with 1 added."""
    name = described.family.to_gguf(dense.name.removeprefix("language_model.")) or ""
    values = np.asarray(dense.make().astype(mx.float32))
    if (order := row_order(name, values.shape[0], described)) is not None:
        values = values[order]
    return values + np.float32(described.family.added(name))


def row_order(name: str, num_rows: int, described: Described) -> Array | None:
    """The rows of a tensor in llama.cpp's order; None where that is their own."""
    if not described.family.is_permuted(name):
        return None
    return rows_to_gguf(num_rows, described.num_heads if ".attn_q." in name else described.num_key_heads)


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


def _add_vocabulary(writer: GGUFWriter, original: Original, num_rows: int) -> None:
    """The tokenizer, and the chat template that the model was trained in."""
    tokenizer = load_generation_tokenizer(original.model, original.template)
    vocabulary: Vocabulary = vocabulary_of(original.model, tokenizer, ends_of(tokenizer, original), num_rows)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_token_scores(vocabulary.scores)
    _add(writer, vocabulary.settings, "tokenizer.ggml.")
    writer.add_chat_template(original.template.chat_template(bos=adds_bos(tokenizer)))


def ends_of(tokenizer: Any, original: Original) -> list[int]:
    """Tokens that end an answer: the template's, the tokenizer's, and the others that the model's files name."""
    stop = original.template.stop
    first = [tokenizer.convert_tokens_to_ids(stop)] if stop else []
    return list(dict.fromkeys([*first, tokenizer.eos_token_id, *sorted(tokenizer.eos_token_ids)]))


def _write_adapter(job: Job) -> list[str]:
    """Write the adapter alone, for llama.cpp's `--lora`."""
    if job.original.adapter is None:
        raise InputError("--adapter-only writes an adapter, and there is none; name one with --adapter-path.")
    if job.settings.check:
        raise InputError("--check asks a whole model; leave it out, or leave out --adapter-only.")
    described = described_model(job.original)
    writer = GGUFWriter(None, described.family.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    arrays: dict[str, Array] = {}
    alphas = set()
    for name, adapter in _adapters(job.original, described):
        a, b = np.asarray(adapter.lora_a), np.asarray(adapter.lora_b)
        if a.ndim == 2:  # (I, R) and (R, O); those of experts lie the other way round already
            a, b = a.T, b.T
        if (order := row_order(name, b.shape[-2], described)) is not None:
            b = b[..., order, :]
        alphas.add(float(adapter.scale) * a.shape[-2])
        arrays |= {f"{name}.lora_a": np.ascontiguousarray(a), f"{name}.lora_b": np.ascontiguousarray(b)}
    (alpha,) = alphas
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, array in arrays.items():
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    with disk_errors(job.folder / ADAPTER):
        _begin(writer, job.folder / ADAPTER)
        for array in arrays.values():
            writer.write_tensor_data(array)
        writer.close()
    return [
        f"{ADAPTER}: {len(arrays) // 2} layers; with a GGUF file of the base: llama-server -m BASE --lora {ADAPTER}"
    ]


def _adapters(original: Original, described: Described) -> Iterator[tuple[str, AdapterLayer]]:
    """The adapter layers by the names of their weights in the base's file."""
    loaded = original.load()
    parts = {part.path: part.name for part in parts_of(loaded).values() if part.adapter is not None}
    for path, layer in loaded.model.named_modules():
        if isinstance(layer, DoRALinear):
            raise InputError("--adapter-only: llama.cpp has no DoRA adapters; export the merged model instead.")
        if isinstance(layer, AdapterLayer):
            stored = parts.get(path, f"{path}.weight").removeprefix("language_model.")
            name = described.family.to_gguf(re.sub(r"\.switch_\w+\.", ".experts.0.", stored))
            if name is None:
                raise InputError(f"--adapter-only: llama.cpp's {described.family.architecture} has no layer {path}.")
            yield name, layer
