"""Whether a model that answers is in memory, or its blocks stay on the disk."""

from pathlib import Path

from mlx.utils import tree_flatten

from mlxmath.config.schema import RuntimeConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.models.lora.adapter import CONFIG, read_config
from mlxmath.models.served import Served
from mlxmath.models.skeleton import skeleton
from mlxmath.models.speed import answering_line
from mlxmath.runtime.console import say, size
from mlxmath.runtime.device import DeviceInfo
from mlxmath.runtime.files import read_json

_SHARE = 0.9
"""Of the memory, which weights may take; what is left is for keys and values."""


def stays_on_disk(
    runtime: RuntimeConfig, folder: Path, device: DeviceInfo, adapter: Path | None, *, spread: bool = False
) -> bool:  # fmt: skip
    """Whether `--offload` lets a model's blocks stay on the disk: under "auto" where its weights fill the memory.

    Args:
        runtime: its setting.
        folder: of the model.
        device: that it is to answer on.
        adapter: that it gets.
        spread: over several processes.

    Raises:
        InputError: it is asked for where it cannot be.
    """
    if runtime.offload == "off":
        return False
    reason = "a model that is spread (--shard) is held by its processes" if spread else _of_weights(adapter)
    if runtime.offload == "on":
        if reason:
            raise InputError(f"--offload on: {reason}. Use --offload off.")
        return True
    file = folder / "config.json"
    if reason or not file.is_file() or not isinstance(config := read_json(file), dict):
        return False
    try:
        model = skeleton(config, device.compute_dtype)
    except MlxmathError:  # loading it says what is wrong
        return False
    weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    return weights > _SHARE * device.memory_bytes


def check_held_in_memory(runtime: RuntimeConfig, folder: Path, device: DeviceInfo, command: str) -> None:
    """Refuse a model that `--offload` would leave on the disk, for a command that cannot answer from there.

    Raises:
        InputError: that is asked for, or the weights fill the memory.
    """
    if not stays_on_disk(runtime, folder, device, None):
        return
    why = "runtime.offload = on" if runtime.offload == "on" else f"{folder} fills {size(device.memory_bytes)} of memory"
    raise InputError(
        f"{why}: `mlxmath {command}` holds the whole model in memory; ask with `mlxmath infer`, which can leave it on "
        "the disk, or make a smaller one (`mlxmath convert --quantize 4`). `--set runtime.offload=off` loads it all."
    )


def _of_weights(adapter: Path | None) -> str | None:
    """Why an adapter needs the base's blocks in memory."""
    if adapter is None or not (adapter / CONFIG).is_file():
        return None
    return {
        "full": f"{adapter} holds whole blocks (of `mlxmath train --full`), which take the place of those on the disk",
        "dora": f"{adapter} holds DoRA, which is put on with the norms of the rows of all that it adapts",
    }.get(read_config(adapter).get("fine_tune_type", "lora"))


def serve(folder: Path, dtype: str) -> Served:
    """Open a model whose blocks stay on the disk, and say what that costs.

    Raises:
        MlxmathError: see `Served`.
    """
    served = Served(folder, dtype)
    say(answering_line(served.offloaded.num_bytes, folder))
    return served
