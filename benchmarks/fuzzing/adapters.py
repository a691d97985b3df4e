"""Formats beside a model: adapters of ours, mlx_lm's and PEFT's; tokenizer files, chat templates."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.fuzzing.formats import Format
from benchmarks.fuzzing.mutations import damaged_file_of_text, damaged_json
from benchmarks.fuzzing.tensor_files import damaged_safetensors
from benchmarks.fuzzing.trained import CHAT, put_tokenizer, run_folder
from mlxmath import api
from mlxmath.data.codec import load_tokenizer
from mlxmath.data.problem import Message, Problem, SkippedRowError
from mlxmath.data.render import encode_prompt
from mlxmath.data.templates import get_template, recorded_template
from mlxmath.generation.model import load_generation_tokenizer
from mlxmath.models.load import check_ids, load_model
from mlxmath.models.lora.adapter import load_adapter, load_initial, read_adapter_config
from mlxmath.weights.manifest import read_fingerprint
from mlxmath.weights.tokenizer import name_plain_class

_ADAPTER = {"adapters/adapter_config.json": damaged_json, "adapters/adapters.safetensors": damaged_safetensors}
_INFER = ("infer", "--prompt", "2 + 2?", "--max-new-tokens", "2", "--backend", "cpu")


def _ours(folder: Path) -> None:
    shutil.copytree(run_folder() / "mlx_model", folder / "mlx_model")
    (folder / "adapters").mkdir()
    for name in ("adapter_config.json", "adapters.safetensors"):
        shutil.copy(run_folder() / "adapters" / name, folder / "adapters" / name)


def _mlx_lm(folder: Path) -> None:
    """As mlx_lm writes it: nothing of ours in its configuration."""
    _ours(folder)
    path = folder / "adapters" / "adapter_config.json"
    found = json.loads(path.read_text())
    kept = {name: found[name] for name in ("fine_tune_type", "num_layers", "lora_parameters")}
    path.write_text(json.dumps(kept | {"adapter_path": "x", "model": "x", "lr_schedule": None, "mask_prompt": False}))


def _peft(folder: Path) -> None:
    _ours(folder)
    with contextlib.chdir(folder):
        api.export("peft", adapter="adapters", export_path="tuned", check=False)
    shutil.rmtree(folder / "adapters")
    (folder / "tuned").rename(folder / "adapters")


def _ask(folder: Path) -> None:
    """As infer does: the adapter is put into its base, its template found."""
    model = load_model(folder / "mlx_model", "float32").model
    record = load_adapter(model, folder / "adapters", read_fingerprint(folder / "mlx_model"))
    recorded_template(record, folder / "adapters" / "adapter_config.json")


def _go_on(folder: Path) -> None:
    """As --init-adapter does: of the run that the original was made by."""
    from mlxmath.config.schema import LoraConfig
    from mlxmath.models.lora.adapter import adapter_config
    from mlxmath.models.lora.inject import inject

    read_adapter_config(folder / "adapters")
    model = load_model(folder / "mlx_model", "float32").model
    config = LoraConfig(rank=2, targets=("q_proj", "v_proj"))
    keys = inject(model, config).keys
    fingerprint = read_fingerprint(folder / "mlx_model")
    load_initial(model, folder / "adapters", adapter_config(config, keys, base_fingerprint=fingerprint))


def _tokenizer(folder: Path) -> None:
    shutil.copytree(run_folder() / "mlx_model", folder / "mlx_model")
    put_tokenizer(folder / "mlx_model")
    (folder / "mlx_model" / "modeling.py").write_text("open('canary', 'w')\n")
    (folder / "mlx_model" / "tokenization.py").write_text("open('canary', 'w')\n")
    path = folder / "mlx_model" / "tokenizer_config.json"
    more = {"added_tokens_decoder": {"0": {"content": "<s>", "special": True}}, "use_fast": True, "legacy": False,
            "additional_special_tokens": ["<s>"], "auto_map": {"AutoTokenizer": ["tokenization.T", None]}}  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def _chat(folder: Path) -> None:
    _tokenizer(folder)
    (folder / "mlx_model" / "chat_template.jinja").write_text(CHAT)


def _read_tokenizer(folder: Path) -> None:
    """As training and answering do."""
    model = folder / "mlx_model"
    tokenizer = load_tokenizer(model)
    encode_prompt(tokenizer, get_template("plain").prompt("What is 2 + 3?"))
    load_generation_tokenizer(model)
    name_plain_class(model)
    check_ids(load_model(model, "float32").model, max(tokenizer.get_vocab().values()), "the tokenizer")


def _read_chat(folder: Path) -> None:
    """All that a chat template is asked for."""
    tokenizer = load_tokenizer(folder / "mlx_model")
    template: Any = get_template("chat").for_tokenizer(tokenizer)
    encode_prompt(tokenizer, template.prompt("What is 2 + 3?"))
    template.conversation([Message("user", "a"), Message("assistant", "b"), Message("user", "c")])
    with contextlib.suppress(SkippedRowError):
        template.render(Problem("1", "What is 2 + 3?", solution="5"))
    load_generation_tokenizer(folder / "mlx_model", template)


FORMATS = (
    Format("adapter", _ours, _ADAPTER, _ask, _INFER, 2.0),
    Format("adapter to start from", _ours, _ADAPTER, _go_on),
    Format("adapter of mlx_lm", _mlx_lm, _ADAPTER, _ask, _INFER),
    Format("adapter of PEFT", _peft,
           {"adapters/adapter_config.json": damaged_json, "adapters/adapter_model.safetensors": damaged_safetensors},
           _ask, _INFER, 1.5),
    Format("tokenizer files", _tokenizer,
           {"mlx_model/tokenizer.json": damaged_json, "mlx_model/tokenizer_config.json": damaged_json,
            "mlx_model/special_tokens_map.json": damaged_json, "mlx_model/generation_config.json": damaged_json},
           _read_tokenizer, (*_INFER, "--no-adapter"), 2.0),
    Format("chat template", _chat,
           {"mlx_model/chat_template.jinja": damaged_file_of_text, "mlx_model/tokenizer_config.json": damaged_json},
           _read_chat, (*_INFER, "--no-adapter", "--template", "chat"), 1.5),
)  # fmt: skip
