"""`mlxmath pipeline`: distil, fine-tune, reinforce, evaluate; each stage is the command of that name."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from mlxmath.commands import options
from mlxmath.config.load import TRAINED_FROM, Layer, Resolved, full_names, recipe_layer, resolve
from mlxmath.config.offered import RUNTIME, TEACHER
from mlxmath.config.section import read_toml
from mlxmath.errors import InputError, MlxmathError, OtherRunError
from mlxmath.runtime.console import duration, put, say
from mlxmath.runtime.locks import locked

T = TypeVar("T")

DEMO = Path(__file__).parents[1] / "config" / "pipelines" / "demo.toml"
STAGES = ("teacher", "distill", "train", "grpo", "evaluate")
_AFTER = {"teacher": "distilled", "train": "grpo", "grpo": "evaluation"}
"""What the stage after one makes."""
_MADE_BEFORE = {"data", "held-out rows", "initial adapter"}
"""What a stage has from the one before: it changes if that one goes on, as with answers that failed before."""
_USED = {"distill": ("data", "distillation"), "grpo": (*TRAINED_FROM, "grpo"), "evaluate": ("evaluation",)}


@options.command("pipeline", long=True)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--folder", default="two-stage", show_default=True, help="Folder for what the stages make.")
@options.setting_options(*TEACHER)
@click.option("--overwrite", is_flag=True, help="Start anew, whatever the folder holds.")
@options.setting_options(*RUNTIME)
def main(file: Path | None, folder: str, overwrite: bool, **values: Any) -> None:
    """Distil a teacher's solutions, fine-tune on them, go on with GRPO, and compare the stages.

    FILE has a table of settings for each stage ([teacher], [distill], [train], [grpo], [evaluate]) with a recipe to
    start from; without it, the bundled model and problems are used. [teacher] trains one first; it is left out where
    --teacher or --teacher-url is given. The same command again goes on where it was interrupted.
    """
    chosen = full_names(("distillation", "runtime"), values)
    pipeline(read_stages(file or DEMO), Path(folder).expanduser(), chosen, overwrite=overwrite)


def read_stages(path: Path) -> dict[str, list[Layer]]:
    """The settings of each stage: its recipe's, then the file's.

    Raises:
        InputError: the file cannot be read, a stage is missing, or something in it is no stage.
    """
    found: dict[str, list[Layer]] = {}
    for stage, table in read_toml(path, "FILE").items():
        if stage == "description":
            continue
        if stage not in STAGES or not isinstance(table, dict):
            raise InputError(f"{path}: {stage}: expected tables {', '.join(f'[{name}]' for name in STAGES)}.")
        recipe = table.pop("recipe", None)
        if wrong := [name for name, fields in table.items() if not isinstance(fields, dict)]:
            raise InputError(f"{path}: [{stage}] {wrong[0]}: expected SECTION.FIELD, for example lora.rank.")
        values = {f"{section}.{field}": value for section, fields in table.items() for field, value in fields.items()}
        found[stage] = [recipe_layer(recipe)] if recipe else []
        found[stage].append(Layer(f"{path.name} [{stage}]", values))
    if missing := [stage for stage in STAGES[1:] if stage not in found]:
        raise InputError(f"{path}: the table [{missing[0]}] is missing.")
    return found


def pipeline(
    stages: Mapping[str, Sequence[Layer]], folder: Path, chosen: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Run the stages, and print a table of what each achieved.

    Args:
        stages: settings of each, weakest first.
        folder: for what they make; they go on with what is there.
        chosen: settings that count more: who teaches, and the device.
        overwrite: remove what is there.

    Raises:
        InputError: a setting is wrong.
        MlxmathError: a stage failed, or none of the teacher's solutions is kept.
        SystemExit: a signal ended a stage, saved.
    """
    configs = configure(stages, folder, chosen, overwrite=overwrite)
    with locked(folder, "--folder", "mlxmath pipeline"):
        _run(configs, folder, overwrite=overwrite)


