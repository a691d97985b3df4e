"""Where an answer ends: the end tokens that a model's files and its template name, and a template's stop strings."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer as mlx_lm_load_tokenizer

from mlxmath.data.templates import Template
from mlxmath.errors import MlxmathError
from mlxmath.runtime.files import read_json
from mlxmath.weights.tokenizer import keep_cuts

_SPARE = 16
"""Tokens beyond the characters of the longest stop string that are looked at: some have no text of their own."""


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
    try:
        tokenizer = mlx_lm_load_tokenizer(folder)
    except (OSError, ValueError, KeyError) as error:
        raise MlxmathError(f"the tokenizer in {folder} does not load: {str(error).splitlines()[0]}") from error
    keep_cuts(tokenizer, folder)
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
    if not isinstance(record, dict) or not all(type(number) is int and number >= 0 for number in numbers):
        raise MlxmathError(
            f"{path}: eos_token_id: expected the number of a token or a list of such numbers, found "
            f"{str(found)[:60]!r}; correct it, or take the model's folder from its source again."
        )
    return set(numbers)


def stop_strings(tokenizer: TokenizerWrapper) -> tuple[str, ...]:
    """Texts before the first of which an answer is cut; see `load_generation_tokenizer`."""
    return getattr(tokenizer, "_stop_strings", ())


def cut(text: str, stops: Iterable[str]) -> tuple[str, bool]:
    """The text before the first stop string in it, and whether there is one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def completes_stop(tokenizer: TokenizerWrapper, tokens: Sequence[int], stops: Sequence[str]) -> bool:
    """Whether one of the stop strings lies in a text whose last token is new."""
    recent = tokens[-max(map(len, stops)) - _SPARE :]
    return cut(tokenizer.decode(recent), stops)[1] and cut(tokenizer.decode(tokens), stops)[1]
