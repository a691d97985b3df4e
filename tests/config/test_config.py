"""Layers of settings, files of them, and one clear error for everything that can be wrong in one."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from mlxmath.config.load import RECIPES, TRAINED_FROM, Layer, Resolved, in_keywords, resolve, settings_from
from mlxmath.config.schema import SETTINGS, RunConfig, keyword, option_name
from mlxmath.errors import InputError

MIXTURE = '[[data.sources]]\ndataset = "gsm8k"\ncount = 3\n\n[[data.sources]]\ndataset = "math"\n'


def options(**given: Any) -> Resolved:
    """As the command line asks for settings."""
    return settings_from(origin="option", **given)


def from_file(folder: Path, text: str, **more: Any) -> RunConfig:
    (folder / "my.toml").write_text(text, encoding="utf-8")
    return options(config=str(folder / "my.toml"), **more).config


def test_later_layers_win_and_each_value_knows_its_origin(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("[lora]\nrank = 3\nalpha = 5\ndropout = 0.25\n[training]\nnum_epochs = 2\nlearning_rate = 1e-3\n")
    assignments = ("lora.alpha=7", "lora.rank=4", "training.learning_rate=1e-2")
    resolved = options(recipe="demo", config=str(file), set=assignments, lora_rank=6, lora_variant=None)
    lora, training = resolved.config.lora, resolved.config.training
    expected = {
        "lora.rank": (lora.rank, 6, "option"),
        "lora.alpha": (lora.alpha, 7.0, "--set"),
        "training.learning_rate": (training.learning_rate, 1e-2, "--set"),
        "lora.dropout": (lora.dropout, 0.25, str(file)),
        "training.num_epochs": (training.num_epochs, 2, str(file)),
        "training.batch_size": (training.batch_size, 8, "recipe demo"),
        "lora.variant": (lora.variant, "lora", "default"),
    }
    for name, (found, value, origin) in expected.items():
        assert (found, resolved.origin[name]) == (value, origin), name
    line = next(line for line in resolved.lines(("lora",)) if "lora.rank" in line)
    assert line.split() == ["lora.rank", "6", "option"]


def test_debug_is_a_recipe() -> None:
    resolved = options(lora_rank=4, debug=True)
    assert (resolved.config.data.dataset, resolved.origin["data.dataset"]) == ("demo", "--debug")
    with pytest.raises(InputError, match="--debug is a recipe itself"):
        options(recipe="demo", debug=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[lora]\n\nrnak = 3", r"my\.toml, line 3: lora\.rnak: unknown setting; did you mean 'lora\.rank'\?$"),
        ("rank = 3", r"my\.toml, line 1: rank: unknown setting; did you mean 'lora\.rank'\?$"),
        ("[trainig]\nseed = 3", r"my\.toml, line 1: trainig: unknown setting"),
        ("lora.rank = '16'", r"line 1: lora\.rank: expected a whole number; found the text '16' \(numbers"),
        ("[training]\nlearning_rate = '1e-5'", r"line 2: .*expected a number; found the text '1e-5' \(numbers stand"),
        ("[training]\nmax_steps = 1.5", r"line 2: training\.max_steps: expected a whole number; found 1\.5"),
        ("[training]\nfull = 'yes'", r"line 2: training\.full: expected true or false; found the text 'yes'"),
        ("[training]\nfull = 1", r"line 2: training\.full: expected true or false; found 1"),
        ("[model]\nmodel = 7", r"line 2: model\.model: expected text in quotes; found 7"),
        ("[model]\nquantize = 7", r"line 2: model\.quantize: expected 2, 3, 4, .* from 2\.25 to 9, auto:4\.5; found 7"),
        ("[model]\nquantize = 'auto:1.5'", r"line 2: model\.quantize: expected .* from 2\.25 to 9,"),
        (
            "[model]\nquantize = 'nvfp4'\ngroup_size = 32",
            r"line 3: model\.group_size: belongs to --quantize 2 to 8; mxfp4",
        ),
        ("[training]\noptimizer = 'adamv'", r"expected 'adamw', .* found 'adamv'; did you mean 'adamw'\?"),
        ("[training]\nlearning_rate = inf", r"line 2: training\.learning_rate: expected a finite number; found inf"),
        ("[lora]\nrank = 0", r"line 2: lora\.rank: .*greater than or equal to 1; found 0"),
        ("lora = 3", r"line 1: lora: expected a table, \[lora\]; found 3"),
        ("[data]\nsources = 3", r"line 2: data\.sources: expected a list; found 3"),
        (MIXTURE + "cuont = 2", r"line 7: data\.sources\.1\.cuont: unknown; did you mean 'count'\?"),
        (MIXTURE + "count = 'all'", r"line 7: data\.sources\.1\.count: expected a whole number; found the text 'all'"),
        (MIXTURE + "count = 1\nweight = 2.0", r"line 8: data\.sources\.1\.weight: give a source a count or a weight"),
        ("[[data.sources]]\ncount = 2", r"line 1: data\.sources\.0\.dataset: is missing"),
        ("[data]\ndataset = 'x'\nsources = [{dataset = 'y'}]", r"line 2: data\.dataset: excludes data\.sources"),
        ("[data]\nsplit = 'x'\nsources = [{dataset = 'y'}]", r"line 2: data\.split: describes data\.dataset, but"),
        (
            "[data]\n\ntemplate = 'tutr'",
            r"my\.toml, line 3: data\.template: no template 'tutr'; .* did you mean 'tutor'",
        ),
        ("x = ", r"--config: .*my\.toml is not TOML: Invalid value"),
    ],
)
def test_errors_of_files_name_line_key_and_nearest_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_file(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--config: .*none\.toml does not exist; expected a TOML file"):
        options(config=str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match="--config: .* cannot be read: Is a directory"):
        options(config=str(tmp_path))
    (tmp_path / "latin.toml").write_bytes(b"[model]\nmodel = '\xe9'\n")
    with pytest.raises(InputError, match=r"latin\.toml is not TOML"):
        options(config=str(tmp_path / "latin.toml"))


@pytest.mark.parametrize(
    ("assignment", "name", "expected"),
    [
        ("lora.rank=16", "lora.rank", 16),
        (" training.learning_rate = 1e-5", "training.learning_rate", 1e-5),
        ("training.full=true", "training.full", True),
        ("lora.targets=q_proj,k_proj", "lora.targets", ("q_proj", "k_proj")),
        ('lora.targets=["q_proj"]', "lora.targets", ("q_proj",)),
        ("model.revision=2024", "model.revision", "2024"),
        ("model.model=a/b=c", "model.model", "a/b=c"),
        ('model.model="a b"', "model.model", "a b"),
        ("model.model=x\ny = 3", "model.model", "x\ny = 3"),
        ("data.filters=level <= 3; subject = x", "data.filters", ("level <= 3", "subject = x")),
        ("data.decontaminate=none", "data.decontaminate", ()),
    ],
)
def test_set(assignment: str, name: str, expected: object) -> None:
    section, field = name.split(".")
    resolved = options(set=(assignment,))
    assert getattr(getattr(resolved.config, section), field) == expected
    assert resolved.origin[name] == "--set"


def test_set_of_a_mixture_and_wrong_ones() -> None:
    (source,) = options(set=('data.sources=[{dataset="gsm8k", count=10}]',)).config.data.mixture
    assert (source.dataset, source.count) == ("gsm8k", 10)
    for assignment, message in (
        ("lora.rank", "--set: expected SECTION.FIELD=VALUE, for example lora.rank=16; found 'lora.rank'"),
        ("lora.rank=four", "--set lora.rank: expected a whole number; found the text 'four'"),
        ("lora.rnak=4", "--set lora.rnak: unknown setting; did you mean 'lora.rank'?"),
    ):
        with pytest.raises(InputError) as error:
            options(set=(assignment,))
        assert str(error.value) == message


def test_a_stronger_dataset_replaces_all_that_was_said_of_a_weaker_one(tmp_path: Path) -> None:
    own = from_file(tmp_path, "[data]\nsplit = 'test'\nfilters = ['a = b']", recipe="debug", dataset="mine.jsonl")
    assert (own.data.dataset, own.data.split, own.data.filters, own.data.num_examples) == ("mine.jsonl", None, (), 10)
    own = options(recipe="tinyllama-1.1b", dataset="mine.jsonl").config
    assert [source.dataset for source in own.data.mixture] == ["mine.jsonl"]
    mixed = from_file(tmp_path, MIXTURE, recipe="debug")
    assert [source.dataset for source in mixed.data.mixture] == ["gsm8k", "math"]
    with pytest.raises(InputError, match=r"--split \(option\): describes .* \(recipe tinyllama-1.1b\)"):
        options(recipe="tinyllama-1.1b", split="test")
    other = options(set=("model.revision=abc",), model="other/model").config.model
    assert other.revision is None


def test_a_stronger_alternative_replaces_a_weaker_one() -> None:
    training = options(recipe="mistral-7b", warmup_steps=9).config.training
    assert (training.warmup_steps, training.warmup_ratio) == (9, 0.0)
    for none in ({"warmup_steps": 0}, {"set": ("training.warmup_steps=0",)}):
        training = options(recipe="llama-3.2-3b-sft", **none).config.training
        assert (training.warmup_steps, training.warmup_ratio) == (0, 0.0)
    held_out = {"validation_dataset": "demo"}
    assert options(recipe="deepseek-math-7b-base", **held_out).config.training.validation_split is None


@pytest.mark.parametrize("name", RECIPES)
def test_the_stored_file_gives_the_same_settings_again(name: str, tmp_path: Path) -> None:
    changed = {"resume": True, "overwrite": True, "seed": 5, "cache_dir": 'c"ä\\'}
    first = options(recipe=name, **changed)
    text = first.as_toml(TRAINED_FROM, {"model.revision": "abc"})
    again = from_file(tmp_path, text)
    for section in TRAINED_FROM:
        expected = getattr(first.config, section).model_dump()
        for field, value in (("model.overwrite", False), ("training.resume", False), ("model.revision", "abc")):
            if field.split(".")[0] == section:
                expected[field.split(".")[1]] = value
        assert getattr(again, section).model_dump() == expected
    assert "resume" not in text and "overwrite" not in tomllib.loads(text)["model"]


def test_what_toml_cannot_say_is_the_default() -> None:
    """A value that is None is left out of the stored file, so None must be what its absence means."""
    for section in RunConfig.model_fields.values():
        for name, field in section.annotation.model_fields.items():  # type: ignore[union-attr]
            assert type(None) not in getattr(field.annotation, "__args__", ()) or field.default is None, name


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
        resolve([Layer("option", {name: value})])


def test_every_setting_describes_itself_and_has_its_own_option() -> None:
    for section, field in RunConfig.model_fields.items():
        for name, inner in field.annotation.model_fields.items():  # type: ignore[union-attr]
            assert inner.description and inner.description.endswith("."), f"{section}.{name}"
    methods = ("evaluation.", "sft.", "grpo.", "gkd.", "dpo.", "reward_model.", "distillation.")
    apart = {  # sections that no command takes together with this one's
        name: tuple(other for other in methods if other != name)
        + {"distillation.": ("training.",), "evaluation.": ("data.",)}.get(name, ())
        for name in methods
    }
    for others in apart.values():
        names = [name for name in SETTINGS if not name.startswith(others)]
        assert len({option_name(name) for name in names}) == len(names)
    assert not {keyword(name) for name in SETTINGS} & {"recipe", "config", "set", "debug", "origin"}


def test_published_defaults() -> None:
    config = options().config
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout, config.lora.targets) == (8, 16.0, 0.0, None)
    training = config.training
    assert (training.learning_rate, training.batch_size, training.grad_accumulation_steps) == (1e-5, 1, 8)
    assert (training.num_epochs, training.max_training_time_hours, config.data.max_seq_len) == (1, 16.0, 1024)
    assert config.model.model == "deepseek-ai/deepseek-math-7b-instruct"
    assert config.data.dataset == "open-r1/OpenR1-Math-220k"
    assert (config.model.mlx_path, training.adapter_path, config.data.cache_dir) == ("mlx_model", "adapters", "cache")


def test_folders_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = options(mlx_path="~/m", adapter_path="~/a", cache_dir="~/c").config
    assert (config.model.mlx_path, config.training.adapter_path, config.data.cache_dir) == (
        "/home/somebody/m", "/home/somebody/a", "/home/somebody/c",
    )  # fmt: skip


def test_arguments_are_the_options_with_underscores(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("[lora]\nrank = 3\nalpha = 5\n", encoding="utf-8")
    resolved = settings_from(
        (*TRAINED_FROM, "grpo"), recipe="demo-grpo", config=file, set=["lora.alpha=7"], lora_rank=16, mlx_path=tmp_path,
        lora_targets=("q_proj",), temperature=2, reward_weights={"format": 1.0}, max_steps=None,
    )  # fmt: skip
    config, origin = resolved.config, resolved.origin
    assert (config.lora.rank, config.lora.alpha, config.lora.targets) == (16, 7.0, ("q_proj",))
    assert (config.model.mlx_path, config.grpo.temperature) == (str(tmp_path), 2.0)
    assert (config.grpo.reward_weights, config.training.max_steps) == ({"format": 1.0}, 80)
    names = ("lora.rank", "lora.alpha", "training.max_steps", "data.split")
    assert [origin[name] for name in names] == ["argument", "set=", "recipe demo-grpo", "default"]
    typed = {"recipe": "demo", "lora_rank": 4, "lora_targets": "q_proj,k_proj", "filters": "a = b; c = d"}
    listed = typed | {"lora_targets": ["q_proj", "k_proj"], "filters": ("a = b", "c = d")}
    assert settings_from(**typed).config == options(**listed).config
    evaluation = settings_from(("model", "evaluation"), temperature=0.5).config
    assert (evaluation.evaluation.temperature, evaluation.grpo.temperature) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora_rnak": 4}, "lora_rnak=: unknown setting; did you mean 'lora_rank'?"),
        ({"rank": 4}, "rank=: unknown setting; did you mean 'lora_rank'?"),
        ({"num_generations": 4}, "num_generations=: unknown setting"),
        ({"learning_rate": "1e-4"}, "learning_rate= (argument): expected a number; found the text '1e-4' (numbers "),
        ({"lora_rank": 0}, "lora_rank= (argument): input should be greater than or equal to 1; found 0"),
        ({"max_steps": True}, "max_steps= (argument): expected a whole number; found True"),
        ({"learning_rate": float("inf")}, "learning_rate= (argument): expected a finite number; found inf"),
        ({"eval_every": 3}, "eval_every= (argument): needs validation_split= or validation_dataset=; found 3"),
        (
            {"sources": [{"dataset": "gsm8k", "cuont": 3}]},
            "sources.0.cuont= (argument): unknown; did you mean 'count'?",
        ),
        ({"template": "tutr"}, "template= (argument): no template 'tutr'; there are "),
        ({"recipe": "dmo"}, "recipe=: no recipe 'dmo'; there are "),
        ({"recipe": "demo", "debug": True}, "debug= is a recipe itself; give it or recipe=, not both."),
        ({"config": "none.toml"}, "config=: none.toml does not exist; expected a TOML file."),
        ({"set": ["lora.rank"]}, "set=: expected SECTION.FIELD=VALUE, for example lora.rank=16; found 'lora.rank'"),
    ],
)
def test_errors_of_arguments_name_the_argument(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        settings_from(**given)
    assert str(error.value).startswith(message) and "--" not in str(error.value)


def test_names_in_errors_are_of_the_door_that_was_used() -> None:
    text = "--lora-rank 3--4 of a--b: give '--seed' or (--max-steps), not -- or --2; `x --set`"
    assert in_keywords(text) == "lora_rank= 3--4 of a--b: give 'seed=' or (max_steps=), not -- or --2; `x --set`"
    with pytest.raises(InputError, match=r"^--warmup-ratio \(option\): give --warmup-steps or --warmup-ratio"):
        options(warmup_steps=3, warmup_ratio=0.5)
