"""`python -m mlxmath.demo`: the main job on the bundled model, offline, ending in a figure that shows it got better.

Fine-tunes on the bundled training problems, then asks the base and the tuned model the 200 test problems.
"""

import json
from pathlib import Path
from typing import Any

import click

from mlxmath import options
from mlxmath.config.schema import DEMO
from mlxmath.console import duration, say
from mlxmath.errors import MlxmathError

TEST_PROBLEMS = Path(__file__).parent / "problems" / "test.jsonl"
MAX_NEW_TOKENS = 120


@options.command("demo")
@options.setting_options("model.mlx_path", "data.cache_dir", "training.adapter_path", *options.RUNTIME)
def main(**values: Any) -> None:
    """Fine-tune the bundled model and compare it with its base on 200 unseen problems."""
    from mlxmath.train import train

    resolved = options.settings(values | {"recipe": DEMO})
    if exit_code := train(resolved):
        raise SystemExit(exit_code)
    config = resolved.config
    problems = [json.loads(line) for line in TEST_PROBLEMS.read_text(encoding="utf-8").splitlines()]
    base = _answers(resolved, problems, adapter=None)
    tuned = _answers(resolved, problems, adapter=Path(config.training.adapter_path))

    from mlxmath.grading import grade

    right = {
        name: [grade(text, problem["answer"]).correct for text, problem in zip(texts, problems, strict=True)]
        for name, texts in (("base", base), ("tuned", tuned))
    }
    fixed = [i for i in range(len(problems)) if right["tuned"][i] and not right["base"][i]]
    if not fixed:
        raise MlxmathError("the tuned model answers no problem that the base does not; the demo has failed.")
    shown = fixed[0]
    for title, text in (
        ("a test problem", problems[shown]["problem"]),
        (f"the base answers (right: {problems[shown]['answer']})", base[shown]),
        ("the tuned model answers", tuned[shown]),
    ):
        click.echo(f"\n{title}:\n    " + text.strip().replace("\n", "\n    "))
    question = 'python -m mlxmath.infer --prompt "What is 12 + 7?"'
    serve = f"mlx_lm.server --model {config.model.mlx_path} --adapter-path {config.training.adapter_path}"
    click.echo(f"\nwhat to type next:\n    {question}\n    {serve}\n")
    click.echo(f"exact answers to {len(problems)} problems that neither has seen:")
    for name, verdicts in right.items():
        click.echo(f"{name:5} {100 * sum(verdicts) / len(verdicts):5.1f} %")


def _answers(resolved: Any, problems: list[dict[str, str]], adapter: Path | None) -> list[str]:
    """Greedy answers to the problems, in the template of the training."""
    import time

    from tqdm import tqdm

    from mlxmath.backends.select import choose
    from mlxmath.data.render import encode_prompt
    from mlxmath.generation.engine import Sampling, generate_batch, load_generation_tokenizer
    from mlxmath.lora.adapter import load_adapter
    from mlxmath.models.load import load_model
    from mlxmath.problems.prompts import get_template

    config = resolved.config
    backend, _ = choose(config.runtime.backend)
    folder = Path(config.model.mlx_path)
    model = load_model(folder, backend.open(0).compute_dtype).model
    if adapter:
        load_adapter(model, adapter)
    tokenizer = load_generation_tokenizer(folder)
    template = get_template(config.data.template).for_tokenizer(tokenizer)
    prompts = [encode_prompt(tokenizer, template.prompt(problem["problem"])) for problem in problems]
    name = "tuned" if adapter else "base"
    start = time.perf_counter()
    with tqdm(total=len(prompts), desc=f"asking {name}", unit="problem", disable=None) as bar:
        completions = generate_batch(
            model, tokenizer, prompts, Sampling(MAX_NEW_TOKENS), on_done=lambda *_: bar.update()
        )
    say(f"asked {name} {len(prompts)} problems in {duration(time.perf_counter() - start)}")
    return [completion.text for completion in completions]


if __name__ == "__main__":
    main(prog_name="python -m mlxmath.demo")
