"""The recipes: listed, copied, resolved, trained in small as they are written, and every setting of theirs used."""

import json
import math
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

import mlxmath.weights.hub as hub
from mlxmath.commands import infer, recipes, train
from mlxmath.config.load import RECIPES, TRAINED_FROM, recipe_path, settings_from
from mlxmath.config.schema import RunConfig
from mlxmath.config.section import DEMO, Section
from mlxmath.errors import MlxmathError
from mlxmath.training import sft
from tests.data.material import write_lines
from tests.helpers import invoke
from tests.recipe_parts import PARTS, REPOSITORIES, write_model

USUAL = {"q_proj", "v_proj"}
ALL_SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
GRPO = "llama-3.2-3b-grpo"
DEMO_GRPO = "demo-grpo"
REINFORCED = (GRPO, DEMO_GRPO)
ABSENT = {
    "tinyllama-1.1b": "PrimeIntellect/NuminaMath-QwQ-CoT-5M",
    "deepseek-math-7b-base": "EleutherAI/hendrycks_math",
}
"""Recipes whose first source cannot be had in the test, so that its fall-back is used."""
SMALLER = {
    DEMO: ("--max-steps", "3", "--warmup-steps", "1"),
    "debug": ("--max-steps", "2"),
    "llama-3.2-3b-sft": ("--num-epochs", "2"),
}
"""What else is made small. (The others are by their data, and still long enough to get past their warm-up.)"""
REPEATED = ("deepseek-math-7b-base", "tinyllama-1.1b", DEMO)
Reads = set[tuple[str, str]]


def contents(name: str) -> dict[str, Any]:
    return tomllib.loads(recipe_path(name).read_text(encoding="utf-8"))


@pytest.fixture
def absent() -> set[str]:
    """Repositories that the stand-in for the hub does not have."""
    return set()


