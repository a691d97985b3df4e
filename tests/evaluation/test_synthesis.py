"""The model that reads what others answered."""

import json
from pathlib import Path

import pytest

from mlxmath.config.methods import EvaluationConfig
from mlxmath.errors import InputError
from mlxmath.evaluation.contestants import Contestant
from mlxmath.evaluation.synthesis import requests, synthesizer
from tests.evaluation.make import sample

RECORD = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": {"rank": 2, "scale": 2.0, "dropout": 0.0}}
VOTERS = (Contestant("one", Path("m"), Path("a"), tool="calculator"), Contestant("two", Path("m"), None))


def settings(**values: object) -> EvaluationConfig:
    return EvaluationConfig.model_validate({"vote": "synthesize", **values})


def test_the_first_member_reads_as_it_answered() -> None:
    found = synthesizer(settings(), VOTERS)
    assert (found.label, found.model, found.adapter, found.called) == ("ensemble", Path("m"), Path("a"), "calculator")


@pytest.mark.parametrize(
    ("tools", "called"), [(None, "calculator"), ("none", None), ("calculator", "calculator")]
)  # fmt: skip
def test_another_model_may_call_what_it_was_trained_to_call(
    tools: str | None, called: str | None, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(RECORD | {"tools": "calculator"}))
    found = synthesizer(settings(vote_model=f"other:{tmp_path}", tools=tools), VOTERS)
    assert (found.model, found.adapter, found.called) == (Path("other"), tmp_path, called)
    plain = synthesizer(settings(vote_model="other", tools=tools), VOTERS)
    assert (plain.adapter, plain.called) == (None, tools if tools != "none" else None)


def test_programs_are_not_run_for_a_spread_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(RECORD | {"tools": "python"}))
    with pytest.raises(InputError, match="programs are not run"):
        synthesizer(settings(vote_model=f"other:{tmp_path}"), VOTERS, spread=True)


def test_thoughts_are_left_out_also_where_they_did_not_end() -> None:
    texts = ["<think>\nfirst five, no", "<think>five</think>It is 6.", "seven</think>It is 7."]
    made = [sample("one", response=text, sample=number) for number, text in enumerate(texts)]
    (asked,) = requests(made, ["one"]).values()
    assert "think" not in asked and "five" not in asked and "seven" not in asked
    assert all(text in asked for text in ("3 attempts", "(no answer)", "It is 6.", "It is 7."))
