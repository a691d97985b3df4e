"""What a model folder's config.json says about its weights, and which of the stored tensors the model uses."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlxmath.errors import InputError, MlxmathError, library_errors
from mlxmath.weights.architecture import Built, architecture, build, nothing_kept, shortened, text_part
from mlxmath.weights.configuration import Translation, check_angles, check_claims, translate
from mlxmath.weights.dtypes import DTYPES
from mlxmath.weights.quantized import Stored, check_tables, stored, unreadable
from mlxmath.weights.rotary import Limit
from mlxmath.weights.safetensor import Declared
from mlxmath.weights.tensors import TensorRef, same_values

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
ROTARY = "rotary_emb.inv_freq"
_TIED = "tie_word_embeddings"
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What wrappers of PyTorch put into the names of a model's tensors."""
_BUFFERS = re.compile(
    r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.(masked_bias|position_ids)$|\.(attn|attention)\.bias$"
)
"""What models have saved besides their weights, and compute themselves."""
_OF_OTHER_PARTS = re.compile(r"(^|[._])(vision|visual|image|audio|speech|mtp|nextn|multi_modal|mm)([._]|$)")
"""Of what sees or hears, and of heads that predict further tokens: no part of a language model."""


@dataclass(frozen=True)
class Layout:
    """The tensors that are kept, under their names, the configuration that describes them, and what was decided.

    Attributes:
        config: content of config.json for the converted model.
        tensors: name in the output -> where it lies.
        built: the model for them.
        notes: sentences for the user.
        limits: up to how many tokens it is the original model.
    """

    config: dict[str, Any]
    tensors: Mapping[str, TensorRef]
    built: Built
    notes: tuple[str, ...]
    limits: tuple[Limit, ...]


def plan_layout(config: dict[str, Any], tensors: Mapping[str, TensorRef], where: Path) -> Layout:
    """Find the names and the configuration under which mlx_lm builds the model for these tensors; nothing is read.

    Args:
        config: content of config.json.
        tensors: of the source, none of them float8 with a scale.
        where: the source, for messages.

    Raises:
        InputError: the weights are quantized in a way that mlx_lm cannot read in a model of this type.
        MlxmathError: config.json and the weights do not fit each other; all that is missing, unknown or of another
            shape is named.
    """
    check_tables(config)
    check_claims(config, tensors, where)
    translation = translate(config)
    method = stored(config)
    failed: Layout | None = None
    for renamed, note in (*_namings(tensors), *_unpacked_experts(config, tensors)):
        layout = _settled(translation, method, renamed, where)
        if not layout.built.num_misnamed:
            if layout.built.problems:
                failed = layout
                break
            check_angles(translation.config, layout.built)
            check_called(layout.built, config, where)
            lost = left_out(layout.config, layout.tensors, layout.built)
            return replace(layout, notes=tuple(filter(None, (note, *layout.notes, lost))))
        failed = failed or layout
    assert failed is not None
    problems = "; ".join(failed.built.problems)
    if method.method not in ("", "MLX"):
        raise unreadable(method.method, why=f" in a model of type {config['model_type']!r} ({problems})")
    raise MlxmathError(
        f"{where}: the weights do not fit the model of type {config['model_type']!r} that config.json describes. "
        f"Tensors {problems}. config.json and the weights must be of one model, downloaded completely."
    )


def _settled(translation: Translation, method: Stored, stored: Mapping[str, TensorRef], where: Path) -> Layout:
    """Leave out what no model reads, and settle whether the head is the embedding.

    Names stay those of Hugging Face: mlx_lm renames on loading. mlx_lm drops `lm_head.weight` where config.json ties
    it, and takes a missing `tie_word_embeddings` for true, so that a head of its own would be lost in silence;
    transformers keeps such a head. The output's config.json therefore always says which it is.
    """
    config = dict(translation.config)
    config.pop("_name_or_path", None)
    if method.how == "packed" and method.method != "bitnet":
        config["quantization"] = config["quantization_config"] = dict(method.settings or {})
    elif method.how in ("plain", "scaled"):
        config.pop("quantization_config", None)
        if inner := text_part(config):
            config["text_config"] = {k: v for k, v in inner.items() if k != "quantization_config"}
    tensors = {name: tensor for name, tensor in stored.items() if not name.endswith(ROTARY)}
    notes = []
    if len(tensors) < len(stored):
        notes.append(f"left out {len(stored) - len(tensors)} rotary frequency tensors, which the model computes itself")
    tied = config.get("tie_word_embeddings")
    if EMBEDDING in tensors and HEAD in tensors and tied is not False:
        if same_values(tensors[EMBEDDING], tensors[HEAD]):
            del tensors[HEAD]
            config["tie_word_embeddings"] = True
        else:
            config["tie_word_embeddings"] = False
            if tied:
                notes.append(f"config.json ties the head to the embedding, but {HEAD} differs from it and is kept")
    elif EMBEDDING in tensors and HEAD not in tensors and tied is None:
        config["tie_word_embeddings"] = True
    if text_part(config):
        config, tensors = _with_nested_head(config, tensors, where)
    built = _build(config, _declared(tensors), where)
    if spare := [name for name in built.unknown if name in tensors and is_spare(name, config)]:
        tensors = {name: tensor for name, tensor in tensors.items() if name not in spare}
        notes.append(f"left out tensors that the model has no use for: {shortened(spare, 3)}")
        built = _build(config, _declared(tensors), where)
    return Layout(config, tensors, built, (*notes, *translation.notes), translation.limits)


