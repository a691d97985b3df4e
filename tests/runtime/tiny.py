"""A model of one block and a few thousand parameters, random, with the bundled model's tokenizer."""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.helpers import REPOSITORY

DEMO = REPOSITORY / "mlxmath" / "demo" / "model"
_HIDDEN, _INNER = 32, 64


def write_tiny_model(folder: Path) -> Path:
    """Write it in Hugging Face form."""
    folder.mkdir()
    for path in DEMO.glob("*token*"):
        shutil.copy(path, folder)
    config = json.loads((DEMO / "config.json").read_text()) | {
        "hidden_size": _HIDDEN, "intermediate_size": _INNER, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    chance = np.random.default_rng(0)
    block = "model.layers.0."
    shapes = {
        "model.embed_tokens": (config["vocab_size"], _HIDDEN),
        **{f"{block}self_attn.{name}_proj": (_HIDDEN, _HIDDEN) for name in "qkvo"},
        **{f"{block}mlp.{name}_proj": (_INNER, _HIDDEN) for name in ("gate", "up")},
        f"{block}mlp.down_proj": (_HIDDEN, _INNER),
    }
    arrays = {f"{name}.weight": 0.2 * chance.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for name in ("model.norm", f"{block}input_layernorm", f"{block}post_attention_layernorm"):
        arrays[f"{name}.weight"] = np.ones(_HIDDEN, np.float32)
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    return folder
