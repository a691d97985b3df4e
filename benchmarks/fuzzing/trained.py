"""A short real run on the bundled model, of whose files the originals are made."""

import contextlib
import tempfile
from functools import cache
from pathlib import Path

from mlxmath import api
from mlxmath.weights.hub import DEMO_FOLDER

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def run_folder() -> Path:
    """A folder with mlx_model, cache and adapters after two steps; checkpoints of both are kept."""
    folder = Path(tempfile.mkdtemp(prefix="run-"))
    with contextlib.chdir(folder):
        api.sft(
            dataset="demo", model="demo", num_examples=24, max_steps=2, save_every=1, validation_split=0.2,
            eval_every=1, max_seq_len=128, batch_size=2, grad_accumulation_steps=1, lora_rank=2, backend="cpu",
            lora_targets=("q_proj", "v_proj"),
        )  # fmt: skip
    return folder


def put_tokenizer(folder: Path) -> None:
    """The bundled tokenizer's files."""
    for name in TOKENIZER:
        if (DEMO_FOLDER / name).exists():
            (folder / name).write_bytes((DEMO_FOLDER / name).read_bytes())
