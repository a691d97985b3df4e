"""`mlxmath grpo`: reinforcement learning with graded answers; see `mlxmath.training.grpo.train`."""

from typing import Any

import click

from mlxmath.commands import options
from mlxmath.config.load import TRAINED_FROM, settings_from
from mlxmath.errors import InputError


@options.command("grpo", shared=True, long=True)
@click.option(
    "--reward", "rewards", multiple=True, metavar="NAME[=WEIGHT]",
    help="A reward that counts: correctness, format, tag_count, reasoning_steps, cosine_length, repetition, "
    "soft_overlong, faithfulness, doubt, model:FOLDER (a reward model), or your own MODULE:FUNCTION; may be repeated.",
)  # fmt: skip
@options.training_options("grpo")
def main(rewards: tuple[str, ...], **values: Any) -> None:
    """Improve an adapter by group-relative policy optimization (GRPO) on problems with known answers."""
    if rewards:
        values["reward_weights"] = dict(map(_weighted, rewards))
    sections = (*TRAINED_FROM, "grpo")
    settings = settings_from(sections, origin="option", **values)
    options.run_with_ranks("mlxmath.training.grpo.train", "grpo", settings, sections, options.try_it)


def _weighted(text: str) -> tuple[str, float]:
    name, separator, weight = text.partition("=")
    try:
        return name.strip(), float(weight) if separator else 1.0
    except ValueError:
        raise InputError(f"--reward {text}: expected NAME=WEIGHT with a number, found {weight!r}.") from None
