"""`mlxmath infer`: answer a prompt with the tuned model, or with the base."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from mlxmath import options
from mlxmath.console import say
from mlxmath.errors import InputError


@options.command("infer")
@click.option("--prompt", help="The problem to solve (unset: read from standard input).")
@options.configured
@options.setting_options("model.mlx_path", "training.adapter_path")
@click.option("--no-adapter", is_flag=True, help="Ask the base model.")
@click.option("--template", help="Prompt template (unset: the one the adapter was trained with).")
@click.option("--template-file", metavar="FILE", help="File with a prompt template of your own.")
@click.option("--raw", is_flag=True, help="Give the model the prompt as it is, without a template.")
@click.option("--max-new-tokens", default=128, show_default=True, help="Longest answer, in tokens.")
@click.option("--temperature", default=0.8, show_default=True, help="0 always takes the most likely token.")
@click.option("--top-p", default=1.0, show_default=True, help="Keep the most likely tokens of this total probability.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of streaming the text.")
@options.setting_options("training.seed", *options.RUNTIME)
def main(
    prompt: str | None,
    no_adapter: bool,
    template: str | None,
    template_file: str | None,
    raw: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    as_json: bool,
    **values: Any,
) -> None:
    """Answer a prompt. The text goes to standard output, everything else to standard error."""
    resolved = options.settings(values)
    config = resolved.config
    if prompt is None:
        if sys.stdin.isatty():
            say("type the problem, then Ctrl-D:")
        prompt = sys.stdin.read().strip()
    if not prompt.strip():
        raise InputError("--prompt is empty; give a problem to solve.")
    if sum(map(bool, (raw, template, template_file))) > 1:
        raise InputError("--raw, --template and --template-file exclude each other; give one of them.")

    from mlxmath.backends.select import open_backend

    _, device = open_backend(config.runtime, config.training.seed)

    from mlxmath.data.render import encode_prompt
    from mlxmath.generation.engine import Completion, Sampling, load_generation_tokenizer, stream
    from mlxmath.lora.adapter import CONFIG, load_adapter
    from mlxmath.models.load import load_model
    from mlxmath.problems.prompts import get_template, recorded_template
    from mlxmath.weights.manifest import read_fingerprint

    sampling = Sampling(max_new_tokens, temperature, top_p, config.training.seed)
    folder, adapter_folder = Path(config.model.mlx_path), Path(config.training.adapter_path)
    model = load_model(folder, device.compute_dtype).model
    record = {} if no_adapter else load_adapter(model, adapter_folder, read_fingerprint(folder))
    tokenizer = load_generation_tokenizer(folder)
    own = get_template(template or "", template_file) if template or template_file else None
    recorded = recorded_template(record, adapter_folder / CONFIG)
    chosen = own or recorded or get_template(config.data.template, config.data.template_file)
    chosen = chosen if raw else chosen.for_tokenizer(tokenizer)
    text = prompt if raw else chosen.prompt(prompt)
    if not raw and chosen.stop:
        tokenizer.add_eos_token(chosen.stop)
    who = f"base model {folder}" if no_adapter else f"{folder} with {adapter_folder}"
    say(
        f"{who}; template {'none (--raw)' if raw else chosen.name}, temperature {temperature:g}, top-p {top_p:g}, "
        f"seed {config.training.seed}, at most {max_new_tokens} tokens"
    )

    start = time.perf_counter()
    completion: Completion | None = None
    for piece in stream(model, tokenizer, encode_prompt(tokenizer, text), sampling):
        if isinstance(piece, Completion):
            completion = piece
        elif not as_json:
            click.echo(piece, nl=False)
    assert completion is not None
    seconds = time.perf_counter() - start
    if as_json:
        result = {
            "prompt": prompt,
            "text": completion.text,
            "tokens": list(completion.tokens),
            "finish_reason": completion.finish_reason,
            "prompt_tokens": completion.num_prompt_tokens,
            "seconds": round(seconds, 4),
            "adapter": None if no_adapter else str(adapter_folder),
            "template": None if raw else chosen.name,
        }
        click.echo(json.dumps(result, ensure_ascii=False))
    else:
        click.echo()
    say(
        f"{len(completion.tokens)} tokens in {seconds:.1f}s ({len(completion.tokens) / seconds:.0f} tok/s), "
        f"ended by {completion.finish_reason}"
    )


if __name__ == "__main__":
    main(prog_name="python -m mlxmath.infer")
