"""`mlxmath infer`: answer a prompt with the tuned model, or with the base."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxmath.commands import options
from mlxmath.config.load import settings_from
from mlxmath.config.offered import RUNTIME
from mlxmath.config.schema import RunConfig
from mlxmath.errors import InputError
from mlxmath.runtime.console import put, say

if TYPE_CHECKING:
    from mlxmath.data.templates import Template
    from mlxmath.generation.model import Asked
    from mlxmath.models.lora.sharding import Sharding
    from mlxmath.runtime.ranks import Ranks


@options.command("infer", shared=True)
@click.option("--prompt", help="The problem to solve (unset: read from standard input).")
@options.configured
@options.setting_options("model.mlx_path", "training.adapter_path")
@click.option("--no-adapter", is_flag=True, help="Ask the base model.")
@click.option("--template", help="Prompt template (unset: the adapter's training one; a base's chat template).")
@click.option("--template-file", metavar="FILE", help="File with a prompt template of your own.")
@click.option("--raw", is_flag=True, help="Give the model the prompt as it is, without a template.")
@click.option(
    "--max-new-tokens",
    default=1024,
    show_default=True,
    help="Longest answer, in tokens: as `evaluate` allows for problems of a file.",
)
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    help="0 always takes the most likely token, as `evaluate` does; 0.7, for example, draws one.",
)
@click.option("--top-p", default=1.0, show_default=True, help="Keep the most likely tokens of this total probability.")
@click.option(
    "--tools",
    type=click.Choice(["calculator", "python", "none"]),
    help="What the answer may call (unset: what the adapter was trained with).",
)
@options.shard
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of streaming the text.")
@options.setting_options("training.seed", *RUNTIME, "runtime.offload")
def main(
    prompt: str | None,
    no_adapter: bool,
    template: str | None,
    template_file: str | None,
    raw: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    tools: "Asked",
    shard: "Sharding | None",
    as_json: bool,
    **values: Any,
) -> None:
    """Answer a prompt. The text goes to standard output, everything else to standard error."""
    resolved = settings_from(("model", "training", "runtime"), origin="option", **values)
    config = resolved.config
    if prompt is None:
        if sys.stdin.isatty():
            say("type the problem, then Ctrl-D:")
        prompt = sys.stdin.read().strip()
    if not prompt.strip():
        raise InputError("--prompt is empty; give a problem to solve.")
    if sum(map(bool, (raw, template, template_file))) > 1:
        raise InputError("--raw, --template and --template-file exclude each other; give one of them.")

    from mlxmath.runtime.ranks import join

    with join() as ranks:
        options.check_shard(shard, ranks.size)
        if ranks.size > 1 and not shard:
            raise InputError(
                f"one process answers a prompt, and there are {ranks.size}. Spread a model that is too large for one "
                "of them with --shard tensor or --shard pipeline, or start `mlxmath infer` without mlx.launch."
            )
        chosen = None
        if template or template_file:
            from mlxmath.data.templates import get_template

            chosen = get_template(template or "", template_file)
        answer(
            config, prompt, ranks, {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p},
            adapter=None if no_adapter else Path(config.training.adapter_path), template=chosen, raw=raw,
            sharding=shard, as_json=as_json, tool=tools,
        )  # fmt: skip


def answer(
    config: RunConfig, prompt: str, ranks: "Ranks", drawing: Mapping[str, Any], *, adapter: Path | None,
    template: "Template | None", raw: bool, sharding: "Sharding | None", as_json: bool,
    tool: "Asked" = None,
) -> None:  # fmt: skip
    """Load the model, answer, and print on rank 0.

    Args:
        config: model, device, seed.
        prompt: what is asked.
        ranks: the processes that hold the model together.
        drawing: fields of `Sampling`.
        adapter: its folder; None asks the base.
        template: None: the adapter's or the base's own.
        raw: ask without any.
        sharding: how the model is spread.
        as_json: print one object instead of the text as it comes.
        tool: that the answer may call (None: the adapter's).
    """
    from mlxmath.runtime.device import open_backend

    _, device = open_backend(config.runtime, config.training.seed, ranks.num_on_host)

    from mlxmath.data.templates import get_template
    from mlxmath.generation.engine import Completion, Sampling
    from mlxmath.generation.model import open_model
    from mlxmath.generation.placing import stays_on_disk
    from mlxmath.weights.manifest import read_fingerprint

    sampling = Sampling(**drawing, seed=config.training.seed)
    folder = Path(config.model.mlx_path)
    on_disk = stays_on_disk(config.runtime, folder, device, adapter, spread=sharding is not None)
    base, loaded = read_fingerprint(folder), None
    if sharding:
        import mlx.core as mx

        from mlxmath.models.lora.sharding import load_sharded

        spread, record = load_sharded(folder, device.compute_dtype, sharding, mx.distributed.init(), adapter, base)
        loaded = spread.model, record
    usual = get_template(config.data.template, config.data.template_file)
    opened = open_model(
        folder, device.compute_dtype, adapter, template, raw=raw, usual=usual, loaded=loaded, on_disk=on_disk,
        tool=tool,
    )  # fmt: skip
    used = opened.template.name if opened.template else None
    say(
        f"{f'{folder} with {adapter}' if adapter else f'base model {folder}'}; template {used or 'none (--raw)'}, "
        f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}, seed {sampling.seed}, at most "
        f"{sampling.max_new_tokens} tokens"
        + (f"; with {opened.tool}" if opened.tool else "")
        + (f"; spread over {ranks.size} processes by {sharding}" if sharding else "")
    )

    tokens = opened.encode(prompt)
    ranks.agree("question", {"model": base, "prompt": tokens, "sampling": asdict(sampling)})
    ranks.begin()
    start = time.perf_counter()
    completion: Completion | None = None
    for piece in opened.stream(prompt, sampling):
        if isinstance(piece, Completion):
            completion = piece
        elif ranks.first and not as_json:
            put(piece, end="")
    assert completion is not None
    seconds = time.perf_counter() - start
    if not ranks.first:
        return
    if as_json:
        result = {
            "prompt": prompt,
            "text": completion.text,
            "tokens": list(completion.tokens),
            "finish_reason": completion.finish_reason,
            "prompt_tokens": completion.num_prompt_tokens,
            "seconds": round(seconds, 4),
            "adapter": str(adapter) if adapter else None,
            "template": used,
            "tools": opened.tool,
        }
        put(json.dumps(result, ensure_ascii=False))
    else:
        put("")
    say(
        f"{len(completion.tokens)} tokens in {seconds:.1f}s ({len(completion.tokens) / seconds:.0f} tok/s), "
        f"ended by {completion.finish_reason}"
    )
