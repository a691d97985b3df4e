"""Whether the base is in memory while adapters train, or its blocks stay on the disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxmath.errors import InputError, MlxmathError

if TYPE_CHECKING:
    from mlxmath.config.schema import RunConfig
    from mlxmath.runtime.device import DeviceInfo
    from mlxmath.training.plan import Objective

OFFLOAD = "--offload on"


def cannot_offload(config: "RunConfig", objective: "Objective") -> str | None:
    """Why the base's blocks cannot stay on the disk while this trains; None if they can."""
    if objective != "train":
        return f"it is for `mlxmath train` alone, not for `mlxmath {objective}`"
    if config.training.full:
        return "adapters train while the base stays on the disk, and --full trains the base"
    if config.sft.neftune_noise_alpha:
        return "noise on the embeddings (--neftune-noise-alpha) needs the base in memory"
    if config.lora.variant != "lora":
        return f"adapters of the variant {config.lora.variant} are made from the weights; use --lora-variant lora"
    return None


def offloading(config: "RunConfig") -> "RunConfig":
    """With the base's blocks on the disk; then every block is computed again in the backward pass."""
    return config.model_copy(
        update={
            "runtime": config.runtime.model_copy(update={"offload": "on"}),
            "training": config.training.model_copy(update={"grad_checkpoint": 1}),
        }
    )


def goes_by_block(config: "RunConfig", model_config: Mapping[str, Any], device: "DeviceInfo") -> bool:
    """Whether a model's blocks are taken apart, without which what training takes then is not known well enough.

    Known before it is loaded on a CPU alone; a GPU that trains in memory goes through the whole model.
    """
    from mlxmath.training.footprint import measured

    found = measured(model_config, config, device).measured
    return device.backend != "cpu" or (not isinstance(found, str) and found.by_block)


def settled(
    config: "RunConfig", model_config: Mapping[str, Any], device: "DeviceInfo", longest: int, objective: "Objective"
) -> "RunConfig":
    """`offloading` if that is asked for or, under "auto", where nothing else fits and that does; else as it is."""
    from mlxmath.training.plan import planned, remedies

    offload, most = config.runtime.offload, device.memory_bytes
    if offload == "on":
        return offloading(config)
    if offload == "off" or cannot_offload(config, objective) or config.runtime.allow_overcommit:
        return config
    try:
        if planned(config, model_config, device, longest, objective)[0].total <= most:
            return config
        changes = remedies(config, model_config, device, longest, objective)
        if any(total <= most and OFFLOAD not in change for change, total in changes):
            return config
        by_block = goes_by_block(config, model_config, device)
        fits = by_block and planned(offloading(config), model_config, device, longest, objective)[0].total <= most
    except InputError:
        raise
    except MlxmathError:  # of a model that cannot be planned
        return config
    return offloading(config) if fits else config


def reading(
    config: "RunConfig", model_config: Mapping[str, Any], device: "DeviceInfo", rows: tuple[int, int] | None
) -> str:  # fmt: skip
    """What reading the base takes of a step's time, for people; `rows` and their tokens, if they are known."""
    from mlxmath.models.memory import ModelShape
    from mlxmath.models.speed import disk_line, tokens_per_s
    from mlxmath.training.footprint import measured

    training = config.training
    per_row = rows[1] / rows[0] if rows else config.data.max_seq_len
    tokens = training.batch_size * training.grad_accumulation_steps * per_row
    weights, folder = measured(model_config, config, device).weights, Path(config.model.mlx_path).expanduser()
    return disk_line(weights, folder, tokens / tokens_per_s(ModelShape.from_config(model_config), config, device))
