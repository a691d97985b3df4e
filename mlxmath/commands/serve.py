"""`mlxmath serve`: an OpenAI-compatible server of the tuned model, its base and further adapters."""

from pathlib import Path
from typing import Any

import click

from mlxmath.commands import options
from mlxmath.config.load import settings_from
from mlxmath.config.offered import RUNTIME


@options.command("serve", long=True)
@options.configured
@options.setting_options("model.mlx_path", "training.adapter_path")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=PATH",
    help="Serve this adapter under this name; may be repeated. A request's `model` chooses, the first one answers a "
    "request without (unset: --adapter-path under its folder's name).",
)
@click.option("--no-adapter", is_flag=True, help="Serve the base model alone.")
@click.option("--template", help="Prompt template of all (unset: each adapter's own; a base's chat template).")
@click.option("--template-file", metavar="FILE", help="File with a prompt template of your own.")
@click.option(
    "--max-new-tokens", default=1024, show_default=True, help="Longest answer of a request without max_tokens."
)
@click.option("--temperature", default=0.0, show_default=True, help="Of a request that names none.")
@click.option("--top-p", default=1.0, show_default=True, help="Of a request that names none.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; any other than this machine's own opens the server to the network, without a password.",
)
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="URL",
    help="Web pages from there may ask too, for example http://localhost:3000; * allows all. May be repeated.",
)
@click.option(
    "--idle-minutes",
    type=click.FloatRange(0, 525_600, min_open=True),
    help="End after so many minutes without a request, so that the memory is free again (unset: never).",
)
@options.setting_options("training.seed", *RUNTIME)
def main(
    adapters: tuple[str, ...],
    no_adapter: bool,
    template: str | None,
    template_file: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    host: str,
    port: int,
    origins: tuple[str, ...],
    idle_minutes: float | None,
    **values: Any,
) -> None:
    """Serve a model to programs that speak OpenAI's protocol, by mlx_lm's engine.

    A client sends messages; they are put into the template that the adapter was trained in, and answered as by
    `infer`. A request's `model` is the name of an adapter, or "base"; /v1/models lists them. Ctrl-C ends. A line of
    JSON on standard output tells the address, once it answers.
    """
    config = settings_from(("model", "training", "runtime"), origin="option", **values).config

    from mlxmath.generation.sampling import Sampling
    from mlxmath.serving.names import adapters_by_name, template_of_all

    named = adapters_by_name(adapters, Path(config.training.adapter_path), base_only=no_adapter)
    chosen = template_of_all(template, template_file)
    sampling = Sampling(max_new_tokens, temperature, top_p, config.training.seed)

    from mlxmath.runtime.device import open_backend

    _, device = open_backend(config.runtime, config.training.seed)

    from mlxmath.data.templates import get_template
    from mlxmath.generation.model import open_models
    from mlxmath.generation.placing import check_held_in_memory
    from mlxmath.runtime.listening import bound
    from mlxmath.serving.server import OPEN_TO_ALL, serve

    usual = get_template(config.data.template, config.data.template_file)
    folder = Path(config.model.mlx_path)
    check_held_in_memory(config.runtime, folder, device, "serve")
    with bound(host, port, OPEN_TO_ALL) as listener:
        models = open_models(folder, device.compute_dtype, named | {"base": None}, chosen, usual=usual)
        serve(models, listener, sampling, origins, cache_bytes=device.memory_bytes // 8, idle_minutes=idle_minutes)
