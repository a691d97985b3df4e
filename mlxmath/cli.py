"""`mlxmath <command>`: finds the command's module only when it is asked for, so that `--help` stays instant."""

import importlib

import click

from mlxmath import __version__
from mlxmath.errors import shortened

COMMANDS = {
    "convert": "Turn Hugging Face weights (.bin or safetensors) into an MLX model.",
    "recipes": "List the published set-ups, show one, or copy one to change it.",
    "plan": "Say whether a run fits this machine, before anything is downloaded.",
    "prepare": "Tokenize a dataset into the cache.",
    "distill": "Have a teacher write solutions, and keep the right and faithful ones as a dataset.",
    "train": "Fine-tune LoRA adapters.",
    "dpo": "Tune an adapter on pairs of a preferred and a rejected completion.",
    "reward-model": "Train a model that scores completions, on the same pairs; a reward for grpo.",
    "grpo": "Improve an adapter by reinforcement learning with graded answers.",
    "gkd": "Distil on-policy: a student draws, a teacher scores every token of it.",
    "pipeline": "Distil, fine-tune, improve by GRPO and compare, one stage after the other.",
    "sweep": "Train the runs that a file describes, halve them by held-out loss, compare them.",
    "evaluate": "Ask benchmarks, grade, compare the tuned model with its base, write a report.",
    "report": "Build an evaluation's report again from its samples.",
    "paper": "Write tables, figures and how to reproduce them, in LaTeX and Markdown, of runs and evaluations.",
    "export": "Write the tuned model for PEFT, mlx_lm, transformers, llama.cpp or Ollama, and check it.",
    "push": "Put an adapter or a model on the Hugging Face Hub, with a card of how it was made.",
    "doctor": "Check what this machine, or a cluster, has and lacks.",
    "infer": "Answer a prompt with the base model or the tuned one.",
    "chat": "Talk with the tuned model in the terminal, over several turns.",
    "studio": "Open a local page: watch runs, start them, compare answers, rate them.",
    "serve": "Serve the tuned model, its base and further adapters to programs (OpenAI's protocol).",
}


class LazyGroup(click.Group):
    """A group that lists its commands from a table and imports one when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names, in the order in which a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import `mlxmath.commands.<command>`, with `_` for `-`, and return its `main`."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"mlxmath.commands.{cmd_name.replace('-', '_')}").main
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; a very long name is not repeated whole."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(shortened(error.format_message()), error.ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="mlxmath")
def main() -> None:
    """Fine-tune language models for mathematics with MLX.

    `python -m mlxmath COMMAND` is the same as `mlxmath COMMAND`.
    """
