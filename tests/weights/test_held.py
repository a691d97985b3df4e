"""Commands without --model, beside a model folder that holds another one than the default."""

import json
from pathlib import Path

import pytest

from mlxmath.commands import dpo, plan, prepare, train
from mlxmath.config.load import settings_from
from mlxmath.config.schema import DEFAULT_MODEL, ModelConfig
from mlxmath.config.section import parse_toml
from mlxmath.studio.form import Draft, check
from mlxmath.studio.place import Studio
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.held import with_held_model
from mlxmath.weights.hub import DEMO_FOLDER
from tests.data.material import write_lines
from tests.helpers import invoke

SOURCE = str(DEMO_FOLDER)
"""As a folder, the bundled model is one like any other."""
SHORT = (
    "--dataset",
    "rows.jsonl",
    "--max-steps",
    "1",
    "--max-seq-len",
    "64",
    "--batch-size",
    "2",
    "--template",
    "plain",
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a quantized model and rows for every method."""
    monkeypatch.chdir(tmp_path)
    ensure_model(ModelConfig(model=SOURCE, dtype="float32", quantize=4, group_size=32))
    rows = [
        {"problem": f"What is {n} + 1?", "solution": f"It is {n + 1}.", "chosen": f"It is {n + 1}.", "rejected": "No."}
        for n in range(4)
    ]
    write_lines(tmp_path / "rows.jsonl", rows)
    return tmp_path


def test_an_adapter_goes_on_with_the_model_that_it_was_trained_on(place: Path) -> None:
    invoke(train.main, *SHORT, "--model", SOURCE, "--quantize", "4", "--group-size", "32")
    result = invoke(dpo.main, *SHORT, "--init-adapter", "adapters", "--adapter-path", "tuned")
    assert result.output.count("no --model is given: mlx_model holds") == 1 and DEFAULT_MODEL not in result.output
    for folder in ("adapters", "tuned"):
        record = json.loads(Path(folder, "run.json").read_text())["config"]["model"]
        assert {name: record[name] for name in ("model", "quantize", "group_size")} == {
            "model": SOURCE, "quantize": 4, "group_size": 32,
        }  # fmt: skip
        assert parse_toml(Path(folder, "run.toml").read_text())["model"]["model"] == SOURCE
    assert json.loads(Path("tuned/run.json").read_text())["config"]["model"]["dtype"] == "float32"
    invoke(dpo.main, "--config", "tuned/run.toml", "--adapter-path", "again")


def test_what_is_planned_prepared_and_shown_is_the_same_model(place: Path) -> None:
    for main, more in ((train.main, ("--dry-run",)), (plan.main, ())):
        result = invoke(main, "--max-seq-len", "64", *more)
        assert SOURCE in result.output and DEFAULT_MODEL not in result.output
    invoke(prepare.main, "--dataset", "rows.jsonl", "--template", "plain")
    checked = check(Studio(place), Draft("train", given={"training.init_adapter": "adapters"}))
    assert checked.base.config.model.model == "mlx_model" and "--model" not in checked.arguments
    assert not checked.wrong and not checked.taken


def test_a_model_that_is_asked_for_is_still_refused(place: Path) -> None:
    for arguments in (("--model", DEFAULT_MODEL), ("--set", f"model.model={DEFAULT_MODEL}"), ("--quantize", "8")):
        result = invoke(train.main, *SHORT, *arguments, code=2)
        assert "mlx_model holds" in result.output and "was asked for" in result.output
    assert "--model was asked" not in result.output


def test_the_demo_is_replaced_unless_adapters_go_on(tmp_path: Path) -> None:
    folder = str(tmp_path / "m")
    ensure_model(ModelConfig(model="demo", mlx_path=folder))
    for more, model in (({}, DEFAULT_MODEL), ({"resume": True}, "demo"), ({"init_adapter": "a"}, "demo")):
        assert with_held_model(settings_from(mlx_path=folder, **more)).config.model.model == model
