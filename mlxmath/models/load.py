"""Loads an MLX model folder, and says what a model must be before it is trained or asked.

Of a type that can be trained, with weights that are numbers, and with an embedding for every token id (an id beyond it
would read memory that is not the table's).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.utils import MODEL_REMAPPING

from mlxmath.errors import InputError, MlxmathError
from mlxmath.models.gated_delta import use_chunks
from mlxmath.models.linear import use_activations, use_numpy, use_products
from mlxmath.models.norm import use_products_for_norms
from mlxmath.models.wkv import use_gradients
from mlxmath.runtime.blas import blas_is_missing
from mlxmath.runtime.files import read_json
from mlxmath.weights.architecture import probe
from mlxmath.weights.configuration import check_claims
from mlxmath.weights.hub import open_weights
from mlxmath.weights.layout import check_called
from mlxmath.weights.manifest import FILE_NAME, verify
from mlxmath.weights.quantized import check_tables
from mlxmath.weights.tensors import TensorRef


@dataclass(frozen=True)
class Loaded:
    """A model in memory and its config.json."""

    model: nn.Module
    config: dict[str, Any]
    stored: Mapping[str, TensorRef]
    """Where those parameters lie that are in the files as they are, by their names."""


def load_model(folder: Path, dtype: str, *, lazy: bool = False) -> Loaded:
    """Load the model in `folder` with its floating-point parameters as `dtype`.

    Quantized weights stay packed, and what the architecture wants in a type of its own keeps the one it is stored in
    (mlx_lm's `cast_predicate`: the biases of a router, the decay of a state).

    Args:
        folder: config.json and model*.safetensors, as `mlxmath convert` or mlx_lm writes them.
        dtype: "float32", "bfloat16" or "float16".
        lazy: leave the weights on the disk until they are used, and layers as they are.

    Raises:
        MlxmathError: files are missing or damaged, weights are not finite, mlx_lm does not know the architecture,
            or the weights are not of the model that config.json describes (all that is missing, unknown or of another
            shape is named).
    """
    if not (folder / "config.json").is_file():
        raise MlxmathError(f"{folder} is not a model folder: config.json is missing. Make one with `mlxmath convert`.")
    weights = open_weights(folder)
    if weights.files[0].suffix != ".safetensors":
        raise MlxmathError(
            f"{folder} holds a model that is not converted yet. Make an MLX model with `mlxmath convert`."
        )
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise MlxmathError(f"{folder / 'config.json'} has no model_type; expected the configuration of a model.")
    check_tables(config)
    check_claims(config, weights.tensors, folder)
    try:
        built = probe(folder)
    except MlxmathError as error:
        raise MlxmathError(f"{folder} does not load: {error}. {_advice(folder)}") from error
    if built.problems:
        raise MlxmathError(
            f"{folder} does not load, since its weights are not those of the model that config.json describes. Tensors "
            f"{'; '.join(built.problems)}. {_advice(folder)}"
        )
    check_called(built, config, folder)
    model = built.model
    model.__class__ = type(model).__mro__[1]  # mlx_lm's own
    if not hasattr(model, "_no_grad"):  # RecurrentGemma's class in mlx_lm leaves out what every module has
        nn.Module.__init__(model)
    model.load_weights(list(built.arrays.items()))
    cast(model, getattr(mx, dtype))
    stored = {name: weights.tensors[origin] for name, origin in built.origins.items()}
    if lazy:
        return Loaded(model, built.config, stored)
    suit(model, dtype)
    mx.eval(model.parameters())
    check_finite(folder, dict(tree_flatten(model.parameters())))
    return Loaded(model, built.config, stored)


def load_again(folder: Path, dtype: str, loaded: nn.Module) -> nn.Module:
    """The model in `folder` once more, for another adapter: its layers are its own, its weights are those of `loaded`.

    Args:
        folder: of the model.
        dtype: as it was loaded.
        loaded: what `load_model` gave, without adapters.
    """
    model = load_model(folder, dtype, lazy=True).model
    suit(model, dtype)
    model.update(loaded.parameters())
    return model


def suit(model: nn.Module, dtype: str) -> None:
    """Let a model's layers compute as is best on MLX's default device."""
    use_chunks()
    use_gradients()
    use_activations(model, getattr(mx, dtype))
    if mx.default_device() == mx.Device(mx.cpu, 0):
        use_products(model)
        use_products_for_norms(model)
        if dtype == "float32" and blas_is_missing():
            use_numpy(model)


def cast(model: nn.Module, dtype: mx.Dtype) -> None:
    """Give a model's floating-point parameters the type, but for those that its architecture keeps out of casts."""
    may_cast = getattr(model, "cast_predicate", lambda _: True)

    def converted(name: str, array: mx.array) -> mx.array:
        is_fixed = not mx.issubdtype(array.dtype, mx.floating) or name.endswith("global_scale") or not may_cast(name)
        return array if is_fixed else array.astype(dtype)

    model.update(tree_map_with_path(converted, model.parameters()))


def _advice(folder: Path) -> str:
    """What helps, given how the folder came about."""
    if not (folder / FILE_NAME).exists():
        return "It was made by another program: convert the original model with `mlxmath convert`."
    damage = verify(folder, full=True)
    if isinstance(damage, str):
        return f"It was changed after it was made ({damage}); `mlxmath convert --overwrite` makes it again."
    return "It was made by another version of mlxmath or mlx_lm; convert it again, into another --mlx-path."


CANNOT_BE_TRAINED = {
    "bitnet": "its ternary weights are multiplied by a Metal kernel that has no gradient",
    "deepseek_v41": "what its attention looks at is chosen by indices through which mlx_lm has no gradient",
    "gemma3n": "its last blocks share keys and values where mlx_lm answers, and not where it takes a whole text at "
    "once, so that what trains would not be what answers",
    "muse_spark": "its attention is a Metal kernel that has no gradient",
    "olmo": "mlx_lm's attention fails on it for texts of more than one token (its successors, olmo2 and olmo3, train)",
    "phi3small": "mlx_lm's block-sparse attention shows each token the ones that come after it, the targets",
}
"""By mlx_lm's name of the type (of mlx_lm 0.32.2)."""


def refuse_untrainable(
    config: Mapping[str, Any], what: str = "--model:", remedy: str = "Choose another base model."
) -> None:
    """Say of a model that cannot be trained why not.

    Args:
        config: its config.json.
        what: is refused for it.
        remedy: what to do.

    Raises:
        InputError: it cannot be.
    """
    model_type = str(config.get("model_type"))
    reason = CANNOT_BE_TRAINED.get(MODEL_REMAPPING.get(model_type, model_type))
    if reason is not None:
        raise InputError(f"{what} models of type {model_type} cannot be trained: {reason}. {remedy}")


_OF_POSITIONS = ("wpe", "position", "pos_emb")


def num_embeddings(model: nn.Module) -> int | None:
    """Rows of the embedding of the model's tokens; None where it has none of its own."""
    found = _token_embedding(model)
    return None if found is None else len(found.weight)


def token_embedding(model: nn.Module) -> nn.Module:
    """The embedding of the model's tokens.

    Raises:
        MlxmathError: it has none of its own.
    """
    found = _token_embedding(model)
    if found is None:
        raise MlxmathError(
            "this model has no embedding of its tokens to put noise on; leave --neftune-noise-alpha out."
        )
    return found


def _token_embedding(model: nn.Module) -> nn.Module | None:
    """The first that the model defines: others are of each block (Gemma 4) or of several tokens (LongCat's n-grams)."""
    found = [
        module
        for name, module in model.named_modules()  # the last ones of each module come first
        if isinstance(module, nn.Embedding | nn.QuantizedEmbedding) and not any(part in name for part in _OF_POSITIONS)
    ]
    return found[-1] if found else None


def check_ids(model: nn.Module, largest: int, what: str) -> None:
    """Refuse a token id that the model has no embedding for.

    Args:
        model: the model.
        largest: of the ids.
        what: where they are from, for the message.

    Raises:
        MlxmathError: it is beyond the embedding.
    """
    rows = num_embeddings(model)
    if rows is not None and largest >= rows:
        raise MlxmathError(
            f"{what} has the token id {largest}, but the embedding ends at {rows - 1}. The tokenizer is not this "
            "model's, or tokens were added to it and not to the embedding; use the tokenizer that came with the model."
        )


LARGEST = 1e10
"""Trained weights are below some hundreds; a square of 1e19 is no float32 any more."""
_AT_A_TIME = 1 << 24
"""Numbers that are looked at together, so that little memory is taken."""
_SHOWN = 5


def check_finite(source: Path, arrays: Mapping[str, mx.array]) -> None:
    """Refuse weights of which nothing sensible can come.

    Args:
        source: the file or folder that they are from.
        arrays: by name; arrays of whole numbers (packed weights) are passed over.

    Raises:
        MlxmathError: the arrays that hold NaN, an infinity or an absurd value are named, each with an example.
    """
    wrong = [f"{name} holds {found}" for name, array in arrays.items() if (found := _absurd(array)) is not None]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more arrays are like that" if len(wrong) > _SHOWN else ""
        raise MlxmathError(
            f"{source} is damaged or its training diverged: {', '.join(wrong[:_SHOWN])}{more}. Use another copy, or an "
            "earlier checkpoint."
        )


def _absurd(array: mx.array) -> float | None:
    """A value that a weight cannot have, if there is one."""
    if not mx.issubdtype(array.dtype, mx.floating):
        return None
    flat = array.reshape(-1)
    for start in range(0, flat.size, _AT_A_TIME):
        part = flat[start : start + _AT_A_TIME]
        is_wrong = ~(mx.abs(part) <= LARGEST)  # so that NaN is wrong too
        if is_wrong.any():
            value: float = part[mx.argmax(is_wrong)].item()
            return value
    return None
