"""`--to peft`: the adapter alone, as PEFT loads it on the same base.

A (R, I) and B (O, R) are ours transposed; alpha is such that PEFT's scale is ours. Layers are named
as Hugging Face's model has them, by the shortest ends of their paths that mean no others.

Shapes: I inputs, O outputs, E experts, R rank.
"""

import math
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxmath.errors import InputError
from mlxmath.exporting.check import Answers, ModelAnswers
from mlxmath.exporting.files import CHAT_TEMPLATE
from mlxmath.exporting.original import Job, refuse_flags, refuse_remade
from mlxmath.models.load import Loaded
from mlxmath.models.lora.adapter import CONFIG, save_arrays
from mlxmath.models.lora.form import Form
from mlxmath.models.lora.layers import EXPERTS, AdapterLayer, DoRALinear, ExpertsLoRALinear
from mlxmath.models.lora.peft_config import FACTS, OF_FACTS, WEIGHTS
from mlxmath.models.lora.peft_experts import TYPES, Pair, alpha_of, home_in_peft, written
from mlxmath.runtime.files import atomic_json
from mlxmath.weights.hub import open_weights
from mlxmath.weights.manifest import FILE_NAME, read_manifest

_TAKEN_FOR_EXPERTS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
_PREFIX = "base_model.model."


def write(job: Job) -> list[str]:
    """Write the adapter; see `Target`."""
    refuse_flags(job.settings, "dequantize", "requantize", "adapter_only", "gguf_type", "export_dtype")
    original = job.original
    if original.adapter is None:
        raise InputError("--to peft: an adapter is what is written; --no-adapter leaves nothing.")
    record = original.record
    if record.get("fine_tune_type") == "full":
        raise InputError("--to peft: the blocks' own weights were trained (--full), which is no adapter; use --to hf.")
    form = Form.of(record, original.adapter / CONFIG)
    loaded = original.load()
    adapters: dict[str, Any] = {
        path: each for path, each in loaded.model.named_modules() if isinstance(each, AdapterLayer)
    }
    experts = {path: each for path, each in adapters.items() if isinstance(each, ExpertsLoRALinear)}
    refuse_remade(job, adapters)
    names = {path: _name(path, loaded) for path in adapters if path not in experts}
    _check_mixture(names.values(), experts, loaded)
    arrays: dict[str, mx.array] = {}
    for path, name in names.items():
        arrays |= {f"{_PREFIX}{name}.{part}": array for part, array in _arrays(adapters[path]).items()}
    config = _config(form, record)
    for name, each in ((name, adapters[path]) for path, name in names.items()):
        rank = each.lora_a.shape[1]
        if rank != form.rank:
            config["rank_pattern"][name] = rank
        if not _has_scale(each, _scale(config["lora_alpha"], rank, config["use_rslora"])):
            config["alpha_pattern"][name] = alpha_of(each.scale.item(), rank, is_rslora=config["use_rslora"])
    pairs = {path: _pair(each, form.scale) for path, each in experts.items()}
    of_experts = written(pairs, form.rank, form.scale, is_rslora=config["use_rslora"])
    arrays |= {f"{_PREFIX}{name}": array for name, array in of_experts.tensors.items()}
    save_arrays(job.folder / WEIGHTS[0], arrays, {"format": "pt"})
    others = _modules(open_weights(original.model).tensors) - set(names.values())
    config |= {"target_modules": shortest_ends(list(names.values()), others), **_base(job)}
    if experts:
        config |= {
            "target_parameters": sorted(of_experts.parameters),
            "rank_pattern": config["rank_pattern"] | of_experts.ranks,
            "alpha_pattern": config["alpha_pattern"] | of_experts.alphas, "lora_dropout": 0.0,
        }  # fmt: skip
    atomic_json(job.folder / CONFIG, config)
    atomic_json(job.folder / FACTS, {key: record[key] for key in OF_FACTS if key in record})
    if (original.adapter / CHAT_TEMPLATE).is_file():
        shutil.copyfile(original.adapter / CHAT_TEMPLATE, job.folder / CHAT_TEMPLATE)
    kind = "DoRA" if form.kind == "dora" else "rsLoRA" if config["use_rslora"] else "LoRA"
    notes = [f"{kind} of rank {form.rank} on {len(adapters)} layers; base {config['base_model_name_or_path']}"]
    if experts and form.dropout:
        notes.append("dropout, which counts in training alone, is written as 0: PEFT has none for experts")
    if loaded.config.get("quantization"):
        notes.append("it was trained on a quantized base; on the base in 16 bits its answers differ a little")
    return notes


