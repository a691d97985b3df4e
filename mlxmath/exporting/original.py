"""What is exported: a base model and, perhaps, an adapter."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mlxmath.config.methods import ExportConfig
from mlxmath.data.templates import Template, get_template, own_template, recorded_template
from mlxmath.errors import InputError
from mlxmath.exporting.gguf_metadata import SUPPORTED
from mlxmath.generation.model import LanguageModel, load_generation_tokenizer, open_model
from mlxmath.models.load import Loaded, load_model
from mlxmath.models.lora.adapter import CONFIG, load_adapter, read_adapter_config
from mlxmath.models.lora.peft_experts import TYPES
from mlxmath.runtime.files import read_json
from mlxmath.weights.architecture import shortened, text_part
from mlxmath.weights.manifest import FILE_NAME, read_fingerprint, read_manifest
from mlxmath.weights.remade import numberless


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


_NOT_REMADE = SUPPORTED | TYPES | {"gemma3"}
"""Types of which mlx_lm makes nothing on loading but stacks of experts, which exports take apart."""


def refuse_remade(job: Job, layers: Iterable[str] | None = None) -> None:
    """Refuse tensors that mlx_lm has made or renamed: under Hugging Face's names they would be another model's.

    Args:
        job: of a target that writes these names.
        layers: paths of the layers that count (None: all tensors do).

    Raises:
        InputError: there are such tensors, or nothing tells whether there are.
    """
    folder, to = job.original.model, job.settings.to
    manifest = read_manifest(folder) if (folder / FILE_NAME).is_file() else None
    if manifest is None or manifest.remade is None:  # of an earlier version, or of a model that mlx_lm has saved
        config = read_json(folder / "config.json")
        if {str(part["model_type"]) for part in (config, text_part(config)) if "model_type" in part} <= _NOT_REMADE:
            return
        raise InputError(
            f"--to {to}: nothing tells whether mlx_lm has made or renamed tensors of {folder}, which would be another "
            "model's. If it was converted from Hugging Face's own model, convert it again with the same settings, into "
            "another --mlx-path: that tells, and adapters fit it. If from one that mlx_lm had saved, convert Hugging "
            "Face's own, without --quantize, and train and export with that; --to mlx takes it as it is."
        )
    counted = None if layers is None else {numberless(f"{path}.weight") for path in layers}
    found = [name for name in manifest.remade if counted is None or name in counted]
    if found:
        raise InputError(
            f"--to {to}: {folder} was converted with --quantize, so it holds tensors as mlx_lm makes or renames them, "
            f"which would be another model's: {shortened(found, 3)}. Convert the original model again without "
            "--quantize, and train and export with that; --to mlx takes it as it is."
        )


def refuse_flags(settings: ExportConfig, *names: str) -> None:
    """Refuse settings that have no meaning for a target.

    Raises:
        InputError: one of them is not its default.
    """
    for name in names:
        if getattr(settings, name) != ExportConfig.model_fields[name].default:
            raise InputError(f"--{name.replace('_', '-')} has no meaning with --to {settings.to}; leave it out.")
