"""GGUF files of tiny models, written with the gguf package by llama.cpp's conventions; no code of mlxmath's."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Kind = gguf.GGMLQuantizationType
PERMUTED = ("llama", "granite", "smollm3")
"""Architectures whose converter permutes the rows of q and k."""


def byte_tokens() -> list[str]:
    """The 256 bytes as GPT-2 writes them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [number for number in range(256) if number not in printable]
    texts = {number: chr(number) for number in printable} | {n: chr(256 + i) for i, n in enumerate(others)}
    return [texts[number] for number in range(256)]


def permuted(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """`LlamaModel.permute` of convert_hf_to_gguf.py."""
    halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def stored_tensors(
    architecture: str, state: Mapping[str, np.ndarray], num_blocks: int, heads: tuple[int, int]
) -> dict[str, np.ndarray]:
    """A state dict of Hugging Face's as a GGUF file of that architecture has it."""
    arch = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(arch, num_blocks)
    result: dict[str, np.ndarray] = {}
    experts: dict[str, dict[int, np.ndarray]] = {}
    for name, array in state.items():
        found = re.fullmatch(r"(.+\.experts)\.(\d+)\.(.+)", name)
        if found:
            experts.setdefault(f"{found[1]}.{found[3]}", {})[int(found[2])] = array
            continue
        stored = array.astype(np.float32)
        if architecture in PERMUTED and re.search(r"\.[qk]_proj\.", name):
            stored = permuted(stored, heads[0] if ".q_proj." in name else heads[1])
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            stored = stored + 1
        result[_named(names, name)] = stored
    for name, parts in experts.items():
        result[_named(names, name)] = np.stack([parts[number] for number in range(len(parts))]).astype(np.float32)
    return result


def _named(names: gguf.TensorNameMap, name: str) -> str:
    found = names.get_name(name, (".weight", ".bias"))
    assert found is not None, name
    return found


def write_gguf(
    path: Path,
    architecture: str,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    *,
    kind: Kind = Kind.F32,
    kinds: Mapping[str, Kind] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> Path:
    """Write a file.

    Args:
        path: where to.
        architecture: `general.architecture`.
        tensors: by GGUF's names.
        metadata: keys without the architecture, and values: int, float (as float32), bool, str or a list of them.
        kind: of tensors with more than one dimension.
        kinds: of some by name.
        tokenizer: `tokenizer.*` by key (None: bytes alone).
    """
    writer = gguf.GGUFWriter(path, architecture)
    given = {f"{architecture}.{key}": value for key, value in metadata.items()}
    rows = tensors["token_embd.weight"].shape[0]
    for key, value in (given | dict(tokenizer or bytes_tokenizer(rows))).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, array in tensors.items():
        chosen = (kinds or {}).get(name, kind if array.ndim > 1 else Kind.F32)
        data = gguf.quants.quantize(array, chosen) if chosen != Kind.F32 else array
        writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def bytes_tokenizer(num_tokens: int) -> dict[str, Any]:
    """A tokenizer of bytes, two merges and control tokens, filled up with tokens that are not used."""
    tokens = [*byte_tokens(), "th", "the", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    kinds = [1] * 258 + [3] * 3
    spare = num_tokens - len(tokens)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*tokens, *(f"[PAD{number}]" for number in range(spare))],
        "tokenizer.ggml.token_type": [*kinds, *[5] * spare],
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.eos_token_id": 260, "tokenizer.ggml.bos_token_id": 259,
    }  # fmt: skip


def llama_metadata(**changes: Any) -> dict[str, Any]:
    """Of a Llama with 2 blocks, width 64, 4 heads of 16."""
    return {
        "block_count": 2, "context_length": 256, "embedding_length": 64, "feed_forward_length": 96,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0, "rope.dimension_count": 16, "vocab_size": 288, **changes,
    }  # fmt: skip


def llama_state(seed: int = 0, *, tied: bool = True) -> dict[str, np.ndarray]:
    """Random weights for it, by Hugging Face's names."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (288, 64), "model.norm.weight": (64,)}
    if not tied:
        shapes["lm_head.weight"] = (288, 64)
    for block in range(2):
        start = f"model.layers.{block}"
        shapes |= {
            f"{start}.self_attn.q_proj.weight": (64, 64), f"{start}.self_attn.k_proj.weight": (32, 64),
            f"{start}.self_attn.v_proj.weight": (32, 64), f"{start}.self_attn.o_proj.weight": (64, 64),
            f"{start}.mlp.gate_proj.weight": (96, 64), f"{start}.mlp.up_proj.weight": (96, 64),
            f"{start}.mlp.down_proj.weight": (64, 96), f"{start}.input_layernorm.weight": (64,),
            f"{start}.post_attention_layernorm.weight": (64,),
        }  # fmt: skip
    return {
        name: (rng.standard_normal(shape) * 0.1 + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def llama_gguf(
    path: Path, *, seed: int = 0, tied: bool = True, meta: Mapping[str, Any] | None = None, **how: Any
) -> Path:
    """A file with that Llama."""
    state = llama_state(seed, tied=tied)
    return write_gguf(path, "llama", stored_tensors("llama", state, 2, (4, 2)), llama_metadata(**(meta or {})), **how)
