"""What is exported: a base model and, perhaps, an adapter."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mlxmath.config.methods import ExportConfig
from mlxmath.data.templates import Template, get_template, own_template, recorded_template
from mlxmath.errors import InputError
from mlxmath.generation.model import LanguageModel, load_generation_tokenizer, open_model
from mlxmath.models.load import Loaded, load_model
from mlxmath.models.lora.adapter import CONFIG, load_adapter, read_adapter_config
from mlxmath.weights.manifest import read_fingerprint


@dataclass(frozen=True)
class Original:
    """A converted model and an adapter of it."""

    model: Path
    adapter: Path | None
    dtype: str
    """That it is asked in: the device's."""

    @cached_property
    def record(self) -> dict[str, Any]:
        """What adapter_config.json says, in mlx_lm's form; empty without an adapter."""
        return read_adapter_config(self.adapter) if self.adapter else {}

    @cached_property
    def template(self) -> Template:
        """In which it is asked: the one that it was trained in, else the model's own; for its tokenizer."""
        tokenizer = load_generation_tokenizer(self.model)
        recorded = recorded_template(self.record, self.adapter / CONFIG) if self.adapter else None
        return own_template(tokenizer, recorded, get_template("plain")).for_tokenizer(tokenizer)

    def load(self) -> Loaded:
        """The base with the adapter in it, lazily: a weight is read, in float32, when it is asked for.

        Raises:
            MlxmathError: the model or the adapter is damaged, or they do not belong together.
        """
        loaded = load_model(self.model, "float32", lazy=True)
        loaded.model.freeze()
        if self.adapter:
            load_adapter(loaded.model, self.adapter, read_fingerprint(self.model))
        return loaded

    def open(self) -> LanguageModel:
        """The base with the adapter, ready to answer as `infer` does."""
        return open_model(self.model, self.dtype, self.adapter)

    def base(self) -> "Original":
        """The same without the adapter, asked in the same template."""
        return replace(self, adapter=None)


@dataclass(frozen=True)
class Job:
    """What a target writes, and where."""

    original: Original
    settings: ExportConfig
    folder: Path
    """There and empty while it is written; afterwards where it lies."""


def refuse_flags(settings: ExportConfig, *names: str) -> None:
    """Refuse settings that have no meaning for a target.

    Raises:
        InputError: one of them is not its default.
    """
    for name in names:
        if getattr(settings, name) != ExportConfig.model_fields[name].default:
            raise InputError(f"--{name.replace('_', '-')} has no meaning with --to {settings.to}; leave it out.")