@pytest.fixture
def place(tmp_path: Path, absent: set[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, and a stand-in for the hub that holds rows with each dataset's real columns."""
    monkeypatch.chdir(tmp_path)
    real = datasets.load_dataset_builder

    def load(name: str, config_name: str | None = None, revision: str | None = None) -> Any:
        if name not in REPOSITORIES or name in absent:
            raise ConnectionError(name)
        folder = tmp_path / "hub" / name.replace("/", "_")
        if not folder.exists():
            folder.mkdir(parents=True)
            write_lines(folder / "train.jsonl", REPOSITORIES[name])
        builder = real(str(folder), cache_dir=str(tmp_path / "arrow"))
        builder.hash = "0" * 40
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    return tmp_path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Every (section's class, field) that is read by code that uses it.

    Printing, storing and comparing settings is no use: these modules do not count.
    """
    found: Reads = set()
    bystanders = {
        "mlxmath.config.load",
        "mlxmath.training.record",
        "mlxmath.models.lora.adapter",
    }
    plain = Section.__getattribute__

    def record(self: Section, name: str) -> Any:
        if name in type(self).model_fields:
            caller = sys._getframe(1)
            module = caller.f_globals["__name__"]
            if module.startswith("mlxmath.") and module not in bystanders and caller.f_code.co_name != "mixture":
                found.add((type(self).__name__, name))
        return plain(self, name)

    monkeypatch.setattr(Section, "__getattribute__", record)
    return found


def unread(recipe: dict[str, Any], reads: Reads) -> set[str]:
    """The settings of a recipe's file that nothing has read."""
    missing = set()
    for section, values in recipe.items():
        if section == "description":
            continue
        model = RunConfig.model_fields[section].annotation.__name__  # type: ignore[union-attr]
        for field, value in values.items():
            if field == "sources":
                keys = {key for source in value for key in source}
                missing |= {f"sources.{key}" for key in keys if ("SourceConfig", key) not in reads}
            elif (model if field != "dataset" else "SourceConfig", field) not in reads:
                missing.add(f"{section}.{field}")
    return missing


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def check_adapter(folder: Path, name: str, *, full: bool = False) -> None:
    """The adapter is the one that the recipe describes, and its losses are numbers."""
    recipe = settings_from(recipe=name).config
    config, record = json.loads((folder / "adapter_config.json").read_text()), record_of(folder)
    assert record["status"] == "finished" and record["steps"] > 0
    losses = [json.loads(line).get("loss") for line in (folder / "events.jsonl").read_text().splitlines()]
    assert all(math.isfinite(loss) for loss in losses if loss is not None)
    assert config["template"] == recipe.data.template
    assert config["fine_tune_type"] == ("full" if full else "lora")
    if not full:
        parameters = config["lora_parameters"]
        assert {key.rsplit(".", 1)[1] for key in parameters["keys"]} == set(recipe.lora.targets or USUAL)
        expected = (recipe.lora.rank, recipe.lora.alpha / recipe.lora.rank, recipe.lora.dropout)
        assert (parameters["rank"], parameters["scale"], parameters["dropout"]) == expected
    model = json.loads((Path("mlx_model") / "config.json").read_text())
    assert model.get("quantization", {}).get("bits") == recipe.model.quantize


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in REINFORCED])
def test_trains_in_small_uses_every_setting_and_repeats(name: str, place: Path, reads: Reads, absent: set[str]) -> None:
    absent |= {ABSENT[name]} if name in ABSENT else set()
    model = ("--model", str(write_model(place / "source", name))) if name in PARTS else ()
    result = invoke(train.main, "--recipe", name, *model, *SMALLER.get(name, ()))
    check_adapter(place / "adapters", name)
    assert f"recipe {name}" in result.output
    assert ("cannot be had" in result.output) == (name in ABSENT)
    assert not unread(contents(name), reads)
    assert {"grpo.beta", "grpo.epsilon"} <= unread(contents(GRPO), reads), "the check itself finds what is unread"

    template = settings_from(recipe=name).config.data.template
    answered = json.loads(invoke(infer.main, "--prompt", "1+1?", "--json", "--max-new-tokens", "2").stdout)
    assert answered["template"] == template

    if name not in REPEATED:
        return
    invoke(train.main, "--config", "adapters/run.toml", "--adapter-path", "again")
    first, second = place / "adapters", place / "again"
    assert record_of(second)["data"] == record_of(first)["data"]
    assert (second / "adapters.safetensors").read_bytes() == (first / "adapters.safetensors").read_bytes()
    texts = [(folder / "run.toml").read_text() for folder in (first, second)]
    assert texts[1] == texts[0].replace(f'"{first.resolve()}"', f'"{second.resolve()}"')


def test_base_recipe_trains_without_adapters(place: Path) -> None:
    model = str(write_model(place / "source", "deepseek-math-7b-base"))
    invoke(train.main, "--recipe", "deepseek-math-7b-base", "--model", model, "--full", "--max-steps", "1")
    check_adapter(place / "adapters", "deepseek-math-7b-base", full=True)


def test_reinforcement_starts_from_the_sft_adapter_and_is_not_trained_by_train(place: Path, reads: Reads) -> None:
    model = ("--model", str(write_model(place / "source", "llama-3.2-3b-sft")))
    refused = invoke(train.main, "--recipe", GRPO, *model, code=2)
    assert "the settings of [grpo] have no use in this run" in refused.output
    assert "use `mlxmath grpo`" in refused.output
    assert not (place / "mlx_model").exists()

    text = recipe_path(GRPO).read_text()
    own = place / "own.toml"
    own.write_text(text.partition("\n# Not published: TRL's defaults.\n[grpo]")[0])
    missing = invoke(train.main, "--config", "own.toml", *model, code=2)
    assert "--init-adapter: adapters holds no adapter" in missing.output
    invoke(train.main, "--recipe", "llama-3.2-3b-sft", *model, "--max-steps", "1")
    other = invoke(train.main, "--config", "own.toml", *model, "--lora-rank", "4", "--lora-alpha", "8", code=2)
    assert "--init-adapter: adapters does not fit this run: lora_parameters is" in other.output
    reads.clear()
    result = invoke(train.main, "--config", "own.toml", *model, "--max-steps", "1", "--learning-rate", "1e-12")
    assert "starting from the adapter in adapters" in result.output
    assert {name.split(".")[0] for name in unread(contents(GRPO), reads)} == {"grpo"}
    check_adapter(place / "adapters-grpo", GRPO)

    import numpy as np
    from safetensors.numpy import load_file

    before, after = (load_file(place / name / "adapters.safetensors") for name in ("adapters", "adapters-grpo"))
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, atol=1e-9)
    assert any(array.any() for name, array in before.items() if name.endswith("lora_b"))


