"""`python -m mlxmath.demo`: the main job on the bundled model, offline, ending in a figure that shows it got better.

Fine-tunes on the bundled training problems, then asks the base and the tuned model the 200 test problems: the base at
the prompt at which it does best, the tuned model in the template that it was trained with.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mlxmath.commands import options
from mlxmath.config.load import TRAINED_FROM, settings_from
from mlxmath.config.offered import RUNTIME
from mlxmath.config.section import DEMO
from mlxmath.errors import MlxmathError

BASE_TEMPLATE = "demo-base"


@options.command("demo")
@options.setting_options(
    "model.mlx_path", "data.cache_dir", "training.adapter_path", "evaluation.results_path", *RUNTIME
)
def main(**values: Any) -> None:
    """Fine-tune the bundled model and compare it with its base on 200 unseen problems."""
    from mlxmath.runtime.ranks import Ranks
    from mlxmath.training.sft import sft

    config = settings_from((*TRAINED_FROM, "evaluation"), recipe=DEMO, origin="option", **values).config
    del values["results_path"]  # which training has no use for
    if exit_code := sft(settings_from(recipe=DEMO, origin="option", **values)).exit_code:
        raise SystemExit(exit_code)

    from mlxmath.data.templates import get_template
    from mlxmath.evaluation.contestants import Contestant
    from mlxmath.evaluation.runner import evaluate
    from mlxmath.evaluation.samples import read_samples

    model = Path(config.model.mlx_path)
    contestants = [
        Contestant("base", model, template=get_template(BASE_TEMPLATE)),
        Contestant("tuned", model, Path(config.training.adapter_path)),
    ]
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
    serve = f"mlx_lm.server --model {config.model.mlx_path} --adapter-path {config.training.adapter_path}"
    ask = options.try_it(config).removeprefix("try: ")
    click.echo(f"\nwhat to look at and to type next:\n    {found['folder']}/report.html\n    {ask}\n    {serve}\n")
    click.echo(table(found))


def asked_in(template: str) -> str:
    """A named prompt template and where its answers are cut, on one line."""
    from mlxmath.data.templates import TEMPLATE_FOLDER, read_definition

    definition = read_definition(TEMPLATE_FOLDER / f"{template}.toml")
    stop = " or ".join(repr(text) for text in definition.stop or ())
    return f"{definition.prompt!r}" + (f" cut at {stop}" if stop else "")


def table(found: Mapping[str, Any]) -> str:
    """Right answers of base and tuned model by kind of problem, with 95 % intervals, and the gain."""
    from mlxmath.evaluation.wording import interval, percent, points

    def cells(figures: Mapping[str, Any]) -> str:
        return f"{percent(figures['value']):>8}  {interval(figures):13}"

    base, tuned = (found["contestants"][name] for name in ("base", "tuned"))
    lines = [
        f"exact answers to {found['num_problems']} problems that neither has seen, with 95 % intervals; "
        f"the base at the prompt that suits it best, {asked_in(BASE_TEMPLATE)}:",
        f"{'kind':14}{'problems':>8}   {'base':>8}  {'':13} {'tuned':>8}",
    ]
    for kind, before in base["by"]["subject"].items():
        lines.append(f"{kind:14}{before['total']:8}   {cells(before)} {cells(tuned['by']['subject'][kind])}".rstrip())
    lines.append(f"{'all':14}{found['num_problems']:8}   {cells(base['accuracy'])} {cells(tuned['accuracy'])}".rstrip())
    gain = found["comparisons"][0]
    low, high = points(gain["low"]), points(gain["high"])
    return "\n".join([*lines, f"gain: {points(gain['difference'])} points ({low} to {high})"])


if __name__ == "__main__":
    main(prog_name="python -m mlxmath.demo")
