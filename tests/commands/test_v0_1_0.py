"""What version 0.1.0 wrote works as it did, is made anew, or is refused by the name of what would change."""

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers import run, succeed

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0_1_0"
QUESTION = ("--prompt", "What is 3 + 4?", "--max-new-tokens", "12", "--json")
RESULTS = Path("evaluation_results") / "run"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder as 0.1.0 left it; see its README."""
    folder = tmp_path / "old"
    shutil.copytree(FIXTURES, folder)
    manifest = folder / "mlx_model" / "mlxmath.json"
    manifest.write_text(manifest.read_text().replace("@HERE@", str(folder.resolve())))
    return folder


def distance(one: Path, other: Path) -> float:
    """Largest difference of two adapters. A step here is about 0.01; what machines round otherwise is far less."""
    first, second = (load_file(folder / "adapters.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return float(max(np.abs(first[name] - second[name]).max() for name in first))


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_adapters_answer_as_they_did(old: Path, adapter: str) -> None:
    found = json.loads(succeed(old, "infer", "--adapter-path", adapter, *QUESTION).stdout)
    expected = json.loads((old / "answers.json").read_text())[adapter]
    same = ("text", "tokens", "finish_reason", "prompt_tokens", "template")
    assert {name: found[name] for name in same} == {name: expected[name] for name in same}
    base = json.loads(succeed(old, "infer", "--no-adapter", "--template", "plain", *QUESTION).stdout)
    assert base["tokens"] != found["tokens"]


def test_a_run_repeated_from_its_file_is_the_same_run(old: Path) -> None:
    succeed(old, "train", "--config", "lora/run.toml", "--adapter-path", "again")
    assert distance(old / "again", old / "lora") < 1e-3
    settings = [tomllib.loads((old / name / "run.toml").read_text()) for name in ("lora", "again")]
    assert settings[0]["lora"] == settings[1]["lora"]


def test_a_run_resumed_becomes_what_it_would_have_become(old: Path) -> None:
    resumed = succeed(old, "train", "--config", "lora/run.toml", "--max-steps", "6", "--resume")
    assert "resuming lora/checkpoints/step-4 (step 4)" in resumed.stderr
    assert distance(old / "lora", old / "lora-six-steps") < 1e-3 < 1e-2 < distance(old / "lora", FIXTURES / "lora")


def test_a_run_that_held_out_rows_is_refused_by_that_name(old: Path) -> None:
    refused = run(old, "train", "--config", "dora/run.toml", "--max-steps", "6", "--resume")
    assert refused.returncode == 2
    (line,) = (line for line in refused.stderr.splitlines() if line.startswith("error: "))
    assert "dora/checkpoints/step-4 belongs to another run: hold-out was 'by row" in line
    assert "held-out rows was" in line and "--overwrite or another --adapter-path" in line
    assert distance(old / "dora", FIXTURES / "dora") == 0


def test_a_cache_is_made_anew(old: Path) -> None:
    """0.1.0 gave another name to the same rows; under today's name its file is another one's."""
    prepare = ("prepare", "--config", "lora/run.toml")
    (before,) = (old / "cache").glob("*.pkl")
    succeed(old, *prepare)
    (made,) = set((old / "cache").glob("*.pkl")) - {before}
    content = made.read_bytes()
    for ending in (".pkl", ".verified"):
        shutil.copy(before.with_suffix(ending), made.with_suffix(ending))
    succeed(old, *prepare)
    assert made.read_bytes() == content != before.read_bytes()
    assert "holds these rows already" in succeed(old, *prepare).stderr


def test_a_report_is_built_again_from_its_samples(old: Path) -> None:
    folder = old / RESULTS
    before = json.loads((folder / "results.json").read_text())
    shown = succeed(old, "report", str(RESULTS))
    after = json.loads((folder / "results.json").read_text())
    assert after["num_problems"] == before["num_problems"] == 6
    assert set(after["contestants"]) == set(before["contestants"]) == {"base", "tuned"}
    for name, figures in after["contestants"].items():
        was = before["contestants"][name]
        for part in ("accuracy", "categories", "tokens", "prompt_tokens", "seconds"):
            assert figures[part] == was[part], (name, part)
    assert (folder / "report.html").stat().st_size > 10_000 and "tuned" in shown.stdout + shown.stderr


def test_an_evaluation_is_not_resumed_for_a_named_reason(old: Path) -> None:
    options = ("--adapter-path", "lora", "--compare", "--benchmark", "test.jsonl", "--max-tokens", "24")
    refused = run(old, "evaluate", *options, "--run-name", "run", "--resume")
    assert refused.returncode == 2
    samples = RESULTS / "samples.jsonl"
    assert (old / samples).read_bytes() == (FIXTURES / samples).read_bytes()
    (line,) = (line for line in refused.stderr.splitlines() if line.startswith("error: "))
    assert "an evaluation of an earlier version" in line and "--overwrite" in line
