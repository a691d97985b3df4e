"""The adapter folder: written so that mlx_lm reads it, read so that nothing wrong passes; PEFT's is read too."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxmath.config.schema import LoraConfig
from mlxmath.errors import InputError, MlxmathError, library_errors
from mlxmath.models.lm_head import add_score_head
from mlxmath.models.load import check_finite
from mlxmath.models.lora.form import Form, differences
from mlxmath.models.lora.inject import adapter_arrays, open_blocks, put_adapters, put_each
from mlxmath.models.lora.peft import Adapted, read_peft
from mlxmath.models.lora.peft_config import WEIGHTS as PEFT_WEIGHTS
from mlxmath.models.lora.peft_config import PeftConfig, is_peft, weights_path
from mlxmath.models.lora.targets import resolve_keys
from mlxmath.runtime.files import atomic_file, atomic_json, read_json
from mlxmath.weights.manifest import same_weights
from mlxmath.weights.safetensor import open_safetensors

WEIGHTS = "adapters.safetensors"
CONFIG = "adapter_config.json"
REWARD_MODEL = "reward_model"
"""Key of adapter_config.json: true if the weights hold a score head too."""


def adapter_config(config: LoraConfig, keys: tuple[str, ...], *, full: bool = False, **extra: Any) -> dict[str, Any]:
    """adapter_config.json: the keys that mlx_lm needs, then our own.

    Args:
        config: the LoRA section of the run.
        keys: adapted layers, relative to their block.
        full: the blocks themselves are trained (`open_blocks`); the weights' file holds them whole.
        extra: `base_model`, `base_fingerprint` and whatever else should travel with the adapter.
    """
    if full:
        return {"fine_tune_type": "full", "num_layers": config.num_layers, **extra}
    return {
        "fine_tune_type": config.variant,
        "num_layers": config.num_layers,
        "lora_parameters": {
            "rank": config.rank, "scale": config.scale, "dropout": config.dropout, "keys": list(keys),
        },
        "lora_alpha": config.alpha,
        "use_rslora": config.rslora,
        **extra,
    }  # fmt: skip


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the arrays that train to `path` in one step."""
    save_arrays(path, adapter_arrays(model))


def save_arrays(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str] | None = None) -> None:
    """Write arrays as safetensors in one step."""
    mx.eval(arrays)
    with atomic_file(path) as file:
        mx.save_safetensors(file, arrays, metadata or {"format": "mlx"})


def save_config(folder: Path, config: dict[str, Any]) -> None:
    """Write adapter_config.json. Weights there that belong to another configuration are removed first.

    Those of a run that goes on with another version, or from another place, are not: until they are written again there
    would be none.
    """
    path, found = folder / CONFIG, None
    with contextlib.suppress(MlxmathError):  # one that is damaged is written anew
        found = read_json(path) if path.exists() else None
    if found == config:
        return
    if not isinstance(found, dict) or {**found, **_told(config)} != config:
        (folder / WEIGHTS).unlink(missing_ok=True)
    atomic_json(path, config)


