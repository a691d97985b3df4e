"""`--tools` as a user gives it: an adapter trained on calls is asked with and without, improved, and teaches."""

import json
import shutil
from pathlib import Path

import pytest

from tests.data.material import write_lines
from tests.helpers import json_lines, run, succeed

NAMES = ("Tom", "Ben", "Sam", "Leo")
ROWS = [
    {"question": f"{name} has {n} bags. How many?", "answer": f"<<1234*{n}={1234 * n}>>\n#### {1234 * n}"}
    for n in range(2, 5)
    for name in NAMES
]
QUESTION = ("--prompt", ROWS[0]["question"], "--max-new-tokens", "40")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after a training on rows with calls; not to be changed but by adding to it."""
    place = tmp_path_factory.mktemp("tools")
    write_lines(place / "rows.jsonl", ROWS)
    succeed(
        place, "train", "--debug", "--dataset", "rows.jsonl", "--tools", "calculator", "--num-epochs", "25",
        "--grad-accumulation-steps", "2", "--lora-rank", "16", "--num-examples", "12",
    )  # fmt: skip
    return place


def answer(folder: Path, *arguments: str) -> dict:
    return json.loads(succeed(folder, "infer", "--json", *QUESTION, *arguments).stdout)


def test_an_adapter_remembers_its_tool_and_answers_call_it(folder: Path) -> None:
    assert json.loads((folder / "adapters" / "adapter_config.json").read_text())["tools"] == "calculator"
    found, without = answer(folder), answer(folder, "--tools", "none")
    assert (found["tools"], without["tools"]) == ("calculator", None)
    assert "<<1234*2=2468>>" in found["text"]
    assert "<<1234*2=" in without["text"] and without["text"] != found["text"]
    streamed = succeed(folder, "infer", *QUESTION)
    assert streamed.stdout.rstrip("\n") == found["text"] and "with calculator" in streamed.stderr


def test_evaluate_asks_with_and_without(folder: Path) -> None:
    quick = ("--benchmark", "rows.jsonl", "--limit", "6", "--max-tokens", "40")
    succeed(folder, "evaluate", "--compare", "--tools", "calculator", *quick, "--run-name", "both")
    made = folder / "evaluation_results" / "both"
    results = json.loads((made / "results.json").read_text())
    names = ["base", "base + calculator", "tuned", "tuned + calculator"]
    assert list(results["contestants"]) == names
    pairs = {(one["base"], one["other"]) for one in results["comparisons"]}
    assert {("tuned", "tuned + calculator"), ("base", "base + calculator")} <= pairs
    rows = json_lines(made / "samples.jsonl")
    given = [row["response"] for row in rows if row["contestant"] == "tuned + calculator"]
    assert sum("=2468>>" in text or "=3702>>" in text or "=4936>>" in text for text in given) >= 4
    settings = json.loads((made / "settings.json").read_text())
    assert [one.get("tools") for one in settings["contestants"]] == [None, "calculator"] * 2

    succeed(folder, "evaluate", *quick, "--run-name", "own")
    own = json_lines(folder / "evaluation_results" / "own" / "samples.jsonl")
    assert [row["response"] for row in own] == given  # what the adapter remembers


def test_grpo_and_distill_call(folder: Path, tmp_path: Path) -> None:
    for name in ("mlx_model", "adapters"):
        shutil.copytree(folder / name, tmp_path / name)
    shutil.copy(folder / "rows.jsonl", tmp_path)
    small = (
        "--model", "demo", "--dtype", "float32", "--dataset", "rows.jsonl", "--max-seq-len", "160", "--tools",
        "calculator", "--max-completion-length", "40", "--num-generations", "4", "--batch-size", "8",
        "--grad-accumulation-steps", "1",
        "--learning-rate", "1e-3", "--lora-rank", "16", "--max-steps", "2", "--init-adapter", "adapters",
        "--reward", "mine:calls", "--beta", "0.01", "--num-iterations", "2", "--save-every", "1",
    )  # fmt: skip
    (tmp_path / "mine.py").write_text(
        "def calls(samples):\n    return [s.completion.count('>>') + len(set(s.completion)) / 50 for s in samples]\n"
    )
    succeed(tmp_path, "grpo", *small, "--adapter-path", "improved")
    assert json.loads((tmp_path / "improved" / "adapter_config.json").read_text())["tools"] == "calculator"
    state = max((tmp_path / "improved" / "checkpoints").iterdir())
    assert state.is_dir()
    refused = run(
        tmp_path, "grpo", *small[:-2], "--adapter-path", "improved", "--resume", "--max-steps", "3", "--tools", "python"
    )
    assert refused.returncode == 2 and "data.tools" in refused.stderr

    succeed(
        tmp_path, "distill", "--teacher", "mlx_model:adapters", "--dataset", "rows.jsonl", "--tools", "calculator",
        "--samples", "1", "--temperature", "0", "--max-tokens", "40", "--num-examples", "4", "--min-characters", "1",
    )  # fmt: skip
    responses = [row["response"] for row in json_lines(tmp_path / "distilled" / "responses.jsonl")]
    assert sum("<<1234*" in text and ">>" in text for text in responses) >= 3
    said = run(
        tmp_path, "distill", "--teacher-url", "http://127.0.0.1:1/v1", "--teacher-model", "m", "--tools", "python"
    )
    assert said.returncode == 2 and "a local --teacher" in said.stderr


def test_answers_by_which_the_best_adapters_are_chosen_call_too(folder: Path) -> None:
    succeed(
        folder, "train", "--debug", "--dataset", "rows.jsonl", "--tools", "calculator", "--init-adapter", "adapters",
        "--lora-rank", "16", "--learning-rate", "1e-9", "--max-steps", "1", "--validation-split", "6",
        "--validation-metric", "answers", "--max-seq-len", "128", "--adapter-path", "more",
    )  # fmt: skip
    told = [event for event in json_lines(folder / "more" / "events.jsonl") if event["event"] == "validation"]
    assert told[0]["answers"] >= 0.5
