"""What memory a run takes and whether it fits, before anything but config.json is downloaded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mlxmath.errors import InputError
from mlxmath.runtime.console import size, warn
from mlxmath.training.drawing import drawn_by, with_drawing
from mlxmath.training.placing import OFFLOAD, cannot_offload, goes_by_block, offloading, reading, settled

if TYPE_CHECKING:
    from mlxmath.config.schema import ModelConfig, RunConfig
    from mlxmath.data.tokenize import Form
    from mlxmath.models.memory import Batching, MemoryPlan
    from mlxmath.runtime.device import DeviceInfo

Objective = Literal["train", "dpo", "reward-model", "grpo", "gkd"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
"""Commands whose memory differs."""
_BESIDE = (
    "  and beside it some 0.3 to 0.5 GB for Python and libraries, and freed arrays that MLX keeps for the next ones"
)
"""What is resident on Linux before there is any array; `benchmarks/bench_memory.py` has the sum."""
_UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "": 1.0}


@dataclass(frozen=True)
class RunPlan:
    """What a run takes on this machine."""

    model: str
    """Where its configuration is from."""
    memory: "MemoryPlan"
    device_bytes: int
    """That there are."""
    lines: list[str]
    """All of it for people, a line a fact."""
    remedies: list[tuple[str, int]]
    """Where it does not fit: options that take less, with the bytes that the run would take then."""

    @property
    def fits(self) -> bool:
        """Whether the run fits."""
        return self.memory.total <= self.device_bytes


def plan_run(config: "RunConfig", objective: "Objective" = "train", memory_bytes: int | None = None) -> RunPlan:
    """What memory and time a run takes, and what to change if it does not fit.

    Nothing but config.json is fetched: a repository without one, as those of GGUF files, is converted first.

    Args:
        config: its settings.
        objective: the command that is planned for.
        memory_bytes: of the machine (None: of this one).

    Raises:
        InputError: a setting is wrong, or the model cannot be trained.
        MlxmathError: the model is not known.
    """
    from mlxmath.models.load import refuse_untrainable
    from mlxmath.runtime.device import opened_backend
    from mlxmath.runtime.files import read_json
    from mlxmath.weights.hub import fetch
    from mlxmath.weights.opened import source_config

    with opened_backend(config.runtime, seed=0) as (_, device):
        if memory_bytes is not None:
            device = replace(device, memory_bytes=memory_bytes)
        held = converted(config.model)
        source = fetch(config.model.model, config.model.revision, config_only=True) if held is None else None
        held_config = Path(config.model.mlx_path).expanduser() / "config.json"
        model_config = source_config(source) if source else read_json(held_config)
        refuse_untrainable(model_config)
        longest = config.data.max_seq_len
        config = settled(config, model_config, device, longest, objective)
        lines, fits = describe(config, model_config, device, objective)
        plan, _ = planned(config, model_config, device, longest, objective)
        changes = [] if fits else remedies(config, model_config, device, longest, objective)
        name = source.name if source else f"{config.model.mlx_path} ({held})"
        return RunPlan(name, plan, device.memory_bytes, lines, changes)


def converted(config: "ModelConfig") -> str | None:
    """What the model folder holds, if a run with these settings would use it as it is."""
    from mlxmath.errors import MlxmathError
    from mlxmath.weights.hub import is_source
    from mlxmath.weights.manifest import FILE_NAME, read_manifest
    from mlxmath.weights.packing import held_otherwise

    folder = Path(config.mlx_path).expanduser()
    if config.overwrite or not (folder / FILE_NAME).is_file():
        return None
    try:
        manifest = read_manifest(folder)
    except MlxmathError:
        return None
    other = config.quantize is not None and held_otherwise(config, manifest.quantization, manifest.quantize)
    if not is_source(config.model, manifest.source) or other:
        return None
    return manifest.describe()


def describe(
    config: "RunConfig", model_config: Mapping[str, Any], device: "DeviceInfo", objective: "Objective" = "train"
) -> tuple[list[str], bool]:
    """What a run takes, in memory and in time, a line a fact; and whether it fits."""
    from mlxmath.data.prepare import prepared
    from mlxmath.models.memory import ModelShape
    from mlxmath.models.speed import time_lines

    config = settled(config, model_config, device, config.data.max_seq_len, objective)
    form: Form = "completions" if _by_label(config, objective) else "solutions" if objective == "train" else "pairs"
    found = prepared(config.data, Path(config.model.mlx_path).expanduser(), form)
    plan, batching = planned(config, model_config, device, config.data.max_seq_len, objective)
    unknown = unmeasured(config, model_config, device)
    timed = drawn_by(config, objective) is None
    lines = [
        *([f"more than this, since a micro-batch could not be tried: {unknown}"] if unknown else ()),
        f"{batching.num_workers} x {batching.tokens:,} tokens at once, rows of up to {config.data.max_seq_len:,}",
        *table(plan),
        _BESIDE,
        *(time_lines(ModelShape.from_config(model_config), config, device, found) if timed else ()),
    ]
    if config.runtime.offload == "on":
        lines.append(reading(config, model_config, device, found))
    memory = device.memory_bytes
    if plan.total <= memory:
        return [*lines, f"fits: {size(memory - plan.total)} of {size(memory)} are left"], True
    return [*lines, f"does not fit into {size(memory)}"], False


def planned(
    config: "RunConfig", model_config: Mapping[str, Any], device: "DeviceInfo", longest: int,
    objective: "Objective" = "train", batching: "Batching | None" = None,
) -> tuple["MemoryPlan", "Batching"]:  # fmt: skip
    """The plan, and the micro-batches that it is for (None: what a run would choose)."""
    from mlxmath.models.memory import ModelShape, choose_batching, plan_memory
    from mlxmath.training.footprint import measured

    training, of = config.training, measured(model_config, config, device)
    batching = batching or choose_batching(config, device, longest, of)
    paired = objective in ("dpo", "reward-model") and not _by_label(config, objective)
    rows_each = 2 if paired and training.batching != "pack" else 1
    if rows_each == 2:  # a pair stays together
        batching = replace(batching, tokens=max(batching.tokens, 2 * longest))
    itemsize = 4 if device.compute_dtype == "float32" else 2
    drawn = drawn_by(config, objective)
    prompt = max(0, longest - drawn.max_completion_length) if drawn else 0
    group = drawn.num_generations if drawn else 1
    by_block = not isinstance(of.measured, str) and of.measured.by_block
    shares = training.batching == "bucket" and by_block and group > 1
    plan = plan_memory(
        of, config, itemsize=itemsize, batching=batching, longest=longest, prompt=prompt if shares else 0,
        cached_per_token=ModelShape.from_config(model_config).cached_per_token if shares and prompt else 0,
        rows_each=rows_each, group_size=group,
    )  # fmt: skip
    if _has_reference(config, objective):
        plan = replace(plan, reference=of.trained * (itemsize if training.full else 4))
    if drawn is None:
        return plan, batching
    return with_drawing(plan, config, drawn, model_config, device, prompt, batching), batching


def unmeasured(config: "RunConfig", model_config: Mapping[str, Any], device: "DeviceInfo") -> str | None:
    """Why it is not known what a micro-batch takes; None if it is."""
    from mlxmath.training.footprint import measured

    found = measured(model_config, config, device).measured
    return found if isinstance(found, str) else None


def batching_of(config: "RunConfig", model_config: Mapping[str, Any], device: "DeviceInfo", longest: int) -> "Batching":
    """How much a run computes at once; of a model that cannot be counted, as little as there is."""
    from mlxmath.errors import MlxmathError
    from mlxmath.models.memory import choose_batching
    from mlxmath.training.footprint import measured

    try:
        of = measured(model_config, config, device)
    except InputError:
        raise
    except MlxmathError:
        of = None
    return choose_batching(config, device, longest, of)


def _by_label(config: "RunConfig", objective: "Objective") -> bool:
    """Whether completions come one by one, not in pairs."""
    return objective == "dpo" and config.dpo.loss_type == "kto"


def _has_reference(config: "RunConfig", objective: "Objective") -> bool:
    """Whether the trained parameters as they were at the start are in memory too."""
    if objective == "grpo":
        return config.grpo.beta > 0
    is_new = config.training.full or config.training.init_adapter is not None
    return objective == "dpo" and config.dpo.needs_reference and is_new  # else adapters are left out


def remedies(
    config: "RunConfig", model_config: Mapping[str, Any], device: "DeviceInfo", longest: int,
    objective: "Objective" = "train",
) -> list[tuple[str, int]]:  # fmt: skip
    """Settings that would take less memory, with the bytes that the run would take then, until one fits."""
    from mlxmath.models.skeleton import stored_settings

    changes: list[tuple[str, str, dict[str, Any], int]] = [
        ("--grad-checkpoint 1", "training", {"grad_checkpoint": 1}, longest),
        ("--quantize 8", "model", {"quantize": 8, "group_size": None}, longest),
        ("--quantize 4", "model", {"quantize": 4, "group_size": None}, longest),
        (f"--max-seq-len {longest // 2}", "data", {"max_seq_len": longest // 2}, longest // 2),
    ]
    if (
        config.training.full or stored_settings(model_config) is not None
    ):  # whole weights are not quantized; once is enough
        changes = [change for change in changes if change[1] != "model"]
    found: list[tuple[str, int]] = []
    least = planned(config, model_config, device, longest, objective)[0].total
    current, name = config, ""
    for option, section, values, length_then in changes:
        if getattr(current, section).model_dump().items() >= values.items():
            continue
        tried = current.model_copy(update={section: getattr(current, section).model_copy(update=values)})
        total = planned(tried, model_config, device, length_then, objective)[0].total
        if total >= least:  # it would not help
            continue
        current, least = tried, total
        name = f"{name} {option}".strip().replace("--quantize 8 --quantize 4", "--quantize 4")
        found.append((name, total))
        if total <= device.memory_bytes:
            return found
    refused = cannot_offload(config, objective) or not goes_by_block(current, model_config, device)
    if not refused and config.runtime.offload != "on":
        total = planned(offloading(current), model_config, device, longest, objective)[0].total
        found += [(f"{name} {OFFLOAD}".strip(), total)] if total < least else []
    return found


def parts(plan: "MemoryPlan") -> dict[str, int]:
    """The bytes for each purpose."""
    found = {
        "weights": plan.weights,
        "adapters and sums of gradients": plan.adapters,
        "optimizer": plan.optimizer,
        "reference or teacher": plan.reference,
        "activations, then gradients": plan.activations,
        "block or head at hand": plan.working,
        "drawing, before these two": plan.drawing,
    }
    return {name: number for name, number in found.items() if number}


def table(plan: "MemoryPlan") -> list[str]:
    """A line for each purpose, and one for all."""
    return [f"  {name:30}{size(number):>12}" for name, number in (*parts(plan).items(), ("in all", plan.total))]


def parse_size(text: str) -> int:
    """`16GB` as bytes (decimal units).

    Raises:
        InputError: it is not a size.
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d+)?)\s*([kmgt]?b)?\s*", text.lower())
    if not match or not float(match[1]):
        raise InputError(f"--memory: expected a size such as 16GB, found {text!r}")
    return int(float(match[1]) * _UNITS[match[2] or ""] if match[2] != "b" else float(match[1]))


def check_fits(
    config: "RunConfig", model_folder: Path, model_config: Mapping[str, Any], device: "DeviceInfo", longest: int,
    objective: "Objective" = "train", batching: "Batching | None" = None,
) -> int | None:  # fmt: skip
    """The bytes that a run takes, as planned; None, with a warning, for a model that cannot be planned.

    Raises:
        InputError: they exceed the device's memory and `--allow-overcommit` was not given.
    """
    from mlxmath.errors import MlxmathError

    try:
        plan, _ = planned(config, model_config, device, longest, objective, batching)
    except InputError:
        raise
    except MlxmathError as error:
        warn(f"what this run takes of the memory is not known beforehand: {error}")
        return None
    if reason := unmeasured(config, model_config, device):
        warn(f"what a micro-batch takes of the memory is not known beforehand: {reason}")
    if plan.total <= device.memory_bytes or config.runtime.allow_overcommit:
        return plan.total
    hints = [
        f"{change} ({size(total)})" for change, total in remedies(config, model_config, device, longest, objective)
    ]
    raise InputError(
        f"training {model_folder} takes about {size(plan.total)}, this device has {size(device.memory_bytes)}. Try "
        f"{', or '.join(hints)}; --allow-overcommit starts it all the same."
    )
