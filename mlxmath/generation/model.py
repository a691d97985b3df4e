"""A model ready to answer: weights, adapter, tokenizer, and the template that it is asked in.

Its answers end at the end tokens that its files and its template name, and at the template's stop strings.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer as mlx_lm_load_tokenizer

from mlxmath.data.problem import Message
from mlxmath.data.render import encode_conversation, encode_prompt
from mlxmath.data.templates import Template, get_template, own_template, recorded_template
from mlxmath.errors import InputError, MlxmathError
from mlxmath.generation.engine import Completion, Sampling, generate_batch, stream
from mlxmath.generation.kept import KeptPrefix
from mlxmath.generation.placing import serve
from mlxmath.models.load import load_again, load_model
from mlxmath.models.lora.adapter import CONFIG, load_adapter
from mlxmath.runtime.files import read_json
from mlxmath.tools.forms import Tool
from mlxmath.tools.run import check, recorded_tool
from mlxmath.weights.manifest import read_fingerprint
from mlxmath.weights.tokenizer import opened

Asked = Tool | Literal["none"] | None
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
"""Names under which config.json tells how long a text may be."""


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
    tool: Tool | None = None
    """That its answers may call."""

    @cached_property
    def context(self) -> int | None:
        """The most tokens that a prompt and its answer may have together; None where config.json does not tell."""
        return context_of(self.folder)

    def encode_messages(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation in the template; of a single question those of `encode`.

        Raises:
            InputError: the template does not take such turns.
        """
        assert self.template is not None
        return encode_conversation(self.tokenizer, self.template.conversation(messages))

    def encode(self, problem: str) -> list[int]:
        """The token ids of a problem in the template.

        Raises:
            InputError: they leave no room for an answer.
        """
        ids = encode_prompt(self.tokenizer, self.template.prompt(problem) if self.template else problem)
        if self.context is not None and len(ids) >= self.context:
            raise InputError(
                f"the prompt has {len(ids):,} tokens, and the model's context ends at {self.context:,}; ask a shorter "
                "one."
            )
        return ids

    def stream(self, problem: str, sampling: Sampling) -> Iterator[str | Completion]:
        """Pieces of the answer's text as they come, then the whole completion."""
        return stream(self.model, self.tokenizer, self.encode(problem), sampling, tool=self.tool)

    def stream_ids(
        self, ids: Sequence[int], sampling: Sampling, kept: KeptPrefix | None = None
    ) -> Generator[str | Completion, None, None]:
        """As `stream`, for token ids; see `mlxmath.generation.engine.stream`."""
        return stream(self.model, self.tokenizer, ids, sampling, kept, self.tool)

    def generate(self, problems: Sequence[str], sampling: Sampling) -> list[Completion]:
        """The answer to each problem; they are drawn together."""
        ids = [self.encode(each) for each in problems]
        return generate_batch(self.model, self.tokenizer, ids, sampling, tool=self.tool)


def context_of(folder: Path) -> int | None:
    """The most tokens that a prompt and its answer may have together, as a model's config.json tells."""
    record = read_json(folder / "config.json")
    sections = [record, *(record[name] for name in ("text_config", "llm_config") if name in record)]
    found = (one.get(name) for one in sections if isinstance(one, dict) for name in _CONTEXT)
    return next((number for number in found if type(number) is int and number > 0), None)