LORA = ("lora.rank", "lora.alpha", "lora.dropout", "lora.targets")
RATES = ("training.learning_rate", "training.schedule", "training.warmup_steps", "training.warmup_ratio")
STEPS = ("weight_decay", "batch_size", "grad_accumulation_steps", "num_epochs", "grad_checkpoint")
ONCE = ("training.learning_rate", "grpo.num_generations", "grpo.max_completion_length", "grpo.epsilon", "grpo.beta")
PUBLISHED: list[tuple[str, tuple[str, ...], tuple[Any, ...]]] = [
    ("deepseek-math-7b", LORA, (8, 16, 0.0, USUAL)), ("deepseek-math-7b-base", LORA, (16, 32, 0.1, ALL_SEVEN)),
    ("r1-distill-qwen-1.5b", LORA, (16, 16, 0.0, ALL_SEVEN)), ("tinyllama-1.1b", LORA, (32, 64, 0.1, ALL_SEVEN)),
    ("mistral-7b", LORA, (32, 64, 0.1, ALL_SEVEN)), ("llama-3.2-3b-sft", LORA, (16, 32, 0.0, ALL_SEVEN)),
    (GRPO, LORA, (16, 32, 0.0, ALL_SEVEN)), (DEMO, LORA, (16, 16, 0.0, ALL_SEVEN)),
    ("deepseek-math-7b", RATES, (1e-5, "constant", 0, 0.0)),
    ("deepseek-math-7b-base", RATES, (1e-5, "constant", 500, 0.0)),
    ("r1-distill-qwen-1.5b", RATES, (1e-5, "cosine", 0, 0.1)), ("tinyllama-1.1b", RATES, (1e-4, "cosine", 0, 0.05)),
    ("mistral-7b", RATES, (1e-4, "cosine", 0, 0.05)),
    ("deepseek-math-7b", STEPS, (0.0, 1, 8, 1, 0)), ("deepseek-math-7b-base", STEPS, (0.0, 4, 4, 3, 0)),
    ("r1-distill-qwen-1.5b", STEPS, (0.01, 2, 8, 2, 1)), ("tinyllama-1.1b", STEPS, (0.05, 1, 8, 2, 1)),
    ("mistral-7b", STEPS, (0.05, 1, 8, 2, 1)),
    (GRPO, ONCE, (1e-6, 8, 512, 0.2, 0.0)), (GRPO, ("grpo.loss_type",), ("dapo",)),
    ("r1-distill-qwen-1.5b", ("optimizer", "data.max_seq_len", "data.template"), ("adamw8bit", 4096, "r1-think")),
    ("deepseek-math-7b", ("data.template",), ("tutor",)),
    ("deepseek-math-7b-base", ("data.template", "eval_every"), ("chain-of-thought", None)),  # at each epoch's end
    *(
        (name, ("model.model", "model.quantize"), model)
        for name, model in {
            "deepseek-math-7b": ("deepseek-ai/deepseek-math-7b-instruct", None),
            "deepseek-math-7b-base": ("deepseek-ai/deepseek-math-7b-base", None),
            "r1-distill-qwen-1.5b": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 4),
            "tinyllama-1.1b": ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 4),
            "mistral-7b": ("mistralai/Mistral-7B-v0.1", 4),
            "llama-3.2-3b-sft": ("meta-llama/Llama-3.2-3B-Instruct", None),
            GRPO: ("meta-llama/Llama-3.2-3B-Instruct", None),
            DEMO: (DEMO, None),
        }.items()
    ),
]  # fmt: skip
"""By hand, from the tables that publish them; a name without a section is of [training]."""


@pytest.mark.parametrize(("name", "settings", "expected"), PUBLISHED)
def test_published_values(name: str, settings: tuple[str, ...], expected: tuple[Any, ...]) -> None:
    config = settings_from(recipe=name).config
    names = [setting if "." in setting else f"training.{setting}" for setting in settings]
    found = [getattr(getattr(config, section), field) for section, field in (each.split(".") for each in names)]
    sets = [set(value or USUAL) if each == "lora.targets" else value for each, value in zip(names, found, strict=True)]
    assert tuple(sets) == expected


def test_published_mixtures() -> None:
    found = {name: settings_from(recipe=name).config for name in RECIPES}
    assert set(found) == {*PARTS, *REINFORCED, DEMO, "debug"}
    assert found["deepseek-math-7b-base"].training.validation_split
    mixtures = {name: [(s.dataset, s.count) for s in found[name].data.mixture] for name in RECIPES}
    assert mixtures["tinyllama-1.1b"] == [("numinamath-qwq", 5000), ("gsm8k", 3000), ("gsm-hard", 1000)]
    assert mixtures["mistral-7b"] == mixtures["tinyllama-1.1b"][:2]
    (magpie,) = found["r1-distill-qwen-1.5b"].data.mixture
    assert (magpie.dataset, magpie.balance, len(magpie.filters)) == ("magpie-reasoning-v2", "difficulty", 4)