def reopened(job: Job) -> Answers:
    """The base with the adapter that was written."""
    from dataclasses import replace

    return ModelAnswers(replace(job.original, adapter=job.folder).open())


def _arrays(adapter: nn.Module) -> dict[str, mx.array]:
    """By PEFT's names of a layer's parts."""
    found = {"lora_A.weight": mx.contiguous(adapter.lora_a.T), "lora_B.weight": mx.contiguous(adapter.lora_b.T)}
    if isinstance(adapter, DoRALinear):
        found["lora_magnitude_vector"] = adapter.m
    return found


def _has_scale(adapter: nn.Module, scale: float) -> bool:
    return bool(adapter.scale.item() == np.float32(scale))


def _pair(adapter: nn.Module, scale: float) -> Pair:
    """The matrices of experts' adapters with this scale; what theirs is more or less goes into B.

    Raises:
        InputError: it is 0, and theirs is not.
    """
    if _has_scale(adapter, scale):
        return Pair(adapter.lora_a, adapter.lora_b)
    if not scale:
        raise InputError("--to peft: lora_alpha is 0, but not of experts (alpha_pattern); use --to hf.")
    return Pair(adapter.lora_a, adapter.lora_b * (adapter.scale / scale))


def _name(path: str, loaded: Loaded) -> str:
    """A layer's path in Hugging Face's model."""
    ref = loaded.stored.get(f"{path}.weight")
    if ref is None:
        raise InputError(
            f"--to peft: {path} is no layer of its own in Hugging Face's model but put together by mlx_lm, so PEFT has "
            "no place for its adapter. Use --to hf, which merges it, or train on other layers."
        )
    return ref.name.removesuffix(".weight")


def _check_mixture(names: Iterable[str], experts: Mapping[str, Any], loaded: Loaded) -> None:
    """Refuse what PEFT cannot express, or would take for something else, in a mixture of experts."""
    kind = str(loaded.config.get("model_type"))
    if experts and (kind not in TYPES or None in map(home_in_peft, experts)):
        raise InputError(
            f"--to peft: experts of models of type {kind} are not written for PEFT, only those of "
            f"{', '.join(sorted(TYPES))}. Use --to hf, which merges the adapter."
        )
    is_mixture = any(isinstance(module, EXPERTS) for _, module in loaded.model.named_modules())
    taken = [name for name in names if name.rpartition(".")[2] in _TAKEN_FOR_EXPERTS]
    if is_mixture and taken:
        raise InputError(
            f"--to peft: in a mixture PEFT takes layers called {taken[0].rpartition('.')[2]} for its experts, and "
            f"{taken[0]} is none. Use --to hf, or train on other layers."
        )


def _modules(tensors: Iterable[str]) -> set[str]:
    return {name.removesuffix(".weight") for name in tensors if name.endswith(".weight")}


def shortest_ends(names: list[str], others: Iterable[str]) -> list[str]:
    """The fewest parts of each name's end by which PEFT finds it and none of the others; sorted."""
    taken = [f".{other}" for other in others]
    found: dict[str, bool] = {}

    def is_free(end: str) -> bool:
        if end not in found:
            found[end] = not any(other.endswith(f".{end}") for other in taken)
        return found[end]

    ends = set()
    for name in names:
        parts = name.split(".")
        candidates = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        ends.add(next((end for end in candidates if is_free(end)), name))
    return sorted(ends)


def _config(form: Form, record: Mapping[str, Any]) -> dict[str, Any]:
    """adapter_config.json as PEFT reads it, without the layers."""
    alpha, is_rslora = record.get("lora_alpha"), record.get("use_rslora") is True
    if not isinstance(alpha, int | float) or _scale(alpha, form.rank, is_rslora) != form.scale:
        alpha, is_rslora = alpha_of(form.scale, form.rank, is_rslora=False), False
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "r": form.rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha, "lora_dropout": form.dropout,
        "use_rslora": is_rslora, "use_dora": form.kind == "dora", "bias": "none", "fan_in_fan_out": False,
        "init_lora_weights": True, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
    }  # fmt: skip


def _scale(alpha: float, rank: int, is_rslora: bool) -> float:
    return alpha / (math.sqrt(rank) if is_rslora else rank)


def _base(job: Job) -> dict[str, Any]:
    """Which model the adapter is for, as far as is known."""
    folder = job.original.model
    if not (folder / FILE_NAME).is_file():
        return {"base_model_name_or_path": str(folder.resolve()), "revision": None}
    manifest = read_manifest(folder)
    return {"base_model_name_or_path": manifest.source, "revision": manifest.revision}
