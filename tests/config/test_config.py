"""Layers of settings, and the options made from them."""

import pytest

from mlxmath.config.load import option_name, resolve
from mlxmath.config.schema import RunConfig
from mlxmath.errors import InputError
from mlxmath.options import DEBUG, settings


def test_later_layers_win_and_each_value_knows_its_origin() -> None:
    resolved = resolve([("--debug", {"lora.rank": 2, "data.dataset": "demo"}), ("option", {"lora.rank": 4})])
    assert resolved.config.lora.rank == 4
    assert resolved.config.data.dataset == "demo"
    assert resolved.config.lora.alpha == 16
    assert [resolved.origin[n] for n in ("lora.rank", "data.dataset", "lora.alpha")] == ["option", "--debug", "default"]
    line = next(line for line in resolved.lines(("lora",)) if "lora.rank" in line)
    assert line.split() == ["lora.rank", "4", "option"]


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"my\.toml: unknown setting 'lora\.rnak'; did you mean 'lora\.rank'\?"):
        resolve([("my.toml", {"lora.rnak": 4})])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lora.rank", 0, r"--lora-rank \(option\): .*greater than or equal to 1; found 0"),
        ("lora.dropout", 1.0, r"--lora-dropout \(option\): .*less than 1; found 1\.0"),
        ("lora.targets", " , ", r"--lora-targets \(option\): name at least one layer"),
        ("training.learning_rate", -1.0, "--learning-rate"),
        ("training.max_training_time_hours", 0.0, "--max-training-time-hours"),
        ("data.max_seq_len", 4, "--max-seq-len"),
        ("data.overflow", "wrap", "--overflow"),
    ],
)
def test_values_outside_their_limits_name_the_option(name: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve([("option", {name: value})])


def test_every_setting_describes_itself_and_debug_names_real_ones() -> None:
    names = set()
    for section, field in RunConfig.model_fields.items():
        for name, inner in field.annotation.model_fields.items():
            assert inner.description and inner.description.endswith("."), f"{section}.{name}"
            names.add(f"{section}.{name}")
    assert set(DEBUG) <= names
    assert len({option_name(name) for name in names}) == len(names)


def test_published_defaults() -> None:
    config = settings({}).config
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout, config.lora.targets) == (
        8, 16.0, 0.0, ("q_proj", "v_proj"),
    )  # fmt: skip
    training = config.training
    assert (training.learning_rate, training.batch_size, training.grad_accumulation_steps) == (1e-5, 1, 8)
    assert (training.num_epochs, training.max_training_time_hours, config.data.max_seq_len) == (1, 16.0, 1024)
    assert config.model.model == "deepseek-ai/deepseek-math-7b-instruct"
    assert config.data.dataset == "open-r1/OpenR1-Math-220k"
    assert (config.model.mlx_path, training.adapter_path, config.data.cache_dir) == ("mlx_model", "adapters", "cache")


def test_folders_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = settings({"model__mlx_path": "~/m", "training__adapter_path": "~/a", "data__cache_dir": "~/c"}).config
    assert (config.model.mlx_path, config.training.adapter_path, config.data.cache_dir) == (
        "/home/somebody/m", "/home/somebody/a", "/home/somebody/c",
    )  # fmt: skip
