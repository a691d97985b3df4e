"""`python -m mlxmath.demo`: the main job on the bundled model, offline, ending in a figure that shows it got better.

Fine-tunes on the bundled training problems, then asks the base and the tuned model the 200 test problems.
"""

from pathlib import Path
from typing import Any

import click

from mlxmath import options
from mlxmath.config.section import DEMO
from mlxmath.errors import MlxmathError


@options.command("demo")
@options.setting_options(
    "model.mlx_path", "data.cache_dir", "training.adapter_path", "evaluation.results_path", *options.RUNTIME
)
def main(**values: Any) -> None:
    """Fine-tune the bundled model and compare it with its base on 200 unseen problems."""
    from mlxmath.backends.ranks import Ranks
    from mlxmath.train import train

    config = options.settings(values | {"recipe": DEMO}).config
    asking = {name for name in values if name.startswith("evaluation__")}  # which training has no use for
    training = {name: value for name, value in values.items() if name not in asking}
    if exit_code := train(options.settings(training | {"recipe": DEMO}), Ranks()):
        raise SystemExit(exit_code)

    from mlxmath.evaluate import evaluate
    from mlxmath.evaluation.contestants import Contestant
    from mlxmath.evaluation.samples import read_samples

    model = Path(config.model.mlx_path)
    contestants = [Contestant("base", model), Contestant("tuned", model, Path(config.training.adapter_path))]
    found = evaluate(config, contestants, Ranks(), overwrite=True)
    assert found is not None
    fingerprints = {entry["label"]: entry["fingerprint"] for entry in found["settings"]["contestants"]}
    samples, _ = read_samples(Path(found["folder"]), fingerprints)
    fixed = found["comparisons"][0]["fixed_ids"]
    if not fixed:
        raise MlxmathError("the tuned model answers no problem that the base does not; the demo has failed.")
    base, tuned = (next(s for s in samples if s.id == fixed[0] and s.contestant == name) for name in fingerprints)
    for title, text in (
        ("a test problem", base.question),
        (f"the base answers (right: {base.gold})", base.response),
        ("the tuned model answers", tuned.response),
    ):
        click.echo(f"\n{title}:\n    " + text.strip().replace("\n", "\n    "))
    question = 'python -m mlxmath.infer --prompt "What is 12 + 7?"'
    serve = f"mlx_lm.server --model {config.model.mlx_path} --adapter-path {config.training.adapter_path}"
    click.echo(f"\nwhat to look at and to type next:\n    {found['folder']}/report.html\n    {question}\n    {serve}\n")
    click.echo(f"exact answers to {found['num_problems']} problems that neither has seen:")
    for name, figures in found["contestants"].items():
        click.echo(f"{name:5} {100 * figures['accuracy']['value']:5.1f} %")


if __name__ == "__main__":
    main(prog_name="python -m mlxmath.demo")
