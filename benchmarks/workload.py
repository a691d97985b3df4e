"""What the training benchmarks train: model shapes with random weights, a real tokenizer, and rows of GSM8K.

Everything is a plain Hugging Face folder on the disk that every contestant reads: config.json, safetensors, tokenizer
files. Weights are normal with a standard deviation of 0.02, norms are one, biases zero.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHARD_BYTES = 4_000_000_000
EFFECTIVE_BATCH = 8
_POOL = 16_777_259  # prime: no two rows of a matrix are the same slice of the pool
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Shape:
    """A decoder-only model by its sizes, and how many rows of the data it is measured on."""

    name: str
    family: str
    """"llama" or "qwen2" (which has biases on q, k and v)."""
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool
    rows: int
    quick_rows: int

    @property
    def title(self) -> str:
        """Name, family, parameters and vocabulary."""
        millions = self.num_parameters / 1e6
        return f"{self.name} ({self.family} {millions:,.{0 if millions >= 10 else 2}f}M, vocabulary {self.vocab:,})"

    def config(self, dtype: str) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": ["LlamaForCausalLM" if self.family == "llama" else "Qwen2ForCausalLM"],
            "model_type": self.family,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "tie_word_embeddings": self.tied,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0 if self.family == "llama" else 1000000.0,
            "max_position_embeddings": 4096,
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "torch_dtype": dtype,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }

    def block_linears(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each linear layer of a block."""
        kv = self.hidden // self.heads * self.kv_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor of the checkpoint."""
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for i in range(self.layers):
            prefix = f"model.layers.{i}."
            for name, shape in self.block_linears().items():
                yield f"{prefix}{name}.weight", shape
                if self.family == "qwen2" and name[10:] in ("q_proj", "k_proj", "v_proj"):
                    yield f"{prefix}{name}.bias", shape[:1]
            yield f"{prefix}input_layernorm.weight", (self.hidden,)
            yield f"{prefix}post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab, self.hidden)

    @property
    def num_parameters(self) -> int:
        """Parameters in all."""
        return sum(math.prod(shape) for _, shape in self.tensors())

    def flops_per_token(self, targets_per_token: float) -> float:
        """Matrix-product FLOPs of training one token with frozen weights.

        2 a weight forward and 2 a weight for the gradient of its input; the head only where there is a target.
        Attention scores, adapters and everything element-wise are left out, so a fraction of the ceiling is never
        flattered.
        """
        blocks = self.layers * sum(map(math.prod, self.block_linears().values()))
        return 4 * (blocks + targets_per_token * self.vocab * self.hidden)


_QWEN = {"family": "qwen2", "kv_heads": 2, "tied": True, "vocab": 151_936}
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", "llama", 64, 2, 4, 2, 160, 2_000, False, 16, 16),
        Shape("small", "llama", 512, 8, 8, 8, 1408, 32_000, False, 64, 16),
        Shape("0.5b", hidden=896, layers=24, heads=14, intermediate=4864, rows=24, quick_rows=8, **_QWEN),
        Shape("1.5b", hidden=1536, layers=28, heads=12, intermediate=8960, rows=16, quick_rows=8, **_QWEN),
        Shape("7b", "qwen2", 3584, 28, 28, 4, 18944, 152_064, False, 16, 8),
    )
}
"""`small` and `0.5b` are what `bench_train.py` measures; `0.5b`, `1.5b` and `7b` are Qwen2.5's sizes."""


@dataclass(frozen=True)
class Row:
    """A training row: token ids, and how many at the start are the prompt (not targets)."""

    tokens: list[int]
    num_prompt: int

    @property
    def num_targets(self) -> int:
        """Tokens with a loss: the completion and the end-of-text token."""
        return len(self.tokens) - self.num_prompt


@dataclass(frozen=True)
class Workload:
    """A model folder and rows, on the disk."""

    shape: Shape
    dtype: str
    folder: Path
    rows: list[Row]
    stored_bytes: int | None = None
    """The weights' size where it does not follow from shape and type: quantized ones."""

    @property
    def model(self) -> Path:
        """The Hugging Face folder."""
        return self.folder / "model"

    @property
    def dataset(self) -> Path:
        """The rows as text, a JSON object a line."""
        return self.folder / f"rows-{len(self.rows)}.jsonl"

    @property
    def first_batch(self) -> Path:
        """The first effective batch alone: a dataset whose only window it is, whatever the order."""
        return self.folder / "first_batch.jsonl"

    @property
    def num_tokens(self) -> int:
        """Real tokens: prompts, completions and end-of-text; no padding."""
        return sum(len(row.tokens) for row in self.rows)

    @property
    def num_targets(self) -> int:
        """Tokens with a loss."""
        return sum(row.num_targets for row in self.rows)

    @property
    def weights_bytes(self) -> int:
        """The model's weights in memory, in their own type."""
        return self.stored_bytes or self.shape.num_parameters * _BYTES[self.dtype]

    @property
    def flops_per_token(self) -> float:
        """See `Shape.flops_per_token`."""
        return self.shape.flops_per_token(self.num_targets / self.num_tokens)


