"""Folders of small models with random weights, as a conversion leaves them."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 64, "tie_word_embeddings": False,
}  # fmt: skip


def folder_of(folder: Path, config: dict[str, Any], bits: int | None = None, dtype: mx.Dtype = mx.float32) -> Path:
    """A model folder of random weights."""
    from mlx_lm.utils import _get_classes

    kind, arguments = _get_classes(config)
    mx.random.seed(1)
    model = kind(arguments.from_dict(config))
    model.update(tree_map(lambda a: a.astype(dtype) if mx.issubdtype(a.dtype, mx.floating) else a, model.parameters()))
    if bits:
        nn.quantize(model, 32, bits)
        config = config | {"quantization": {"group_size": 32, "bits": bits}}
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def deep(prepared: Path, num_layers: int) -> int:
    """The bundled model with many more blocks, in a folder "deep"; its bytes."""
    config = json.loads((prepared / "mlx_model" / "config.json").read_text()) | {"num_hidden_layers": num_layers}
    folder_of(prepared / "deep", config)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (prepared / "deep" / name).write_bytes((prepared / "mlx_model" / name).read_bytes())
    return (prepared / "deep" / "model.safetensors").stat().st_size
