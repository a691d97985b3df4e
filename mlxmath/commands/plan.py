"""`mlxmath plan`: what memory a run takes and whether it fits, before anything but config.json is downloaded."""

from typing import Any

import click

from mlxmath.commands import options
from mlxmath.config.load import TRAINED_FROM, settings_from
from mlxmath.config.offered import DATA, LORA, MODEL, RUNTIME
from mlxmath.errors import InputError
from mlxmath.runtime.console import put, size
from mlxmath.training.plan import OBJECTIVES, Objective, parse_size, plan_run


@options.command("plan")
@options.configured
@options.setting_options(
    *MODEL,
    *DATA,
    *LORA,
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
    "grpo.num_generations",
    "grpo.max_completion_length",
    "grpo.beta",
    "grpo.concurrency",
    "gkd.teacher",
    *RUNTIME,
    "runtime.workers",
    "runtime.offload",
)
@click.option("--memory", metavar="SIZE", help="Plan for a machine with this much memory, for example 16GB.")
@click.option(
    "--for", "objective", type=click.Choice(OBJECTIVES), default="train", show_default=True,
    help="Command to plan for.",
)  # fmt: skip
def main(memory: str | None, objective: Objective, **values: Any) -> None:
    """Say what memory and time a run takes, whether it fits, and what to change if not.

    Exits with 1 if it does not fit.
    """
    own = "gkd" if objective == "gkd" else "grpo"
    if own != "gkd" and values.pop("teacher") is not None:
        raise InputError(f"--teacher: {objective} has none; it is for --for gkd.")
    from mlxmath.weights.held import with_held_model

    config = with_held_model(settings_from((*TRAINED_FROM, own), origin="option", **values)).config
    found = plan_run(config, objective, None if memory is None else parse_size(memory))
    for line in (found.model, *found.lines):
        put(line)
    for change, total in found.remedies:
        verdict = "fits" if total <= found.device_bytes else "still too much"
        put(f"  with {change}: {size(total)} ({verdict})")
    if not found.fits:
        raise SystemExit(1)