def make_workload(
    shape: Shape, work: Path, data: Path, *, dtype: str, num_rows: int, template: str, num_ids: int | None = None
) -> Workload:
    """Write the model folder and the rows, unless they are there already.

    Args:
        shape: the model.
        work: folder for all shapes.
        data: .jsonl with problems and solutions, in columns that mlxmath finds by itself.
        dtype: type of the stored weights.
        num_rows: rows to train on: the first ones of `data`.
        template: how a problem becomes text; one of mlxmath's names.
        num_ids: most ids of the tokenizer (default: the model's vocabulary).
    """
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    key = json.dumps([asdict(shape), dtype, template, num_ids, digest])
    folder = work / f"{shape.name}-{dtype}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    model = folder / "model"
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        model.mkdir(parents=True)
        tokenizer(data, min(shape.vocab, num_ids or shape.vocab), template).save_pretrained(model)
        (model / "config.json").write_text(json.dumps(shape.config(dtype), indent=2))
        write_weights(shape, model, dtype)
        (folder / "whole").touch()
    lines = data.read_text(encoding="utf-8").splitlines()[:num_rows]
    result = Workload(shape, dtype, folder, tokenize(lines, folder, model, template))
    result.dataset.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    result.first_batch.write_text("".join(line + "\n" for line in lines[:EFFECTIVE_BATCH]), encoding="utf-8")
    return result


def tokenize(lines: list[str], folder: Path, model: Path, template: str) -> list[Row]:
    """The rows as `mlxmath train` would make them."""
    from mlxmath.data.codec import load_tokenizer
    from mlxmath.data.render import render

    texts = _texts_of(lines, folder / "lines.jsonl", template)
    rendered, num_failed = render(load_tokenizer(model), texts)
    assert not num_failed
    bounds = zip(rendered.offsets[:-1], rendered.offsets[1:], strict=True)
    return [Row(rendered.tokens[a:b].tolist(), int(np.argmax(rendered.mask[a:b]))) for a, b in bounds]


def _texts_of(lines: list[str], path: Path, template: str) -> list[Any]:
    """The rows' texts, in segments."""
    from mlxmath.config.schema import DataConfig
    from mlxmath.problems.prompts import get_template
    from mlxmath.problems.sources import load_problems

    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return [get_template(template).render(problem) for problem in load_problems(DataConfig(dataset=str(path)))]


def tokenizer(data: Path, vocab: int, template: str) -> Any:
    """A byte-level BPE trained on all of `data`, as large as the data allows and `vocab` at most."""
    import tempfile

    from mlxmath.problems.prompts import joined

    with tempfile.TemporaryDirectory() as folder:
        lines = data.read_text(encoding="utf-8").splitlines()
        texts = _texts_of(lines, Path(folder, "all.jsonl"), template)
    return byte_level_tokenizer([joined(text) for text in texts], vocab)


def byte_level_tokenizer(texts: list[str], vocab_size: int) -> Any:
    """Byte-level BPE with the splitting pattern of Llama 3 and Qwen 2."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def write_weights(shape: Shape, folder: Path, dtype: str) -> None:
    """Write the random checkpoint, in shards with an index where it is large.

    Written by hand, so that the only thing it needs is numpy: a length, a JSON header, the data.
    """
    pool = _stored(np.random.default_rng(0).standard_normal(_POOL, np.float32) * np.float32(0.02), dtype)
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, size in shape.tensors():
        num_bytes = math.prod(size) * _BYTES[dtype]
        if filled and filled + num_bytes > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((name, size))
        filled += num_bytes
    index: dict[str, str] = {}
    offset = 0
    for number, tensors in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        index |= dict.fromkeys((name for name, _ in tensors), file)
        offset = _write_shard(folder / file, tensors, pool, offset, dtype)
    if len(shards) > 1:
        total = shape.num_parameters * _BYTES[dtype]
        record = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(record))


def _write_shard(
    path: Path, tensors: list[tuple[str, tuple[int, ...]]], pool: np.ndarray, offset: int, dtype: str
) -> int:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in tensors:
        start, end = end, end + math.prod(size) * _BYTES[dtype]
        kind = {"float32": "F32", "bfloat16": "BF16"}[dtype]
        header[name] = {"dtype": kind, "shape": list(size), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, size in tensors:
            count = math.prod(size)
            if len(size) == 1:
                file.write(_stored(np.full(count, 0.0 if name.endswith("bias") else 1.0, np.float32), dtype))
                continue
            while count:
                part = pool[offset : offset + count]
                file.write(part)
                offset = (offset + len(part)) % _POOL
                count -= len(part)
    return offset


def _stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """bfloat16 is the upper half of a float32 (cut off, not rounded: these are random numbers)."""
    return (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else values