def test_the_default_recipe_is_no_recipe() -> None:
    resolved = settings_from(recipe="deepseek-math-7b")
    assert resolved.config == RunConfig()
    assert resolved.origin["lora.rank"] == "recipe deepseek-math-7b"


@pytest.mark.parametrize("name", RECIPES)
def test_dry_run_shows_everything_and_starts_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def offline(model: str, revision: str | None = None, *, config_only: bool = False) -> Any:
        assert config_only
        raise MlxmathError(f"cannot download {model}")

    if name not in (DEMO, "debug"):
        monkeypatch.setattr(hub, "fetch", offline)
    lines = invoke(train.main, "--recipe", name, "--set", "training.seed=7", "--dry-run").stdout.splitlines()
    values = {line.split()[0]: line for line in lines if line.startswith("  ") and "." in line.split()[0]}
    resolved = settings_from(recipe=name)
    used = {line.split()[0] for line in resolved.lines((*TRAINED_FROM, *(["grpo"] if name in REINFORCED else [])))}
    assert used <= set(values)
    assert values["training.seed"].split() == ["training.seed", "7", "--set"]
    assert values["model.model"].split() == ["model.model", resolved.config.model.model, "recipe", name]
    if name in (DEMO, "debug"):
        assert any(line.split()[:2] == ["in", "all"] for line in lines) and lines[-1].startswith("fits: ")
    else:
        assert lines[-1] == f"memory plan: not available: cannot download {resolved.config.model.model}"
    assert list(tmp_path.iterdir()) == []


def test_dry_run_needs_nothing_but_config_json(place: Path) -> None:
    folder = write_model(place / "source", "mistral-7b")
    for file in folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    result = invoke(train.main, "--recipe", "mistral-7b", "--model", str(folder), "--dry-run")
    assert result.stdout.splitlines()[-1].startswith("fits: ")


def test_demo_trains_what_its_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlxmath.demo.__main__ import main

    seen = []
    monkeypatch.setattr(sft, "sft", lambda resolved: seen.append(resolved) or SimpleNamespace(exit_code=3))
    invoke(main, "--adapter-path", "elsewhere", "--results-path", "results", code=3)
    assert seen[0].config == settings_from(recipe=DEMO, adapter_path="elsewhere").config
    assert not seen[0].others(TRAINED_FROM), "training refuses settings that it has no use for"


def test_list_show_and_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = invoke(recipes.main).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert all(len(line.split()) > 5 and len(line) <= 130 for line in lines)
    name = "tinyllama-1.1b"
    written = recipe_path(name).read_text()
    assert invoke(recipes.main, "show", name).stdout == written
    invoke(recipes.main, "copy", name, "my.toml")
    assert Path("my.toml").read_text() == written
    assert settings_from(config="my.toml").config == settings_from(recipe=name).config
    refused = invoke(recipes.main, "copy", "mistral-7b", "my.toml", code=2)
    assert "my.toml exists" in refused.output and Path("my.toml").read_text() == written
    invoke(recipes.main, "copy", "mistral-7b", "my.toml", "--overwrite")
    assert Path("my.toml").read_text() == recipe_path("mistral-7b").read_text()
    assert "is a folder" in invoke(recipes.main, "copy", name, ".", code=2).output
    for command in (("show", "mistral"), ("copy", "mistral", "x.toml")):
        wrong = invoke(recipes.main, *command, code=2)
        assert "no recipe 'mistral'" in wrong.output and "did you mean 'mistral-7b'?" in wrong.output


def test_own_template_travels_with_the_adapter(place: Path) -> None:
    Path("mine.toml").write_text("prompt = '{question} => '\ncompletion = '[{answer}]'\n")
    arguments = ("--debug", "--template-file", "mine.toml", "--max-steps", "1")
    invoke(train.main, *arguments)
    Path("mine.toml").unlink()
    answered = json.loads(invoke(infer.main, "--prompt", "1+1?", "--json", "--max-new-tokens", "2").stdout)
    raw = ("--prompt", "1+1? => ", "--raw", "--json", "--max-new-tokens", "2")
    same = json.loads(invoke(infer.main, *raw).stdout)
    assert (answered["template"], answered["tokens"]) == ("mine", same["tokens"])
    assert answered["prompt_tokens"] == same["prompt_tokens"]
    assert "=> " in Path("adapters/chat_template.jinja").read_text()
