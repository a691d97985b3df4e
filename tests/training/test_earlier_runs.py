"""Runs of earlier versions, resumed: as they began, or refused by the name of what would change."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from mlxmath.config.load import resolve
from mlxmath.config.schema import DataConfig, RunConfig
from mlxmath.errors import InputError
from mlxmath.training.checkpoint import ENDS, Checkpoint, Position, check_settings, with_recorded_targets
from mlxmath.training.grpo.prompts import load_prompts
from mlxmath.training.record import fixed_settings

DEMO_MODEL = Path(__file__).parents[2] / "mlxmath" / "demo" / "model"


def checkpoint(**settings: object) -> Checkpoint:
    return Checkpoint(Path("step-1"), Position(), settings)


def test_targets_that_a_run_recorded_are_taken_where_none_are_asked_for() -> None:
    run = resolve([])
    assert run.config.lora.targets is None
    first = checkpoint(**{"lora.targets": ["q_proj", "v_proj"]})  # 0.1.0's default, as its state.json has it
    resumed = with_recorded_targets(run, first)
    assert resumed.config.lora.targets == ("q_proj", "v_proj")
    assert resumed.origin["lora.targets"] == "checkpoint"
    assert tomllib.loads(resumed.as_toml(("lora",), {}))["lora"]["targets"] == ["q_proj", "v_proj"]
    settings = fixed_settings(resumed.config, "m", "d")
    check_settings(checkpoint(**settings), settings)
    with pytest.raises(InputError, match=r"lora\.targets was \['q_proj', 'v_proj'\] and is None"):
        check_settings(checkpoint(**settings), fixed_settings(run.config, "m", "d"))
    for other in (None, checkpoint(), checkpoint(**{"lora.targets": None})):
        assert with_recorded_targets(run, other) is run
    asked = resolve([("option", {"lora.targets": "o_proj"})])
    assert with_recorded_targets(asked, first) is asked


def test_a_grpo_run_that_would_stop_at_more_tokens_is_refused_by_name(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"problem": "Tom has 3 pens and buys 5.", "answer": "8"}) + "\n")
    config = RunConfig(data=DataConfig(dataset=str(data), decontaminate=()))
    assert load_prompts(config, DEMO_MODEL).ends is None
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model)
    eos = json.loads((model / "config.json").read_text())["eos_token_id"]
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [eos, 9]}))
    ends = load_prompts(config, model).ends
    assert ends is not None and len(ends) == 1
    with pytest.raises(InputError, match=r"--resume: .*ends of an answer was .the end-of-text token and .* and is \["):
        check_settings(checkpoint(), {ENDS: ends})
    check_settings(checkpoint(), {ENDS: None})
    check_settings(checkpoint(**{ENDS: ends}), {ENDS: ends})


def test_a_setting_that_the_version_did_not_have_is_as_if_unset() -> None:
    earlier = checkpoint(**{"dpo.beta": 0.1})
    check_settings(
        earlier, {"dpo.beta": 0.1, "dpo.simpo_gamma": 0.5, "sft.label_smoothing": 0.0, "dpo.cpo_alpha": None}
    )
    with pytest.raises(InputError, match=r"sft\.label_smoothing was 0\.0 and is 0\.1"):
        check_settings(earlier, {"sft.label_smoothing": 0.1})
