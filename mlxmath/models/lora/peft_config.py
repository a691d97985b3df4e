"""What PEFT's adapter_config.json says of a LoRA adapter, checked: ranks and scales, also those of single layers."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.errors import MlxmathError
from mlxmath.runtime.bounded import OverrunError
from mlxmath.runtime.files import read_json
from mlxmath.runtime.foreign import Pattern

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
FACTS = "mlxmath_adapter.json"
"""Beside an adapter that we wrote for PEFT: what only our adapter_config.json says of it (its template, its base)."""
OF_FACTS = ("base_model", "base_fingerprint", "template", "template_definition", "tools", "mlxmath_version")
_MEANINGLESS = frozenset({
    "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type",
    "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters",
    "fan_in_fan_out", "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying",
})  # fmt: skip
"""Keys that are read, that only say how training began or which layers the tensors are of, or that load a Megatron."""
_BASE_CHANGED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that change the base's weights too."""
_MOST_NUMBERS = 1e6
_PLAIN = re.compile(r"[\w.\\^$-]{1,300}")
"""A pattern of a few letters that cannot take for ever."""


def is_peft(folder: Path) -> bool:
    """Whether a folder holds an adapter in PEFT's form."""
    if any((folder / name).is_file() for name in WEIGHTS):
        return not (folder / "adapters.safetensors").is_file()
    try:
        record = read_json(folder / CONFIG)
    except MlxmathError:
        return False
    return isinstance(record, dict) and "peft_type" in record


def weights_path(folder: Path) -> Path | None:
    """The file with the tensors; None where there is none."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


@dataclass(frozen=True)
class PeftConfig:
    """What PEFT's adapter_config.json says, checked."""

    path: Path
    rank: int
    alpha: float
    dropout: float
    is_rslora: bool
    is_dora: bool
    ranks: Mapping[str, float]
    """By pattern; see `_by_pattern`."""
    alphas: Mapping[str, float]
    parameters: tuple[str, ...]
    """Stacked experts that are adapted, by the ends of their names."""
    base: str
    """The base model's name, as PEFT has it."""

    @classmethod
    def read(cls, folder: Path) -> "PeftConfig":
        """
        Raises:
            MlxmathError: the file is damaged, of another method than LoRA, or has something that mlx_lm's adapters
                cannot express.
        """
        path = folder / CONFIG
        record = read_json(path)
        if not isinstance(record, dict):
            raise MlxmathError(f"{path} is not an adapter configuration: expected a table.")
        kind, task = record.get("peft_type"), record.get("task_type")
        if kind != "LORA":
            raise _refused(path, "peft_type", kind, "only LORA (with DoRA or rsLoRA) can be taken in")
        if task not in (None, "CAUSAL_LM"):
            raise _refused(path, "task_type", task, "expected CAUSAL_LM: an adapter of a language model")
        if record.get("bias", "none") != "none":
            raise _refused(path, "bias", record["bias"], "expected none: mlx_lm's adapters train no biases")
        if record.get("modules_to_save"):
            raise _refused(
                path, "modules_to_save", record["modules_to_save"],
                "whole layers beside the adapters cannot be taken in; merge it with PEFT (merge_and_unload) and give "
                "the merged model as --model",
            )  # fmt: skip
        begun = record.get("init_lora_weights")
        if isinstance(begun, str) and begun.lower().startswith(_BASE_CHANGED):
            raise _refused(
                path, "init_lora_weights", begun,
                "it changes the base's weights; save it with path_initial_model_for_weight_conversion",
            )  # fmt: skip
        for key, value in record.items():
            if key not in _MEANINGLESS and value:
                raise _refused(path, key, value, "that is not known here, and would be left out")
        is_dora, is_rslora = (_flag(record, name, path) for name in ("use_dora", "use_rslora"))
        rank = _number(record, "r", path, 1, 65_536)
        return cls(
            path=path,
            rank=int(rank),
            alpha=_number(record, "lora_alpha", path, -_MOST_NUMBERS, _MOST_NUMBERS),
            dropout=_number({"lora_dropout": 0.0, **record}, "lora_dropout", path, 0, 0.999),
            is_rslora=is_rslora,
            is_dora=is_dora,
            ranks=_patterns(record, "rank_pattern", path, 1, 65_536),
            alphas=_patterns(record, "alpha_pattern", path, -_MOST_NUMBERS, _MOST_NUMBERS),
            parameters=_texts(record, "target_parameters", path),
            base=str(record.get("base_model_name_or_path") or "unknown")[:200],
        )

    def rank_of(self, name: str) -> int:
        """Of the layer that PEFT calls `name`."""
        return int(_by_pattern(self.ranks, name, self.rank))

    def scale_of(self, name: str) -> float:
        """alpha / R, or alpha / √R for rsLoRA, of a layer."""
        rank = self.rank_of(name)
        return _by_pattern(self.alphas, name, self.alpha) / (math.sqrt(rank) if self.is_rslora else rank)

    def record(self) -> dict[str, Any]:
        """The same as mlx_lm's adapter_config.json says it, without which layers; with what `FACTS` adds."""
        scale = self.alpha / (math.sqrt(self.rank) if self.is_rslora else self.rank)
        return {
            "fine_tune_type": "dora" if self.is_dora else "lora",
            "num_layers": -1,
            "lora_parameters": {"rank": self.rank, "scale": scale, "dropout": self.dropout},
            "lora_alpha": self.alpha,
            "use_rslora": self.is_rslora,
            "base_model": self.base,
            **_facts(self.path.parent),
        }