def _with_nested_head(
    config: dict[str, Any], tensors: dict[str, TensorRef], where: Path
) -> tuple[dict[str, Any], dict[str, TensorRef]]:
    """The same where the language model is a part: whether its head is the embedding, said where mlx_lm reads it.

    mlx_lm reads it in `text_config`. What counts for transformers stands outside; inside it writes what the class of
    the part has by default, or nothing.
    """
    part, model_type = text_part(config), str(config["model_type"])
    found = architecture(str(part.get("model_type") or model_type), model_type)
    own = [name for name in tensors if not is_spare(name, config) and not _OF_OTHER_PARTS.search(name)]
    heads, embeddings = (
        [name for name in own if f".{name}".endswith(f".{end}")] for end in (HEAD, "embed_tokens.weight")
    )
    if found is None or not found.reads(_TIED) or len(heads) > 1 or len(embeddings) != 1:
        return config, tensors
    said = (config.get(_TIED), part.get(_TIED))
    tied = True in said or False not in said
    if heads:
        tied = config.get(_TIED) is not False and same_values(tensors[embeddings[0]], tensors[heads[0]])
    if _TIED not in part and not found.fields[_TIED]:
        built = _build(config, _declared(tensors), where)
        if not built.num_misnamed and tied != any(name.endswith(HEAD) for name in built.arrays):
            return config, tensors
    gone = tuple(name.removesuffix("weight") for name in heads) if tied else ()
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(gone)}
    return {**config, _TIED: tied, "text_config": {**part, _TIED: tied}}, kept


def _declared(tensors: Mapping[str, TensorRef]) -> list[Declared]:
    return [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]


def _build(config: dict[str, Any], tensors: Sequence[Declared], where: Path) -> Built:
    try:
        return build(config, tensors)
    except MlxmathError as error:
        raise MlxmathError(
            f"{where}: mlx_lm cannot build the model of type {config['model_type']!r}: {error}. Its config.json or "
            "weights are of another version or incomplete; download the model again or choose one that mlx_lm supports."
        ) from error


def check_built(config: dict[str, Any], tensors: Sequence[Declared], where: Path, *, asked: bool) -> None:
    """Make sure that mlx_lm builds a model for quantized tensors that are about to be written, under that `config`.

    Raises:
        InputError: it does not, and the quantization was `asked` for.
        MlxmathError: it does not, and the quantization is the source's.
    """
    try:
        built = _build(config, tensors, where)
        reason = "; ".join(built.problems)
    except MlxmathError as error:
        if not asked:
            raise
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        reason = str(cause)
    if reason and asked:
        raise InputError(
            f"--quantize: mlx_lm cannot load models of type {config['model_type']!r} quantized ({reason[:300]}); "
            "convert it without --quantize."
        )
    if reason:
        raise MlxmathError(f"{where}: mlx_lm cannot load this model quantized. Tensors {reason}.")


def check_called(built: Built, config: Mapping[str, Any], where: Path) -> None:
    """Make sure that the model takes a text: some settings are looked at only then. Nothing is computed.

    Raises:
        MlxmathError: it does not.
    """
    import mlx.core as mx

    found = architecture(str(config["model_type"]))
    if found is None or ".tolist()" in found.source:  # looks at values, of weights that are not there
        return

    def said(error: BaseException) -> str:
        return (
            f"{where}: mlx_lm builds the model of type {config['model_type']!r}, but cannot compute with it "
            f"({' '.join(str(error).split())[:120]}). A setting in config.json is one that mlx_lm does not expect; "
            "choose a model that it supports."
        )

    # RuntimeError and ValueError are of this device, which need not be the one that computes
    with library_errors(said), nothing_kept(built.model), suppress(RuntimeError, ValueError):
        built.model(mx.zeros((1, 2), mx.int32))


