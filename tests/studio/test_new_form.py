"""The form of a new run stands for a command line: the very settings that the command would take from it."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from urllib.parse import parse_qsl

import click
import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from mlxmath.cli import main as cli
from mlxmath.commands import options
from mlxmath.config.load import Resolved, settings_from
from mlxmath.config.offered import TRAINS
from mlxmath.config.schema import SETTINGS, keyword, option_name
from mlxmath.config.section import Folder, plain_type
from mlxmath.studio import paths
from mlxmath.studio.fields import field_of, groups, recipes
from mlxmath.studio.form import COMMANDS, Draft, check, draft_of, query_of
from mlxmath.studio.place import Studio
from mlxmath.studio.preview import preparing, remedy, rows_request

TEXTS = {
    "model.model": ("demo", "org/name", "-odd"), "model.quantize": ("4", "auto:4.5", "mxfp4", "nonsense"),
    "data.dataset": ("demo", "gsm8k", "rows.jsonl"), "data.filters": ("level <= 3; length <= 4000", "-x = 1"),
    "data.template": ("tutor", "chat", "tuttor"), "data.decontaminate": ("none", "gsm8k, math500"),
    "lora.targets": ("q_proj,v_proj", "*_proj", "-a"), "training.judge": ("gsm8k:200", "demo", "gsm8k:"),
    "training.validation_dataset": ("demo", "org/name:test"), "gkd.teacher": ("org/teacher",),
    "data.split": ("train", "--split"), "grpo.reward_weights": ("correctness=1, format=0.2", "doubt", "x=y"),
}  # fmt: skip
REWARDS: dict[str, Any] = {"correctness=1, format=0.2": {"correctness": 1.0, "format": 0.2}, "doubt": {"doubt": 1.0}}
POOL = {int: ("1", "2", "8", "64", "0", "-3", "1.5", " 7 "), float: ("0.5", "0.1", "1e-4", "2", "-1", "nan", "x")}


@pytest.fixture
def as_typed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Resolved]:
    """The settings that a command line comes to, with the folder as the current one."""
    seen: list[Resolved] = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(options, "run_with_ranks", lambda module, method, settings, *_: seen.append(settings))

    def typed(arguments: list[str]) -> Resolved:
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        return seen.pop()

    return typed


def texts_of(name: str, chosen: random.Random) -> str:
    kind = plain_type(SETTINGS[name].annotation)
    if kind is bool:
        return chosen.choice(("yes", "no"))
    if get_origin(kind) is Literal:
        return str(chosen.choice(get_args(kind)))
    return chosen.choice(POOL.get(kind) or TEXTS.get(name) or ("a", "b c", "-d", "$(x)", "é"))


def drafts(command: str, count: int) -> Iterator[Draft]:
    chosen = random.Random(f"{command} 1")
    for _ in range(count):
        recipe = chosen.choice((None, *recipes(command)))
        names = chosen.sample(Draft(command).names, chosen.randint(0, 7))
        yield Draft(command, recipe, given={name: texts_of(name, chosen).strip() for name in names})


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_comes_to_the_settings_of_the_form(
    studio: Studio, as_typed: Callable[[list[str]], Resolved], command: str
) -> None:
    num_good = 0
    for draft in drafts(command, 60):
        checked = check(studio, draft)
        if checked.resolved is None or checked.wrong:
            assert checked.wrong or checked.trouble
            continue
        num_good += 1
        assert as_typed(checked.arguments).config == checked.resolved.config, checked.command_line
        whole = check_whole(studio, draft)
        assert whole == checked.resolved.config, checked.command_line
        again = check(studio, draft_of(dict(parse_qsl(query_of(command, checked.arguments[1:])))))
        assert again.arguments == checked.arguments
    assert num_good > 12


def check_whole(studio: Studio, draft: Draft) -> Any:
    """The settings as somebody would type them who repeats what the recipe says too."""
    values: dict[str, Any] = {}
    unset = []
    for name, text in draft.given.items():
        kind = plain_type(SETTINGS[name].annotation)
        if kind is bool and text == "no":
            unset.append(f"{name}=false")
        elif kind is bool:
            values[keyword(name)] = True
        else:
            is_choice = get_origin(kind) is Literal
            values[keyword(name)] = click.Choice(get_args(kind)).convert(text, None, None) if is_choice else (
                kind(text) if kind in (int, float) else REWARDS.get(text, text)
            )  # fmt: skip
    return settings_from(draft.sections, recipe=draft.recipe, set=unset, **values).config


def test_a_switch_that_a_recipe_turns_on_can_be_turned_off(
    studio: Studio, folder: Path, as_typed: Callable[[list[str]], Resolved]
) -> None:
    (folder / "before").mkdir()
    (folder / "before" / "run.toml").write_text("[lora]\nrslora = true\nrank = 4\n")
    draft = draft_of({"from": "before", "lora_rslora": "no", "lora_rank": "4", "lora_alpha": "8"})
    checked = check(studio, draft)
    assert checked.arguments == [
        "train", "--config", "before/run.toml", "--lora-alpha", "8", "--set", "lora.rslora=false",
    ] or checked.arguments == [
        "train", "--config", "before/run.toml", "--set", "lora.rslora=false", "--lora-alpha", "8",
    ]  # fmt: skip
    found = as_typed(checked.arguments).config.lora
    assert (found.rank, found.alpha, found.rslora) == (4, 8, False)


def test_values_that_begin_with_a_dash_are_no_options(studio: Studio) -> None:
    draft = Draft("train", given={"data.question_column": "--trust-remote-code", "lora.targets": "-x"})
    assert check(studio, draft).arguments == [
        "train", "--question-column=--trust-remote-code", "--lora-targets=-x",
    ]  # fmt: skip


def test_what_is_wrong_stands_beside_its_field_in_the_words_of_the_schema(studio: Studio) -> None:
    given = {"lora.rank": "0", "training.learning_rate": "abc", "data.template": "tuttor", "training.judge": "gsm8k:"}
    first = check(studio, Draft("train", given=given))
    assert set(first.wrong) == {"lora.rank", "training.learning_rate", "training.judge"}  # then the template
    assert first.wrong["lora.rank"] == "input should be greater than or equal to 1; found 0"
    assert "expected a number; found the text 'abc'" in first.wrong["training.learning_rate"]
    then = check(studio, Draft("train", given={"data.template": "tuttor"}))
    assert "did you mean 'tutor'?" in then.wrong["data.template"] and not then.is_good


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("training.adapter_path", "../out"), ("training.adapter_path", "/etc"), ("training.adapter_path", "~/out"),
        ("training.adapter_path", "link/out"), ("data.dataset", "../rows.jsonl"), ("data.dataset", "link"),
        ("data.dataset", "link/rows.jsonl"), ("data.dataset", "/etc/passwd.csv"), ("data.dataset", "~/rows.csv"),
        ("model.model", "../model"), ("model.model", "/models/x"), ("model.model", "link"),
        ("model.model", "ollama:../../x"), ("model.model", "lmstudio:a/b"), ("model.mlx_path", "a/../../b"),
        ("data.template_file", "/etc/hosts"), ("data.cache_dir", "../cache"), ("training.init_adapter", ".."),
        ("training.judge", "link/rows.jsonl:5"), ("training.judge", "x=/etc/rows.jsonl"),
        ("training.validation_dataset", "/etc/x.csv"), ("data.decontaminate", "gsm8k,/etc/x.jsonl"),
        ("model.model", "link:q4"),
    ],
)  # fmt: skip
def test_paths_that_lead_out_are_refused(studio: Studio, folder: Path, tmp_path: Path, name: str, value: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "rows.jsonl").write_text("{}\n")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    checked = check(studio, Draft("train", given={name: value}))
    assert "outside" in checked.wrong[name] and not checked.is_good


def test_the_teacher_of_a_distillation_lies_in_the_folder(studio: Studio) -> None:
    for teacher in ("../t", "/models/t:adapters", "models/t:/etc/x"):
        assert "outside" in check(studio, Draft("gkd", given={"gkd.teacher": teacher})).wrong["gkd.teacher"]
    assert not check(studio, Draft("gkd", given={"gkd.teacher": "models/t:adapters"})).wrong


def test_every_setting_that_is_a_path_is_known_to_be_one() -> None:
    validator = repr(get_args(Folder)[1].func)
    offered = {name for names in TRAINS.values() for name in names}
    found = {name for name in offered if validator in f"{SETTINGS[name]!r} {SETTINGS[name].annotation}"}
    assert found == set(paths.FOLDERS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[model]\ntrust_remote_code = true\n", "model.trust_remote_code"),
        ('[training]\nreport_to = ["wandb"]\n', "training.report_to"),
        ('[grpo]\nreward_weights = {"os:system" = 1.0}\n', "os:system"),
        ("[lora]\nrannk = 4\n", "rank"), ("[lora\n", "is not TOML"),
    ],
)  # fmt: skip
def test_a_file_that_would_run_code_or_is_none_starts_nothing(
    studio: Studio, folder: Path, text: str, told: str
) -> None:
    (folder / "before").mkdir()
    (folder / "before" / "run.toml").write_text(text)
    checked = check(studio, draft_of({"from": "before"}))
    assert told in checked.trouble and not checked.is_good


def test_what_is_offered_is_what_commands_have_but_for_what_reaches_out(studio: Studio) -> None:
    for command in COMMANDS:
        checked = check(studio, Draft(command))
        shown = [one.name for _, _, fields in groups(checked) for one in fields]
        assert len(shown) == len(set(shown))
        left_out = set(TRAINS[command]) - set(shown)
        assert left_out == {"training.resume", "training.report_to", "model.overwrite"}
        assert "model.trust_remote_code" not in shown


@pytest.mark.parametrize(("rewards", "told"), [("os:system=1", "would run code"), ("model:../x", "outside")])
def test_rewards_of_code_and_from_elsewhere_are_refused(studio: Studio, rewards: str, told: str) -> None:
    checked = check(studio, Draft("grpo", "demo", given={"grpo.reward_weights": rewards}))
    assert told in checked.wrong["grpo.reward_weights"] and not checked.is_good
    good = check(studio, Draft("grpo", "demo", given={"grpo.reward_weights": "correctness, model:reward=0.5"}))
    assert good.arguments[-4:] == ["--reward", "correctness", "--reward", "model:reward=0.5"]


def test_a_folder_with_another_model_is_not_written_over(studio: Studio, folder: Path) -> None:
    (folder / "mlx_model").mkdir()
    (folder / "mlx_model" / "mlxmath.json").write_text('{"source": "org/name"}')
    for model, taken in (("demo", True), ("org/name", False), ("mlx_model", False)):
        found = check(studio, Draft("train", given={"model.model": model})).taken
        assert found == ({"model.mlx_path": "mlx_model-2"} if taken else {}), model


def test_a_field_shows_what_counts_when_it_is_empty(studio: Studio) -> None:
    plain, demo = check(studio, Draft("train")), check(studio, Draft("train", "demo"))
    rank, other = field_of(plain, "lora.rank"), field_of(demo, "lora.rank")
    assert (rank.otherwise, rank.origin, other.otherwise, other.origin) == ("8", "", "16", "recipe demo")
    mixture = field_of(check(studio, Draft("train", "mistral-7b")), "data.dataset")
    assert mixture.otherwise == "numinamath-qwq, gsm8k" and mixture.origin == "recipe mistral-7b"
    assert field_of(plain, "training.full").otherwise == "no" and rank.option == option_name("lora.rank")


def test_a_folder_with_a_run_is_not_written_over_by_accident(studio: Studio, folder: Path) -> None:
    for name in ("adapters", "adapters-2"):
        (folder / name).mkdir()
        (folder / name / "run.json").write_text("{}")
    checked = check(studio, Draft("train", "demo"))
    assert checked.taken == {"training.adapter_path": "adapters-3"} and not checked.is_good
    other = check(studio, draft_of({"recipe": "demo", "use": "adapter_path=adapters-3"}))
    assert other.is_good and other.arguments[-2:] == ["--adapter-path", "adapters-3"]
    over = check(studio, draft_of({"recipe": "demo", "overwrite": "yes"}))
    assert over.is_good and "--overwrite" in over.arguments
    assert over.deleted == {"training.adapter_path": "adapters"} and not checked.deleted


def test_what_a_run_deletes_is_said_before_and_one_click_agrees_to_one_folder(
    folder: Path, studio: Studio, client: TestClient
) -> None:
    for name, text in {"adapters/run.json": "{}", "m/mlxmath.json": '{"source": "org/name"}'}.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(text)
    values = {"command": "train", "start": "recipe=demo", "mlx_path": "m"}
    both = client.post("/new", data=values).text
    assert "Use m-2" in both and "Use adapters-2" in both and "overwrite=yes" not in both
    over = values | {"overwrite": "yes"}
    seen = client.post("/new/check", data=over, headers={"HX-Request": "true"}).text
    for name in ("m", "adapters"):
        assert seen.count(f"{name} will be deleted at the start") == 2, name  # at the field, and by Start
    one = client.post("/new", data=values | {"adapter_path": "free"}).text
    assert one.count("overwrite=yes") == 1 and "will be deleted" not in one
    checked = check(studio, draft_of(over))
    assert checked.taken.keys() == checked.deleted.keys() == {"model.mlx_path", "training.adapter_path"}


HOSTILE = (
    "\x00", "a" * 5000, "../../x", "---", "=", "[", "{", "é" * 300, "~nobody/x", "~/x", "1e999", "9" * 400, "9" * 5000,
    "\\\\host\\share", "file:///etc/passwd", "%00", "a\nb", "$(touch x)", "'\"", "\ud800", "a:b:c", "x=y=z", ",", ";",
    "/" * 900,
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_is_typed_is_a_setting_or_told(studio: Studio, command: str) -> None:
    chosen = random.Random(command)
    for name in Draft(command).names:
        for value in chosen.sample(HOSTILE, 6):
            checked = check(studio, draft_of({"command": command, "recipe": "demo", keyword(name): value}))
            assert all("\0" not in argument for argument in checked.arguments) or not checked.is_good
            if checked.resolved is not None and not checked.wrong:
                assert rows_request(studio, checked)["folder"] and field_of(checked, name).option


def test_a_remedy_becomes_settings(studio: Studio) -> None:
    use = remedy("--grad-checkpoint 1 --quantize 4")
    draft = draft_of({"recipe": "demo", "grad_checkpoint": "0", "use": use})
    assert draft.given == {"training.grad_checkpoint": "1", "model.quantize": "4"}


def test_the_arguments_of_prepare_are_those_of_the_data(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"data.dataset": "gsm8k", "lora.rank": "4", "data.train_on_prompt": "yes", "training.full": "yes",
             "data.split": "-x", "model.model": "demo"}  # fmt: skip
    checked = check(studio, Draft("train", "mistral-7b", given=given))
    assert preparing(checked) == [
        "prepare", "--recipe", "mistral-7b", "--model", "demo", "--dataset", "gsm8k", "--split=-x", "--train-on-prompt",
    ]  # fmt: skip
    assert preparing(check(studio, Draft("dpo"))) is None
