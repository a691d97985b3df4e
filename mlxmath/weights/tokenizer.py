"""A model's tokenizer files, looked at before a library takes them; and those whose named class makes transformers cut
text otherwise than tokenizer.json says.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mlxmath.errors import MlxmathError, foreign
from mlxmath.runtime.console import say
from mlxmath.runtime.files import atomic_write, read_json

T = TypeVar("T")
SETTINGS = "tokenizer_config.json"
PLAIN_CLASS = "PreTrainedTokenizerFast"
"""The class with which transformers takes tokenizer.json as it is."""
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_BEHAVIOUR = (
    "padding_side",
    "truncation_side",
    "model_max_length",
    "model_input_names",
    "clean_up_tokenization_spaces",
)
_TABLES = ("tokenizer.json", SETTINGS, "special_tokens_map.json", "added_tokens.json")
_MOST_IDS = 1 << 22
"""Sixteen times as many as any model has."""
_PROBE = "Tom has 12 pens.\n\nHe buys  $3.50 more: \\frac{1}{2}, it's é中."


def opened(folder: Path, load: Callable[[], T]) -> tuple[T, str | None]:
    """A tokenizer as a library loads it, with the normalizer and pre-tokenizer of its tokenizer.json.

    Args:
        folder: of the model.
        load: loads it; it is called once its files have been looked at.

    Returns:
        The tokenizer, and the name of its class if that had put others in.

    Raises:
        MlxmathError: a file is not what it should be, or the library does not take it.
    """
    files = {name: read_json(folder / name) for name in _TABLES if (folder / name).is_file()}
    for name, content in files.items():
        if not isinstance(content, dict):
            raise MlxmathError(f"{folder / name} is damaged: expected a table. Take it from the model's source again.")
    written = files.get("tokenizer.json", {})
    _check_ids(folder / "tokenizer.json", written)
    with foreign(f"the tokenizer in {folder} cannot be loaded", "Take its files from the model's source again."):
        tokenizer: Any = load()
        tokenizer.decode(tokenizer.encode("1"))  # some settings are looked at only then
        return tokenizer, _keep_cuts(tokenizer, folder / "tokenizer.json", written) if written else None


def _check_ids(path: Path, content: dict[str, Any]) -> None:
    """Refuse token numbers beyond all sense: tables as long as the largest are made."""
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = [*vocabulary.values()] if isinstance(vocabulary, dict) else []
    ids += [each.get("id") for each in added if isinstance(each, dict)] if isinstance(added, list) else []
    for number in ids:
        if type(number) is not int or not 0 <= number < _MOST_IDS:
            raise MlxmathError(
                f"{path} is damaged: it has the token number {str(number)[:40]}; expected whole numbers below "
                f"{_MOST_IDS:,}. Take it from the model's source again."
            )


def _keep_cuts(tokenizer: Any, file: Path, written: Mapping[str, Any]) -> str | None:
    inner = getattr(tokenizer, "_tokenizer", None)  # of mlx_lm's wrapper
    owner = inner if hasattr(inner, "backend_tokenizer") else tokenizer
    backend = getattr(owner, "backend_tokenizer", None)
    if backend is None:
        return None
    from tokenizers import Tokenizer

    found = json.loads(backend.to_str())
    if all(found.get(part) == written.get(part) for part in ("normalizer", "pre_tokenizer")):
        return None
    own = Tokenizer.from_file(str(file))
    own_parts = json.loads(own.to_str())  # as this version of tokenizers writes it
    if all(found.get(part) == own_parts.get(part) for part in ("normalizer", "pre_tokenizer")):
        return None
    backend.normalizer, backend.pre_tokenizer = own.normalizer, own.pre_tokenizer
    return type(owner).__name__


def name_plain_class(folder: Path) -> None:
    """Where a tokenizer's class puts other cuts in, name the plain class instead, with which tokenizer.json counts.

    What the class adds by itself (special tokens, the side of padding, a beginning-of-text token) is written down with
    it. The file stays as it is if anything but the cuts would be another with the plain class, or if the tokenizer is
    the source's own code.
    """
    path = folder / SETTINGS
    if not path.is_file() or not (folder / "tokenizer.json").is_file():
        return
    try:
        settings = read_json(path)
        if not isinstance(settings, dict) or settings.get("tokenizer_class") == PLAIN_CLASS or "auto_map" in settings:
            return
        named, name = opened(folder, lambda: of_transformers(folder))
    except MlxmathError:
        return  # whoever reads the folder is told what is wrong with it
    if name is None:
        return
    own = {name: getattr(named, name) for name in (*_TOKENS, *_BEHAVIOUR) if getattr(named, name, None) is not None}
    bos, eos = (getattr(named, f"{name}_token", None) for name in ("bos", "eos"))
    ids = named.encode("a")
    ends = {"add_bos_token": named.convert_tokens_to_ids(bos) == ids[0] if bos else False,
            "add_eos_token": named.convert_tokens_to_ids(eos) == ids[-1] if eos else False}  # fmt: skip
    for more in ({}, ends):
        _write(path, {**own, **settings, **more, "tokenizer_class": PLAIN_CLASS})
        try:
            with foreign("", ""):
                differing = _differing(named, of_transformers(folder))
        except MlxmathError:
            differing = ["all"]
        if not differing:
            say(
                f"  tokenizer_config.json names {PLAIN_CLASS} instead of {settings.get('tokenizer_class')}, with which "
                "transformers cuts text otherwise than tokenizer.json says"
            )
            return
    _write(path, settings)


def of_transformers(folder: Path, trust_remote_code: bool = False) -> Any:
    """As transformers loads it, without network; for `opened`."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)


def _differing(named: Any, plain: Any) -> list[str]:
    """In what two tokenizers are not alike; the first has the cuts of tokenizer.json already."""
    compared = {
        **{name: (getattr(named, name, None), getattr(plain, name, None)) for name in (*_TOKENS, *_BEHAVIOUR)},
        "chat_template": (named.chat_template, plain.chat_template),
        "special tokens": (named.all_special_ids, plain.all_special_ids),
        "added tokens": (str(named.added_tokens_decoder), str(plain.added_tokens_decoder)),
        "ids": (named.encode(_PROBE), plain.encode(_PROBE)),
        "text": (named.decode(named.encode(_PROBE)), plain.decode(plain.encode(_PROBE))),
    }
    return [name for name, (one, other) in compared.items() if one != other]


def _write(path: Path, settings: dict[str, Any]) -> None:
    atomic_write(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
