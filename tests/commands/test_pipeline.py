"""`pipeline`: the stages follow each other, each on what the one before made, and go on where they were."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file

import mlxmath
import mlxmath.training.grpo.train
from mlxmath.commands.pipeline import DEMO, configure, read_stages
from mlxmath.config.schema import RunConfig
from mlxmath.errors import InputError
from mlxmath.runtime.sealed import sealed_json, unsealed_json
from tests.data.material import write_lines
from tests.distillation.scripted import completion, scripted, solution, sum_of
from tests.helpers import json_lines, run, succeed

FILE = """
[distill]
data.dataset = "problems.jsonl"
data.decontaminate = []
distillation.samples = 1

[train]
recipe = "debug"
model.model = "base"
lora.rank = 16
lora.targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
training.max_steps = 2

[grpo]
recipe = "demo-grpo"
model.model = "base"
data.num_examples = 4
training.batch_size = 8
training.grad_accumulation_steps = 1
training.max_steps = 1
grpo.max_completion_length = 24
grpo.num_generations = 4
grpo.reward_weights = { cosine_length = 1.0, repetition = 1.0 }

[evaluate]
evaluation.benchmark = ["problems.jsonl"]
evaluation.limit = 3
evaluation.max_tokens = 8
evaluation.retrieve = "bundled"
evaluation.tools = "calculator"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    rows = [{"problem": f"What is {i} + {i + 1}?", "answer": str(2 * i + 1)} for i in range(6)]
    write_lines(tmp_path / "problems.jsonl", rows)
    (tmp_path / "stages.toml").write_text(FILE)
    shutil.copytree(Path(mlxmath.__file__).parent / "demo" / "model", tmp_path / "base")  # a name of its own
    return tmp_path


def answer(request: object, body: dict, attempt: int) -> None:
    a, b = sum_of(body)
    request.reply(completion(solution(a, b + (a == 5))))  # type: ignore[attr-defined]


def test_every_stage_is_on_what_the_one_before_made_and_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place / "two-stage"
    with scripted(answer) as server:
        command = ("stages.toml", "--teacher-url", server.url, "--teacher-model", "m")
        with monkeypatch.context() as stopped:
            stopped.setattr(mlxmath.training.grpo.train, "grpo", lambda settings: SimpleNamespace(exit_code=143))
            assert run(place, "pipeline", *command).returncode == 143
        assert {path.name for path in folder.iterdir()} == {"distilled", "train"}
        tuned = (folder / "train" / "adapters.safetensors").read_bytes()
        for path in (folder / "train" / "checkpoints").rglob("optimizer.safetensors"):
            path.write_bytes(b"damaged")
        result = succeed(place, "pipeline", *command)
        assert f"{folder.name}/train holds no whole checkpoint; starting from the beginning" in result.stderr
        assert sum(server.seen.values()) == 6  # each problem once, over both runs
        assert (folder / "train" / "adapters.safetensors").read_bytes() == tuned
        finished = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
        succeed(place, "pipeline", *command)
        assert {path: path.read_bytes() for path in finished} == finished

    solutions = json_lines(folder / "distilled" / "solutions.jsonl")
    assert len(solutions) == 5 and "1 wrong answer" in result.stderr
    record = json.loads((folder / "train" / "run.json").read_text())
    assert record["data"]["training_rows"] == 5 and record["steps"] == 2
    record = json.loads((folder / "grpo" / "run.json").read_text())
    assert record["config"]["training"]["init_adapter"] == "two-stage/train" and record["steps"] == 1
    before, after = (load_file(folder / name / "adapters.safetensors") for name in ("train", "grpo"))
    assert any((before[name] != after[name]).any() for name in before)
    found = json.loads((folder / "evaluation" / "results.json").read_text())
    assert [(c["base"], c["other"]) for c in found["comparisons"]] == [
        ("base", "distilled"), ("distilled", "distilled + GRPO"),
    ]  # fmt: skip
    settings = json.loads((folder / "evaluation" / "settings.json").read_text())
    for used in settings["contestants"]:
        assert (used["retrieve"], used["tools"]) == ("bundled", "calculator")
    table = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert table[0].count("|") == 11 and [line.split(" |")[0] for line in table[2:]] == [
        "| base", "| distilled", "| distilled + GRPO",
    ]  # fmt: skip
    assert result.stdout == (folder / "evaluation" / "model_card.md").read_text() + "\n"


