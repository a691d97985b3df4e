"""`mlxmath chat`: talk with the tuned model, or with the base."""

from pathlib import Path
from typing import Any

import click

from mlxmath.commands import options
from mlxmath.config.load import settings_from
from mlxmath.config.offered import RUNTIME
from mlxmath.errors import InputError
from mlxmath.runtime.console import say


@options.command("chat")
@options.configured
@options.setting_options("model.mlx_path", "training.adapter_path")
@click.option("--no-adapter", is_flag=True, help="Talk with the base model.")
@click.option("--template", help="Prompt template (unset: the adapter's training one; a base's chat template).")
@click.option("--template-file", metavar="FILE", help="File with a prompt template of your own.")
@click.option("--max-new-tokens", default=1024, show_default=True, help="Longest answer, in tokens.")
@click.option("--temperature", default=0.0, show_default=True, help="0 always takes the most likely token.")
@click.option("--top-p", default=1.0, show_default=True, help="Keep the most likely tokens of this total probability.")
@click.option("--no-history", is_flag=True, help="Do not keep what is typed (else in ~/.cache/mlxmath/chat_history).")
@options.setting_options("training.seed", *RUNTIME)
def main(
    no_adapter: bool,
    template: str | None,
    template_file: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    no_history: bool,
    **values: Any,
) -> None:
    """Talk with a model in the terminal, over several turns.

    Each question is put to the model in its training's template, as `infer` does. Formulas are shown as text that
    people can read. /base asks the untuned model the same; /help lists what else there is. Ctrl-C stops an answer,
    Ctrl-D ends. Questions may come through a pipe, one a line; answers then keep their LaTeX.
    """
    config = settings_from(("model", "training", "runtime"), origin="option", **values).config
    if template and template_file:
        raise InputError("--template and --template-file exclude each other; give one of them.")

    from mlxmath.runtime.device import open_backend

    _, device = open_backend(config.runtime, config.training.seed)

    from mlxmath.data.templates import get_template
    from mlxmath.generation.model import open_models
    from mlxmath.generation.placing import check_held_in_memory
    from mlxmath.generation.sampling import Sampling
    from mlxmath.serving.conversation import Conversation
    from mlxmath.serving.terminal import talk

    sampling = Sampling(max_new_tokens, temperature, top_p, config.training.seed)
    chosen = get_template(template or "", template_file) if template or template_file else None
    usual = get_template(config.data.template, config.data.template_file)
    folder, adapter = Path(config.model.mlx_path), None if no_adapter else Path(config.training.adapter_path)
    check_held_in_memory(config.runtime, folder, device, "chat")
    models = open_models(
        folder, device.compute_dtype, {"tuned": adapter, "base": None} if adapter else {"base": None}, chosen,
        usual=usual, tool=None,
    )  # fmt: skip
    model = models.get("tuned", models["base"])
    assert model.template is not None
    say(
        f"{f'{folder} with {adapter}' if adapter else f'base model {folder}'}; template {model.template.name}, "
        f"temperature {temperature:g}, at most {max_new_tokens} tokens; context "
        f"{f'{model.context:,} tokens' if model.context else 'unknown'}. /help lists commands, Ctrl-D ends."
    )
    talk(Conversation(model, sampling, models["base"] if adapter else None), remembers=not no_history)