def _run(configs: Mapping[str, Resolved], folder: Path, *, overwrite: bool) -> None:
    """See `pipeline`; the folder is nobody else's meanwhile."""
    from mlxmath.distillation.distill import distill
    from mlxmath.evaluation.contestants import Contestant, equipped
    from mlxmath.evaluation.runner import evaluate
    from mlxmath.runtime.ranks import Ranks
    from mlxmath.training.events import TrainResult
    from mlxmath.training.grpo.train import grpo
    from mlxmath.training.record import set_aside, status_of
    from mlxmath.training.sft import sft

    took: dict[str, float] = {}

    def run(stage: str, command: Callable[[], T]) -> T:
        say(f"\n== {stage}")
        for line in configs[stage].lines(_USED.get(stage, (*TRAINED_FROM, "sft"))):
            if not line.endswith(" default"):
                say(line)
        start = time.monotonic()
        result = command()
        took[stage] = time.monotonic() - start
        gc.collect()  # this stage's model, before the next one's is loaded
        return result

    def train(stage: str, method: Callable[[Resolved], TrainResult]) -> None:
        settings, place = configs[stage], folder / stage
        if not overwrite and status_of(place) == "deadline" and (folder / _AFTER[stage]).exists():
            say(f"\n== {stage}: its time was up before; what it came to is used")
            return
        try:
            code = run(stage, lambda: method(settings).exit_code)
        except OtherRunError as error:
            if not error.names <= _MADE_BEFORE:
                raise
            say(f"{stage}: {' and '.join(sorted(error.names))} changed, since a stage before it went on; begun anew")
            set_aside(place)
            code = run(stage, lambda: method(settings).exit_code)
        if code:  # a signal, or no way to go on
            raise SystemExit(code)

    if "teacher" in configs:
        train("teacher", sft)
    made = run("distill", lambda: distill(configs["distill"].config, resume=True, overwrite=overwrite))
    for line in made.summary():
        say(line)
    if not made.num_kept:
        raise MlxmathError(f"none of the teacher's solutions is kept; {folder}/distilled/rejected.jsonl says why.")
    train("train", sft)
    train("grpo", grpo)
    model = Path(configs["grpo"].config.model.mlx_path)
    contestants = [
        Contestant("base", model),
        Contestant("distilled", model, folder / "train"),
        Contestant("distilled + GRPO", model, folder / "grpo", against="distilled"),
    ]
    config = configs["evaluate"].config
    contestants = equipped(contestants, config.evaluation, beside=False)
    try:
        results = run("evaluate", lambda: evaluate(config, contestants, Ranks(), resume=True, overwrite=overwrite))
    except OtherRunError as error:
        if error.names != {"contestants"}:
            raise
        say("evaluate: the models changed, since a stage before it went on; begun anew")
        results = run("evaluate", lambda: evaluate(config, contestants, Ranks(), overwrite=True))
    if results is not None:
        say("\n" + ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in took.items()))
        put((Path(results["folder"]) / "model_card.md").read_text(encoding="utf-8"))


def configure(
    stages: Mapping[str, Sequence[Layer]], folder: Path, chosen: Mapping[str, Any], *, overwrite: bool
) -> dict[str, Resolved]:
    """Each stage's settings, with what one makes given to the next. A teacher is trained only where none is named.

    Raises:
        InputError: there is no teacher, or a setting is wrong: of any stage, before the first one begins.
    """
    device = {name: value for name, value in chosen.items() if name.startswith("runtime.")}
    training = {**device, "training.resume": not overwrite, "model.overwrite": overwrite}
    wiring: dict[str, dict[str, Any]] = {
        "distill": {**chosen, "distillation.output_path": f"{folder}/distilled"},
        "train": {**training, "training.adapter_path": f"{folder}/train",
                  "data.dataset": f"{folder}/distilled/solutions.jsonl"},
        "grpo": {**training, "training.init_adapter": f"{folder}/train", "training.adapter_path": f"{folder}/grpo"},
        "evaluate": {**device, "evaluation.results_path": str(folder), "evaluation.run_name": "evaluation"},
    }  # fmt: skip
    layers = (chosen, *(layer.values for layer in stages["distill"]))
    named = any(name in values for name in TEACHER[:2] for values in layers)
    found = {}
    if "teacher" in stages and not named:
        values = training | {"training.adapter_path": f"{folder}/teacher"}
        found["teacher"] = resolve([*stages["teacher"], Layer("pipeline", values)])
        wiring["distill"]["distillation.teacher"] = f"{found['teacher'].config.model.mlx_path}:{folder}/teacher"
    elif not named:
        raise InputError("there is no teacher: give --teacher or --teacher-url, or a table [teacher] that trains one.")
    return found | {stage: resolve([*stages[stage], Layer("pipeline", values)]) for stage, values in wiring.items()}
