"""`mlxmath plan`: what memory a run takes and whether it fits, before anything but config.json is downloaded."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxmath import options
from mlxmath.config.load import Resolved
from mlxmath.console import duration, size
from mlxmath.errors import InputError

if TYPE_CHECKING:
    from mlxmath.backends.base import DeviceInfo
    from mlxmath.config.schema import RunConfig
    from mlxmath.models.memory import Batching, MemoryPlan

_UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "": 1.0}


@options.command("plan")
@options.configured
@options.setting_options(
    *options.MODEL,
    "data.max_seq_len",
    "data.num_examples",
    *options.LORA,
    "training.full",
    "training.optimizer",
    "training.batch_size",
    "training.grad_accumulation_steps",
    "training.batching",
    "training.max_batch_tokens",
    "training.grad_checkpoint",
    "training.num_epochs",
    "training.max_steps",
    "training.max_training_time_hours",
    *options.RUNTIME,
    "runtime.workers",
)
@click.option("--memory", metavar="SIZE", help="Plan for a machine with this much memory, for example 16GB.")
def main(memory: str | None, **values: Any) -> None:
    """Say what memory and time a run takes, whether it fits, and what to change if not.

    Exits with 1 if it does not fit.
    """
    from mlxmath.backends.select import open_backend
    from mlxmath.files import read_json
    from mlxmath.weights.hub import fetch

    resolved: Resolved = options.settings(values)
    config = resolved.config
    _, device = open_backend(config.runtime, seed=0)
    if memory is not None:
        device = replace(device, memory_bytes=parse_size(memory))
    source = fetch(config.model.model, config.model.revision, config_only=True)
    model_config = read_json(source.folder / "config.json")
    lines, fits = describe(config, model_config, device)
    click.echo(source.name)
    for line in lines:
        click.echo(line)
    if fits:
        return
    for change, total in remedies(config, model_config, device, config.data.max_seq_len):
        verdict = "fits" if total <= device.memory_bytes else "still too much"
        click.echo(f"  with {change}: {size(total)} ({verdict})")
    raise SystemExit(1)


def describe(config: "RunConfig", model_config: Mapping[str, Any], device: "DeviceInfo") -> tuple[list[str], bool]:
    """What a run takes, in memory and in time, a line a fact; and whether it fits."""
    plan, batching = planned(config, model_config, device, config.data.max_seq_len)
    lines = [
        f"{batching.num_workers} x {batching.tokens:,} tokens at once, rows of up to {config.data.max_seq_len:,}",
        *table(plan),
        *time_lines(config, model_config, device),
    ]
    memory = device.memory_bytes
    if plan.total <= memory:
        return [*lines, f"fits: {size(memory - plan.total)} of {size(memory)} are left"], True
    return [*lines, f"does not fit into {size(memory)}"], False


def planned(
    config: "RunConfig", model_config: Mapping[str, Any], device: "DeviceInfo", longest: int
) -> tuple["MemoryPlan", "Batching"]:
    """The plan, and the micro-batches that it is for."""
    from mlxmath.models.memory import ModelShape, choose_batching, plan_memory

    shape = ModelShape.from_config(model_config)
    if stored := model_config.get("quantization"):
        quantized = {"quantize": stored["bits"], "group_size": stored["group_size"]}
        config = config.model_copy(update={"model": config.model.model_copy(update=quantized)})
    batching = choose_batching(model_config, config, device, longest)
    itemsize = 4 if device.compute_dtype == "float32" else 2
    return plan_memory(shape, config, itemsize=itemsize, batching=batching, longest=longest), batching


def time_lines(config: "RunConfig", model_config: Mapping[str, Any], device: "DeviceInfo") -> list[str]:
    """How fast the run will be, and how long it takes at most, by a short measurement of this device."""
    from mlxmath.models.memory import ModelShape
    from mlxmath.models.speed import tokens_per_s

    rate = tokens_per_s(ModelShape.from_config(model_config), config, device)
    training, longest = config.training, config.data.max_seq_len
    rows_a_step = training.batch_size * training.grad_accumulation_steps
    limits = [config.data.num_examples * training.num_epochs] if config.data.num_examples else []
    limits += [training.max_steps * rows_a_step] if training.max_steps else []
    lines = [f"about {rate:,.0f} tokens/s on this {device.backend} (if the model is in memory)"]
    hours = training.max_training_time_hours
    if limits:
        seconds = min(limits) * longest / rate
        lines.append(
            f"{min(limits):,} rows of at most {longest:,} tokens take at most {duration(seconds)}"
            + (f"; --max-training-time-hours {hours:g} ends the run before" if seconds > hours * 3600 else "")
        )
    else:
        lines.append(
            f"an optimizer step of {rows_a_step} rows takes at most {duration(rows_a_step * longest / rate)}; in "
            f"{hours:g} hours (--max-training-time-hours) {rate * hours * 3600 / 1e6:,.1f} million tokens are trained"
        )
    return lines


def remedies(
    config: "RunConfig", model_config: Mapping[str, Any], device: "DeviceInfo", longest: int
) -> list[tuple[str, int]]:
    """Settings that would take less memory, with the bytes that the run would take then, until one fits."""
    changes: list[tuple[str, str, dict[str, Any], int]] = [
        ("--grad-checkpoint 1", "training", {"grad_checkpoint": 1}, longest),
        ("--quantize 8", "model", {"quantize": 8}, longest),
        ("--quantize 4", "model", {"quantize": 4}, longest),
        (f"--max-seq-len {longest // 2}", "data", {"max_seq_len": longest // 2}, longest // 2),
    ]
    found = []
    current, name, length = config, "", longest
    for option, section, values, length_then in changes:
        if getattr(current, section).model_dump().items() >= values.items():
            continue
        current = current.model_copy(update={section: getattr(current, section).model_copy(update=values)})
        name, length = f"{name} {option}".strip().replace("--quantize 8 --quantize 4", "--quantize 4"), length_then
        total = planned(current, model_config, device, length)[0].total
        found.append((name, total))
        if total <= device.memory_bytes:
            break
    return found


def table(plan: "MemoryPlan") -> list[str]:
    """A line for each purpose."""
    rows = {
        "weights": plan.weights,
        "adapters and sums of gradients": plan.adapters,
        "optimizer": plan.optimizer,
        "activations, then gradients": plan.activations,
        "block or head at hand": plan.working,
        "in all": plan.total,
    }
    return [f"  {name:30}{size(number):>12}" for name, number in rows.items()]


def parse_size(text: str) -> int:
    """`16GB` as bytes (decimal units).

    Raises:
        InputError: it is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?b)?\s*", text.lower())
    if not match or not float(match[1]):
        raise InputError(f"--memory: expected a size such as 16GB, found {text!r}")
    return int(float(match[1]) * _UNITS[match[2] or ""] if match[2] != "b" else float(match[1]))


def check_fits(
    config: "RunConfig", model_folder: Path, model_config: Mapping[str, Any], device: "DeviceInfo", longest: int
) -> int | None:
    """The bytes that a run takes, as planned; None for a model whose sizes have other names.

    Raises:
        InputError: they exceed the device's memory and `--allow-overcommit` was not given.
    """
    from mlxmath.errors import MlxmathError

    try:
        plan, _ = planned(config, model_config, device, longest)
    except MlxmathError:
        return None
    if plan.total <= device.memory_bytes or config.runtime.allow_overcommit:
        return plan.total
    hints = [f"{change} ({size(total)})" for change, total in remedies(config, model_config, device, longest)]
    raise InputError(
        f"training {model_folder} takes about {size(plan.total)}, this device has {size(device.memory_bytes)}. Try "
        f"{', or '.join(hints)}; --allow-overcommit starts it all the same."
    )


if __name__ == "__main__":
    main(prog_name="python -m mlxmath.plan")