def open_model(
    folder: Path, dtype: str, adapter: Path | None = None, template: Template | None = None, *, raw: bool = False,
    usual: Template | None = None, loaded: tuple[nn.Module, dict[str, Any]] | None = None, on_disk: bool = False,
    tool: Asked = "none",
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
        on_disk: its blocks stay there; see `mlxmath.generation.placing`.
        tool: that its answers may call (None: the one that the adapter was trained with).

    Raises:
        InputError: the tool cannot be had.
        MlxmathError: the model or the adapter is damaged, or they do not belong together.
    """
    if loaded is None:
        model = serve(folder, dtype).model if on_disk else load_model(folder, dtype).model
        record = load_adapter(model, adapter, read_fingerprint(folder)) if adapter else {}
    else:
        model, record = loaded
    tokenizer, called = (
        load_generation_tokenizer(folder),
        tool_of(tool, record, adapter, spread=getattr(model, "is_spread", False)),
    )
    if raw:
        return LanguageModel(model, tokenizer, None, folder, adapter, called)
    recorded = recorded_template(record, adapter / CONFIG) if adapter else None
    chosen = template or own_template(tokenizer, recorded, usual or get_template("plain"))
    chosen = chosen.for_tokenizer(tokenizer)
    end_as(tokenizer, chosen)
    return LanguageModel(model, tokenizer, chosen, folder, adapter, called)


def tool_of(asked: Asked, record: Mapping[str, Any], adapter: Path | None, *, spread: bool = False) -> Tool | None:
    """The tool that answers may call: the one asked for, or that of the adapter whose record is given.

    Args:
        asked: None: the adapter's.
        record: its adapter_config.json.
        adapter: its folder.
        spread: the model is spread over several processes, which must all get the same results.

    Raises:
        InputError: it cannot be had.
    """
    recorded = recorded_tool(record, adapter / CONFIG) if adapter else None
    tool = recorded if asked is None else None if asked == "none" else asked
    if spread and tool == "python":  # whether a program ends in time is a clock's
        raise InputError("--tools python: programs are not run for a model that is spread (--shard); use calculator.")
    check(tool)
    return tool


def open_models(
    folder: Path, dtype: str, adapters: Mapping[str, Path | None], template: Template | None = None, *, usual: Template,
    tool: Asked = "none",
) -> dict[str, LanguageModel]:  # fmt: skip
    """One model with several adapters, by their names; the weights are in memory once.

    Args:
        folder: of the model.
        dtype: of its unquantized weights in memory.
        adapters: folders by name; None is the base itself.
        template: that all are asked in (None: each in its own; see `open_model`).
        usual: see `open_model`.
        tool: see `open_model`.

    Raises:
        MlxmathError: the model or an adapter is damaged, or they do not belong together.
    """
    base, fingerprint = load_model(folder, dtype).model, read_fingerprint(folder)
    opened = {}
    for name, adapter in adapters.items():
        model = load_again(folder, dtype, base) if adapter else base
        record = load_adapter(model, adapter, fingerprint) if adapter else {}
        opened[name] = open_model(folder, dtype, adapter, template, usual=usual, loaded=(model, record), tool=tool)
    return opened


def load_generation_tokenizer(folder: Path, template: Template | None = None) -> TokenizerWrapper:
    """The tokenizer in `folder`, which knows where an answer ends, with mlx_lm's streaming decoder.

    Its end tokens are its own, those of config.json and generation_config.json (`eos_token_id`, a number or a list),
    and the template's; its stop strings are the template's.

    Args:
        folder: of the model.
        template: that the model is asked in (None: none).

    Raises:
        MlxmathError: the tokenizer does not load, or a file names an end token that is none.
    """
    named = {token for name in ("config.json", "generation_config.json") for token in _end_tokens(folder / name)}
    tokenizer, _ = opened(folder, lambda: mlx_lm_load_tokenizer(folder))
    tokenizer.eos_token_ids |= named
    if template is not None:
        end_as(tokenizer, template)
    return tokenizer


def end_as(tokenizer: TokenizerWrapper, template: Template) -> None:
    """Let answers end where they do in a template, too."""
    template = template.for_tokenizer(tokenizer)
    if template.stop:
        tokenizer.add_eos_token(template.stop)
    tokenizer._stop_strings = template.stop_strings


def _end_tokens(path: Path) -> set[int]:
    """What a model's file names as `eos_token_id`."""
    if not path.is_file():
        return set()
    record: Any = read_json(path)
    found = record.get("eos_token_id") if isinstance(record, dict) else record
    numbers = [] if found is None else found if isinstance(found, list) else [found]
    if not isinstance(record, dict) or not all(type(number) is int and 0 <= number < 1 << 31 for number in numbers):
        raise MlxmathError(
            f"{path}: eos_token_id: expected the number of a token or a list of such numbers, found "
            f"{str(found)[:60]!r}; correct it, or take the model's folder from its source again."
        )
    return set(numbers)