def test_a_stage_whose_data_changed_begins_anew_and_the_teacher_s_answers_stay(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = {5}

    def sometimes(request: object, body: dict, attempt: int) -> None:
        a, b = sum_of(body)
        if a in failing:
            request.reply({"error": {"message": "not now"}}, 400)  # type: ignore[attr-defined]
        else:
            request.reply(completion(solution(a, b)))  # type: ignore[attr-defined]

    folder = place / "two-stage"
    with scripted(sometimes) as server:
        command = ("stages.toml", "--teacher-url", server.url, "--teacher-model", "m")
        succeed(place, "pipeline", *command)
        before = {name: (folder / name / "adapters.safetensors").read_bytes() for name in ("train", "grpo")}
        failing.clear()
        (folder / "distilled" / "settings.json").write_text("{damaged")
        (folder / "evaluation" / "settings.json").write_text("{damaged")
        result = succeed(place, "pipeline", *command)
        assert sorted(server.seen.values()) == [1] * 5 + [2]
    assert "distilled/settings.json is damaged or gone; the answers beside it" in result.stderr
    assert "train: data changed, since a stage before it went on; begun anew" in result.stderr
    for name, earlier in before.items():
        assert (folder / name / "earlier" / "adapters.safetensors").read_bytes() == earlier
        assert (folder / name / "adapters.safetensors").read_bytes() != earlier
    assert len(json_lines(folder / "distilled" / "solutions.jsonl")) == 6

    record = folder / "grpo" / "run.json"
    sealed_json(record, unsealed_json(record, None) | {"status": "deadline"})
    monkeypatch.setattr(mlxmath.training.grpo.train, "grpo", lambda _: pytest.fail("its time was up"))
    assert "grpo: its time was up before" in succeed(place, "pipeline", *command).stderr


def configs(**chosen: str) -> dict[str, RunConfig]:
    values = {name.replace("__", "."): value for name, value in chosen.items()}
    found = configure(read_stages(DEMO), Path("f"), values, overwrite=False)
    return {name: resolved.config for name, resolved in found.items()}


def test_the_demo_trains_its_teacher_unless_another_is_named() -> None:
    found = configs(runtime__backend="cpu")
    assert list(found) == ["teacher", "distill", "train", "grpo", "evaluate"]
    assert found["distill"].distillation.teacher == "mlx_model:f/teacher"
    assert found["teacher"].training.adapter_path == "f/teacher" and found["teacher"].data.dataset == "demo"
    assert found["train"].data.dataset == "f/distilled/solutions.jsonl"
    assert (found["grpo"].training.init_adapter, found["grpo"].training.adapter_path) == ("f/train", "f/grpo")
    assert all(config.runtime.backend == "cpu" for config in found.values())
    for chosen in ({"distillation__teacher": "a:b"}, {"distillation__teacher_url": "http://x/v1"}):
        found = configs(**chosen)
        assert list(found) == ["distill", "train", "grpo", "evaluate"]
        assert found["distill"].distillation.teacher == chosen.get("distillation__teacher")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FILE, "there is no teacher"),
        (FILE.replace("[train]", "[tune]"), "tune: expected tables"),
        (FILE.partition("[evaluate]")[0], r"\[evaluate\] is missing"),
        (FILE.replace('recipe = "debug"', 'recipe = "debgu"'), "did you mean 'debug'"),
        (FILE.replace("training.max_steps", "max_steps"), r"\[train\] max_steps: expected SECTION.FIELD"),
        (FILE.replace("evaluation.limit", "evaluation.limits"), "did you mean 'evaluation.limit'"),
        ("[distill", "is not TOML"),
    ],
)
def test_mistakes_are_found_before_anything_begins(place: Path, text: str, message: str) -> None:
    (place / "stages.toml").write_text(text)
    teacher = {} if message == "there is no teacher" else {"distillation.teacher": "nowhere"}
    with pytest.raises(InputError, match=message):
        configure(read_stages(place / "stages.toml"), place / "f", teacher, overwrite=False)