def _told(config: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration says nothing of the weights."""
    return {name: config[name] for name in ("base_model", "mlxmath_version") if name in config}


def load_adapter(model: nn.Module, folder: Path, base_fingerprint: str | None = None) -> dict[str, Any]:
    """Inject the adapter in `folder` into `model` and load its weights; or load the blocks of a full fine-tuning.

    Args:
        model: a base model without adapters.
        folder: an adapter folder, ours or one that mlx_lm or PEFT made.
        base_fingerprint: the base's; an adapter that records another one is refused.

    Returns:
        The parsed adapter_config.json; PEFT's in the form that mlx_lm gives it.

    Raises:
        MlxmathError: a file or key is missing, the adapter was made for another base, or any tensor is missing,
            extra or of the wrong shape (all of them are named).
    """
    record = _read(folder, base_fingerprint)
    if record.get(REWARD_MODEL):
        raise MlxmathError(
            f"{folder} holds a reward model, which scores answers and gives none. Use it as grpo --reward "
            f"model:{folder}, or name another folder with --adapter-path."
        )
    if is_peft(folder):
        _load_peft(model, folder)
        return record
    _prepare(model, folder, record)
    load_weights(model, folder / WEIGHTS)
    return record


def load_reward_model(model: nn.Module, folder: Path, base_fingerprint: str | None = None) -> dict[str, Any]:
    """Make `model`, a base without adapters, the reward model in `folder`: its adapter and its score head.

    Returns and raises as `load_adapter`; a plain adapter is refused.
    """
    record = read_reward_model(folder, base_fingerprint)
    _prepare(model, folder, record)
    add_score_head(model)
    load_weights(model, folder / WEIGHTS)
    return record


def read_reward_model(folder: Path, base_fingerprint: str | None = None) -> dict[str, Any]:
    """The adapter_config.json of a reward model.

    Raises:
        MlxmathError: there is none in `folder`, or it was made for another base.
    """
    if not (folder / CONFIG).is_file():
        raise MlxmathError(f"{folder} holds no reward model; train one with `mlxmath reward-model`.")
    record = _read(folder, base_fingerprint)
    if not record.get(REWARD_MODEL):
        raise MlxmathError(
            f"{folder} holds a plain adapter, not a reward model; train one with `mlxmath reward-model`."
        )
    return record


def _read(folder: Path, base_fingerprint: str | None) -> dict[str, Any]:
    if absent := _absent(folder):
        raise MlxmathError(
            f"{folder} holds no adapter: {absent} is missing. Train one (`mlxmath train`), name another folder "
            "with --adapter-path, or ask the base model with --no-adapter."
        )
    record = read_config(folder)
    made_for = record.get("base_fingerprint")
    if base_fingerprint and made_for and not same_weights(base_fingerprint, made_for):
        raise MlxmathError(
            f"{folder} was trained on another base model ({record.get('base_model', 'unknown')}, fingerprint "
            f"{made_for}) than the one loaded (fingerprint {base_fingerprint}). Choose the matching --mlx-path."
        )
    return record


def _absent(folder: Path) -> str | None:
    """The first of an adapter's files that is missing in a folder."""
    return next((path.name for path in (folder / CONFIG, weights_file(folder)) if not path.is_file()), None)


def weights_file(folder: Path) -> Path:
    """The file with an adapter's tensors, in mlx_lm's form or PEFT's; it need not be there."""
    return (weights_path(folder) or folder / PEFT_WEIGHTS[0]) if is_peft(folder) else folder / WEIGHTS


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json; PEFT's in the form that mlx_lm gives it, without the layers.

    Raises:
        MlxmathError: it is absent, no JSON or no adapter configuration, or PEFT's has what cannot be taken in.
    """
    if is_peft(folder):
        return PeftConfig.read(folder).record()
    record = read_json(folder / CONFIG)
    Form.of(record, folder / CONFIG)
    return dict(record)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """What an adapter folder says of its adapter, in mlx_lm's form.

    Raises:
        MlxmathError: there is no adapter, or its configuration is damaged.
    """
    return _read(folder, None)


def load_initial(model: nn.Module, folder: Path, wanted: dict[str, Any]) -> None:
    """Let training start from the weights of the adapter in `folder`.

    Args:
        model: with the adapters, or the open blocks, that are to be trained.
        folder: an adapter folder of the same base and form.
        wanted: adapter_config.json of the run that starts.

    Raises:
        InputError: there is no adapter, or its form is another (every difference is named).
        MlxmathError: a file is damaged, or a tensor missing, extra or misshapen.
    """
    if _absent(folder):
        raise InputError(f"--init-adapter: {folder} holds no adapter; expected {CONFIG} and {WEIGHTS}.")
    found = read_config(folder)
    of_peft = is_peft(folder) and read_peft(folder, model)
    if of_peft:
        found = found | {"num_layers": wanted["num_layers"]}  # its tensors tell which layers
    there, here = (Form.of(record, folder / CONFIG) for record in (found, wanted))
    different = differences(there, here, len(model.layers))
    theirs, ours = found.get("base_fingerprint"), wanted.get("base_fingerprint")
    if theirs is not None and not same_weights(ours, theirs):
        different = [f"base_fingerprint is {theirs!r} there and {ours!r} here", *different]
    for one in of_peft[1] if of_peft else ():
        if (one.rank, one.scale) != (here.rank, here.scale):
            different.append(f"{one.layer.key} has rank {one.rank} and scale {one.scale:g} there")
    if different:
        raise InputError(f"--init-adapter: {folder} does not fit this run: {'; '.join(different)}.")
    if of_peft:
        _put_arrays(model, weights_file(folder), _arrays(of_peft[1]))
    else:
        load_weights(model, folder / WEIGHTS)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the arrays that train into `model`; every tensor must be there and fit.

    Adapters become float32; the blocks of a full fine-tuning keep the type that the model was loaded in.

    Raises:
        MlxmathError: the file is not readable, or tensors are missing, extra or misshapen.
    """
    _put_arrays(model, path, load_arrays(path))


def load_arrays(path: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file, whose header is checked before MLX gets it.

    Raises:
        MlxmathError: it is absent or damaged.
    """
    open_safetensors(path)
    with library_errors(f"{path} is damaged", "Use another copy."):
        found: dict[str, mx.array] = mx.load(str(path), format="safetensors")
        return found


def _put_arrays(model: nn.Module, path: Path, found: dict[str, mx.array]) -> None:
    """The arrays that train; they are those of a file. Raises as `load_weights`."""
    check_finite(path, found)
    expected = adapter_arrays(model)
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} belongs to no adapter of this model" for name in found if name not in expected]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, expected {tuple(array.shape)}"
        for name, array in expected.items()
        if name in found and found[name].shape != array.shape
    ]
    problems += [
        f"{name} holds {array.dtype}, expected floating-point numbers"
        for name, array in found.items()
        if name in expected and not mx.issubdtype(array.dtype, mx.floating)
    ]
    if problems:
        shown = "\n  ".join(problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise MlxmathError(f"{path} does not fit the model and the rank and targets beside it:\n  {shown}{more}")
    model.load_weights([(name, array.astype(expected[name].dtype)) for name, array in found.items()], strict=False)
    mx.eval(adapter_arrays(model))


def _prepare(model: nn.Module, folder: Path, record: dict[str, Any]) -> None:
    """Give `model` the trainable arrays that adapter_config.json describes. The scale is the recorded one, exactly."""
    form = Form.of(record, folder / CONFIG)
    if form.kind == "full":
        open_blocks(model, form.num_layers)
        return
    targets = resolve_keys(model, form.keys, form.num_layers)
    if not targets.layers:
        raise MlxmathError(f"{folder / CONFIG}: keys name no layer of this model: {', '.join(form.keys or ())}.")
    if form.kind == "dora" and any(layer.num_experts is not None for layer in targets.layers):
        raise MlxmathError(f"{folder / CONFIG} asks for DoRA on experts, which neither mlx_lm nor mlxmath has.")
    put_adapters(model, targets, form.kind, form.rank, form.scale, form.dropout)


def _load_peft(model: nn.Module, folder: Path) -> None:
    """Put an adapter in PEFT's form into a base; each layer has the rank and the scale that PEFT gives it."""
    config, adapted = read_peft(folder, model)
    kind = "dora" if config.is_dora else "lora"
    put_each(model, [(one.layer, kind, one.rank, one.scale, config.dropout) for one in adapted])
    _put_arrays(model, weights_file(folder), _arrays(adapted))


def _arrays(adapted: Sequence[Adapted]) -> dict[str, mx.array]:
    """By their names in the model."""
    return {f"{one.layer.path}.{name}": array for one in adapted for name, array in one.arrays.items()}
