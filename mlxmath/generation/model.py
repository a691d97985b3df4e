"""A model ready to answer: weights, adapter, tokenizer, and the template that it is asked in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxmath.data.render import encode_prompt
from mlxmath.data.templates import Template, get_template, own_template, recorded_template
from mlxmath.generation.ending import end_as, load_generation_tokenizer
from mlxmath.generation.engine import Completion, Sampling, generate_batch, stream
from mlxmath.models.load import load_model
from mlxmath.models.lora.adapter import CONFIG, load_adapter
from mlxmath.weights.manifest import read_fingerprint


@dataclass(frozen=True)
class LanguageModel:
    """What `load` gives."""

    model: nn.Module
    tokenizer: TokenizerWrapper
    """Knows where an answer ends."""
    template: Template | None
    """None: prompts are given as they are."""
    folder: Path
    adapter: Path | None = None

    def encode(self, problem: str) -> list[int]:
        """The token ids of a problem in the template."""
        return encode_prompt(self.tokenizer, self.template.prompt(problem) if self.template else problem)

    def stream(self, problem: str, sampling: Sampling) -> Iterator[str | Completion]:
        """Pieces of the answer's text as they come, then the whole completion."""
        return stream(self.model, self.tokenizer, self.encode(problem), sampling)

    def generate(self, problems: Sequence[str], sampling: Sampling) -> list[Completion]:
        """The answer to each problem; they are drawn together."""
        return generate_batch(self.model, self.tokenizer, [self.encode(each) for each in problems], sampling)


def open_model(
    folder: Path, dtype: str, adapter: Path | None = None, template: Template | None = None, *, raw: bool = False,
    usual: Template | None = None, loaded: tuple[nn.Module, dict[str, Any]] | None = None,
) -> LanguageModel:  # fmt: skip
    """Load a converted model, with an adapter or without.

    Args:
        folder: of the model.
        dtype: of its unquantized weights in memory.
        adapter: a folder with an adapter of this model.
        template: to ask in (None: the one that the adapter was trained in, else the model's own).
        raw: ask in none.
        usual: the template where there is no other.
        loaded: the model and what adapter_config.json says, if they are in memory already.

    Raises:
        MlxmathError: the model or the adapter is damaged, or they do not belong together.
    """
    if loaded is None:
        model = load_model(folder, dtype).model
        record = load_adapter(model, adapter, read_fingerprint(folder)) if adapter else {}
    else:
        model, record = loaded
    tokenizer = load_generation_tokenizer(folder)
    if raw:
        return LanguageModel(model, tokenizer, None, folder, adapter)
    recorded = recorded_template(record, adapter / CONFIG) if adapter else None
    chosen = template or own_template(tokenizer, recorded, usual or get_template("plain"))
    chosen = chosen.for_tokenizer(tokenizer)
    end_as(tokenizer, chosen)
    return LanguageModel(model, tokenizer, chosen, folder, adapter)
