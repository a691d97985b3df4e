"""Control tokens of a tokenizer, and a tokenizer for which their spelling is text like any other."""

import copy
import json
import re
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple


class Control(NamedTuple):
    """A control token; some remove the spaces beside them."""

    id: int
    strips_left: bool = False
    strips_right: bool = False


def control_tokens(tokenizer: Any) -> tuple[Mapping[str, Control], re.Pattern[str]]:
    """The tokenizer's control tokens, and what splits a text into texts and, between them, control tokens."""
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    found = {name: Control(token_id) for name, token_id in named}
    found |= {
        token.content: Control(token_id, token.lstrip, token.rstrip)
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special
    }
    return found, re.compile(f"({'|'.join(re.escape(name) for name in sorted(found, key=len, reverse=True))})")


def without_control_tokens(backend: Any) -> Any:
    """A copy of a `tokenizers.Tokenizer` that reads the spelling of a control token as text.

    `encode_special_tokens` turns off the search for control tokens, but the model below may know their spelling as a
    piece of its own (Unigram scores it best); then the copy's pieces are renamed to something that no text holds.
    """
    from tokenizers import Tokenizer

    plain = copy.deepcopy(backend)
    plain.encode_special_tokens = True
    special = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    in_model = {name for name, i in special.items() if backend.model.token_to_id(name) == i}
    if in_model and _reachable(plain, {name: special[name] for name in in_model}):
        spec = json.loads(backend.to_str())
        _rename_pieces(spec, {name: f"\U0010fffe{secrets.token_hex(8)}{name}" for name in in_model})
        plain = Tokenizer.from_str(json.dumps(spec))
        plain.encode_special_tokens = True
    plain.no_truncation()
    plain.no_padding()
    return plain


def _reachable(plain: Any, special: dict[str, int]) -> bool:
    """Whether text can become one of the control tokens."""
    if type(plain.model).__name__ != "BPE" or plain.model.ignore_merges:
        return True
    return any(
        token_id in plain.encode(text, add_special_tokens=False).ids
        for name, token_id in special.items()
        for text in (name, f" {name}", f"a{name}a")
        if plain.model.unk_token != name
    )


def _rename_pieces(spec: dict[str, Any], names: dict[str, str]) -> None:
    """Rename pieces in the JSON form of a tokenizer, with the added tokens that refer to them."""
    model = spec["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if "".join(pair) not in names]
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    spec["post_processor"] = None