def _namings(tensors: Mapping[str, TensorRef]) -> Iterator[tuple[Mapping[str, TensorRef], str]]:
    """The tensors by their names, then without what wrappers have put before or into these; each with a note."""
    yield tensors, ""
    names = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in tensors}
    seen = [list(names)]
    for _ in range(4):
        if list(names.values()) not in seen and len(set(names.values())) == len(names) and all(names.values()):
            seen.append(list(names.values()))
            first = next(name for name, short in names.items() if short != name)
            note = f"names lose what a wrapper gave them: {first} is {names[first]}"
            yield {short: tensors[name] for name, short in names.items()}, note
        starts = {short.split(".")[0] for short in names.values()}
        if len(starts) != 1:
            return
        names = {name: short.partition(".")[2] for name, short in names.items()}


def _unpacked_experts(
    config: Mapping[str, Any], tensors: Mapping[str, TensorRef]
) -> Iterator[tuple[Mapping[str, TensorRef], str]]:
    """gpt-oss in 16 bits, as transformers writes it: experts (E, in, out), gates and ups in turn. mlx_lm has them
    apart, (E, out, in)."""
    ends = {
        "experts.gate_up_proj": (("gate_proj.weight", 0, 2, True), ("up_proj.weight", 1, 2, True)),
        "experts.gate_up_proj_bias": (("gate_proj.bias", 0, 2, False), ("up_proj.bias", 1, 2, False)),
        "experts.down_proj": (("down_proj.weight", 0, 1, True),),
        "experts.down_proj_bias": (("down_proj.bias", 0, 1, False),),
    }
    if config.get("model_type") != "gpt_oss" or not any(name.endswith("experts.gate_up_proj") for name in tensors):
        return
    result: dict[str, TensorRef] = {}
    for name, tensor in tensors.items():
        end = next((end for end in ends if name.endswith(end)), None)
        if end is None:
            result[name] = tensor
            continue
        for new, first, step, turned in ends[end]:
            *shape, n = tensor.shape
            *stride, s = tensor.stride
            shape, stride = [*shape, n // step], [*stride, s * step]
            if turned:
                shape[-2:], stride[-2:] = shape[:-3:-1], stride[:-3:-1]
            at = tensor.offset + first * s * DTYPES[tensor.dtype].itemsize
            path = name.removesuffix(end) + "experts." + new
            result[path] = replace(tensor, shape=tuple(shape), stride=tuple(stride), offset=at)
    yield result, "experts are stored as mlx_lm has them: gates, ups and downs apart, transposed"


def left_out(config: Mapping[str, Any], tensors: Mapping[str, TensorRef], built: Built) -> str | None:
    """A sentence that names what of a language model mlx_lm drops, although it is not zero; None if there is nothing.

    A tensor of which the model keeps no trace is one without which it comes out the same. Those of all blocks with one
    name are tried at once.

    Args:
        config: config.json as mlx_lm reads it.
        tensors: by the names with which the model was built.
        built: the model for all of them.
    """
    taken = frozenset(built.origins.values())
    groups: dict[str, list[str]] = {}
    for name in tensors:
        if name not in taken and not _is_no_part(name, config):
            groups.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    dropped = [
        name
        for names in groups.values()
        if _same_without(frozenset(names), config, tensors, built)
        for name in names
        if not _is_zero(tensors[name])
    ]
    said = (
        f"mlx_lm's model does without {len(dropped)} tensors that the original computes with, so it answers otherwise"
    )
    return f"{said}: {shortened(dropped, 3)}" if dropped else None


def _is_no_part(name: str, config: Mapping[str, Any]) -> bool:
    """Whether the original language model has no use for a tensor either."""
    table = {**config, **text_part(config)}
    is_tied = table.get("tie_word_embeddings") is not False and name.endswith("lm_head.weight")
    return is_tied or is_spare(name, config) or _OF_OTHER_PARTS.search(name) is not None


def is_spare(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor is one that a model computes itself, or of a block after the last: that predicts more tokens."""
    table = text_part(config) or config
    count = next((table[key] for key in ("num_hidden_layers", "num_layers", "n_layer") if key in table), None)
    number = re.search(r"layers\.(\d+)\.", name)
    more = table.get("num_nextn_predict_layers") or 0
    is_beyond = isinstance(count, int) and number is not None and count <= int(number[1]) < count + more
    return is_beyond or _BUFFERS.search(name) is not None


def _same_without(
    names: frozenset[str], config: Mapping[str, Any], tensors: Mapping[str, TensorRef], built: Built
) -> bool:
    try:
        other = build(config, _declared({name: each for name, each in tensors.items() if name not in names}))
    except MlxmathError:
        return False
    one, two = ({name: tuple(array.shape) for name, array in each.arrays.items()} for each in (other, built))
    return (other.problems, other.origins, one) == (built.problems, built.origins, two)


def _is_zero(tensor: TensorRef) -> bool:
    """Whether all elements are zero, of either sign."""
    sign = np.uint16(0x8000) if tensor.dtype == "bfloat16" else None  # held as its bits
    return not any(np.any(block if sign is None else block & ~sign) for block in tensor.blocks())
