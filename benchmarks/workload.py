"""What the training benchmarks train: model shapes with random weights, a real tokenizer, and rows of GSM8K.

Everything is a plain Hugging Face folder on the disk that every contestant reads: config.json, safetensors, tokenizer
files.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.random_weights import ITEM_BYTES, write_weights
from benchmarks.shapes import Shape

EFFECTIVE_BATCH = 8


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
        return self.stored_bytes or self.shape.num_parameters * ITEM_BYTES[self.dtype]

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
    from mlxmath.data.sources import load_problems
    from mlxmath.data.templates import get_template

    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return [get_template(template).render(problem) for problem in load_problems(DataConfig(dataset=str(path)))]


def tokenizer(data: Path, vocab: int, template: str) -> Any:
    """A byte-level BPE trained on all of `data`, as large as the data allows and `vocab` at most."""
    import tempfile

    from mlxmath.data.templates import joined

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