def _facts(folder: Path) -> dict[str, Any]:
    """What we wrote beside an adapter for PEFT."""
    if not (folder / FACTS).is_file():
        return {}
    record = read_json(folder / FACTS)
    if not isinstance(record, dict):
        raise MlxmathError(f"{folder / FACTS} is damaged: expected a table. Remove it, or export the adapter again.")
    return {key: record[key] for key in OF_FACTS if key in record}


def _by_pattern(patterns: Mapping[str, float], name: str, otherwise: float) -> float:
    """The value of the first pattern that fits a name's end, as PEFT finds it."""
    for pattern, value in patterns.items():
        try:
            if Pattern(rf"(.*\.)?({pattern})").is_in(name, whole=True):
                return value
        except OverrunError as error:
            raise MlxmathError(f"the adapter's pattern {pattern[:60]!r}: {error}.") from None
    return otherwise


def _patterns(record: Mapping[str, Any], key: str, path: Path, least: float, most: float) -> dict[str, float]:
    found = record.get(key) or {}
    if not isinstance(found, dict) or len(found) > 5_000:
        raise _refused(path, key, found, "expected a table of numbers by layer")
    for pattern in found:
        if not _PLAIN.fullmatch(pattern.replace(".*", "")) or pattern.count("*") > 2:
            raise _refused(path, key, pattern, "expected names of layers")
        try:
            Pattern(pattern)
        except ValueError:
            raise _refused(path, key, pattern, "expected names of layers") from None
    return {pattern: _number(found, pattern, path, least, most) for pattern in found}


def _number(record: Mapping[str, Any], key: str, path: Path, least: float, most: float) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise _refused(path, key, value, f"expected a number from {least:g} to {most:g}")
    if least == 1 and value != int(value):
        raise _refused(path, key, value, "expected a whole number")
    return float(value)


def _texts(record: Mapping[str, Any], key: str, path: Path) -> tuple[str, ...]:
    value = record.get(key) or []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _refused(path, key, value, "expected a list of names")
    return tuple(value)


def _flag(record: Mapping[str, Any], key: str, path: Path) -> bool:
    value = record.get(key) or False
    if not isinstance(value, bool):
        raise _refused(path, key, value, "expected true or false")
    return value


def _refused(path: Path, key: str, found: Any, why: str) -> MlxmathError:
    shown = repr(found)
    return MlxmathError(f"{path}: {key} is {shown if len(shown) <= 60 else shown[:60] + '...'}: {why}.")
